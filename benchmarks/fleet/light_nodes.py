"""Nodes that cost as little as a node can that keeps to the protocol: what a server with a fleet has to do.

    python -m benchmarks.fleet.light_nodes --port P --first 0 --count 500

A fleet's nodes have a processor each; here they share two with the coordinator and the broker. So a light
node has a connection of its own (the product's bus), says who it is, asks, wants, checks every chunk, names
its own update (sha256), offers it, sends what is granted and waits for its receipt. It keeps nothing on disk,
shares the model's bytes with the others of its process, and trains nothing. `whole_nodes.py` has whole nodes.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from benchmarks.fleet.whole_nodes import parser, serve
from benchmarks.measuring.service import SAMPLES, settings_of, update_of

from apiary import __version__
from apiary.bus.bus import Connected, Disconnected, Received
from apiary.bus.flow import ChunkFlow
from apiary.bus.mqtt import MqttBus
from apiary.process.allocator import tune
from apiary.process.child import die_with_parent
from apiary.settings import Settings
from apiary.wire import Digest, NodeId
from apiary.wire.chunks import Assembly
from apiary.wire.messages import (
    Announcement,
    Ask,
    BlobRef,
    Grant,
    Message,
    NodeStatus,
    Notice,
    Offer,
    Receipt,
    TrainMetrics,
    Want,
)
from apiary.wire.topics import TopicKind
from apiary_edge.service import RECEIVE_MAXIMUM
from apiary_edge.service import will as edge_will


@dataclass(slots=True)
class Models:
    """The model of the round, put together once for all nodes of a process; verified when it is whole."""

    digest: Digest | None = None
    data: bytearray = field(default_factory=bytearray)
    have: Assembly = field(default_factory=lambda: Assembly(Digest("0" * 64), 1))

    def begin(self, ref: BlobRef) -> None:
        if self.digest != ref.digest:
            self.digest, self.data = Digest(ref.digest), bytearray(ref.bytes)
            self.have = Assembly(self.digest, ref.bytes)

    def keep(self, index: int, payload: bytes) -> None:
        if not self.have.complete and (taken := self.have.accept(index, payload)) is not None:
            offset, data = taken
            self.data[offset : offset + len(data)] = data
            if self.have.complete:
                assert hashlib.sha256(self.data).hexdigest() == self.digest, "the model came out wrong"


class LightNode:
    """One node; `step` is one turn of its loop."""

    def __init__(self, settings: Settings, bus: MqttBus, models: Models):
        self.node = NodeId(settings.edge.node_id)
        self._topics = settings.topics
        self._window = settings.broker.inflight
        self._bus = bus
        self._models = models
        self._flow = ChunkFlow()
        self._told: Announcement | None = None
        self._coming: Assembly | None = None
        self._update: tuple[bytes, memoryview] = (b"", memoryview(b""))
        self._offered: Digest | None = None
        for kind in (
            TopicKind.NODE_NOTICE,
            TopicKind.NODE_GRANT,
            TopicKind.NODE_RECEIPT,
            TopicKind.ROUND_CURRENT,
        ):
            bus.subscribe(self._topics.pattern(kind, node=self.node))

    def step(self, timeout_s: float) -> None:
        for event in self._bus.poll(timeout_s):
            match event:
                case Connected():
                    self._status("ready")
                    self._say(Ask())
                case Received():
                    self._received(event)
                case Disconnected(error):
                    raise SystemExit(f"{self.node}: {error}")  # a load that lost nodes would measure nothing
        self._flow.pump(self._bus, self._window)

    def _received(self, event: Received) -> None:
        topic = self._topics.parse(event.topic)
        match topic.kind:
            case TopicKind.CHUNK_DOWN if self._coming is not None and topic.index is not None:
                if topic.digest == self._coming.digest and self._coming.accept(topic.index, event.payload):
                    self._models.keep(topic.index, event.payload)
                    if self._coming.complete:
                        self._trained()
            case TopicKind.ROUND_CURRENT:
                told = _announcement(event.payload)
                if told.cohort is not None and self.node in told.cohort:
                    self._announced(told)
            case TopicKind.NODE_NOTICE:
                notice = Notice.decode(event.payload, who="coordinator")
                if notice.announcement is not None and notice.invited:
                    self._announced(notice.announcement)
            case TopicKind.NODE_GRANT:
                grant = Grant.decode(event.payload, who="coordinator")
                if grant.digest == self._offered:
                    head, body = self._update
                    self._flow.add(
                        Digest(grant.digest),
                        len(head) + len(body),
                        grant.missing,
                        topic=lambda i: self._topics.build(TopicKind.UPLOAD, node=self.node),
                        read=_reader(head, body),
                        patient=True,
                    )
            case TopicKind.NODE_RECEIPT:
                receipt = Receipt.decode(event.payload, who="coordinator")
                if receipt.digest == self._offered:
                    assert receipt.state in ("accepted", "duplicate"), receipt
                    self._offered = None
                    self._status("ready")
            case _:
                pass

    def _announced(self, told: Announcement) -> None:
        if told.state != "open" or (
            self._told and (self._told.run, self._told.round) == (told.run, told.round)
        ):
            return
        self._told = told
        self._status("training")
        self._models.begin(told.model)
        self._coming = Assembly(Digest(told.model.digest), told.model.bytes)
        self._bus.subscribe(self._topics.pattern(TopicKind.CHUNK_DOWN, digest=self._coming.digest))
        self._say(Want(digest=told.model.digest, missing=self._coming.missing()))

    def _trained(self) -> None:
        """The update is the model itself, under a header of this node's own."""
        told, coming = self._told, self._coming
        assert told is not None
        assert coming is not None
        self._bus.unsubscribe(self._topics.pattern(TopicKind.CHUNK_DOWN, digest=coming.digest))
        self._coming = None
        head, body = update_of(memoryview(self._models.data), told.run, told.round, self.node)
        name = hashlib.sha256(head)
        name.update(body)
        self._update, self._offered = (head, body), Digest(name.hexdigest())
        self._status("sending")
        self._say(
            Offer(
                run=told.run,
                round=told.round,
                update=BlobRef(digest=self._offered, bytes=len(head) + len(body)),
                codec=told.plan.codec,
                samples=SAMPLES,
                metrics=TrainMetrics(loss=0.5),
            )
        )

    def _status(self, state: str) -> None:
        told = self._told
        self._say(
            NodeStatus.model_validate(
                {
                    "state": state,
                    "run": told.run if told and state != "ready" else None,
                    "round": told.round if told and state != "ready" else None,
                    "samples": SAMPLES,
                    "labels": {"a": SAMPLES // 2, "b": SAMPLES - SAMPLES // 2},
                    "runtimes": ["litert"],
                    "version": __version__,
                }
            )
        )

    def _say(self, message: Message) -> None:
        kind = message.kind
        topic = self._topics.build(kind, node=self.node)
        self._bus.publish(topic, message.encode(), qos=kind.qos, retain=kind.retain)


@lru_cache(maxsize=8)
def _announcement(payload: bytes) -> Announcement:
    """The same bytes came to every node of this process."""
    return Announcement.decode(payload, who="coordinator")


def _reader(head: bytes, body: memoryview) -> Callable[[int, int], bytes | memoryview]:
    def read(offset: int, length: int) -> bytes | memoryview:
        if offset >= len(head):
            return body[offset - len(head) : offset - len(head) + length]
        first = head[offset : offset + length]
        return first + bytes(body[: length - len(first)])

    return read


def light_node(args: argparse.Namespace, number: int, models: Models) -> tuple[MqttBus, LightNode]:
    name = NodeId(f"pi-{number:04d}")
    args.host, args.node_id, args.nodes, args.rounds, args.sync = "127.0.0.1", name, 1, 1, False
    settings = settings_of(args)
    bus = MqttBus(
        settings.broker,
        f"bench-{name}",
        edge_will(settings.topics, name, f"s-{number}"),
        receive_maximum=RECEIVE_MAXIMUM,
    )
    return bus, LightNode(settings, bus, models)


def main() -> None:
    args = parser(__doc__).parse_args()
    die_with_parent()
    tune(small=True)
    models = Models()
    nodes = [light_node(args, i, models) for i in range(args.first, args.first + args.count)]
    gc.collect()
    gc.freeze()
    serve(nodes, args.profile)


if __name__ == "__main__":
    main()
