"""One enrolled node that misbehaves: it has its own rights on the broker, and does with them what it likes.

It is drawn like any other. In every round it offers an update that is none, until that is refused; so the
round's members are the same whatever else it does, and the model must be that of the others.
"""

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from apiary.bus.bus import Connected, Received
from apiary.bus.mqtt import MqttBus
from apiary.errors import WireError
from apiary.settings import BrokerSettings
from apiary.wire import Digest, NodeId, capabilities
from apiary.wire.chunks import count, digest_of, encode, indices, span
from apiary.wire.messages import (
    Announcement,
    Ask,
    BlobRef,
    Grant,
    Message,
    NodeStatus,
    Offer,
    Progress,
    Receipt,
    TrainMetrics,
    Want,
)
from apiary.wire.messages.node import NodeState
from apiary.wire.topics import TopicKind, Topics

NAME: Final = "misbehaving"
OFFER_EVERY_S: Final = 1.0
STATUS_EVERY_S: Final = 4.0
FLOOD: Final = 300
"""Messages of one flood."""
DOUBLES: Final = 12
"""Offers back to back."""
_UPDATE_BYTES: Final = 2_000
_KEPT: Final = 64
"""Documents that it may be asked for."""
_OPEN: Final = ("open", "collecting")
_REFUSED: Final = (0, 2, 4)
"""Of its lies those that a round answers with a refusal."""


class MisbehavingNode:
    """A client with the rights of one node, `NAME`. `others` are the nodes whose messages it forges."""

    def __init__(self, port: int, topics: Topics, labels: Sequence[str], samples: int, others: Sequence[str]):
        self._topics = topics
        self._others = [NodeId(other) for other in others]
        each = max(1, samples // len(labels))
        self._ready = NodeStatus(
            state="ready",
            samples=each * len(labels),
            labels=dict.fromkeys(labels, each),
            runtimes=["litert"],
            capabilities=capabilities.of_this_version(),
            session="chaos",
        )
        self._round: Announcement | None = None
        self._answered: tuple[str, int] | None = None
        """The round whose offer was refused."""
        self._documents: dict[str, bytes] = {}
        self._offer_at = 0.0
        self._status_at = 0.0
        self._bus = MqttBus(
            BrokerSettings(host="127.0.0.1", port=port, username=NAME, retry_max_s=0.5), client_id=NAME
        )
        for kind in (TopicKind.NODE_GRANT, TopicKind.NODE_RECEIPT):
            self._bus.subscribe(topics.build(kind, node=NodeId(NAME)))
        self._bus.subscribe(topics.build(TopicKind.ROUND_CURRENT))

    @property
    def backlog(self) -> int:
        """Messages that the broker has not acknowledged yet."""
        return self._bus.backlog

    def turn(self) -> None:
        """Hear what came, and offer this round's update that is none until it is refused."""
        for event in self._bus.poll(0):
            if isinstance(event, Connected):
                self._status_at = self._offer_at = 0.0
            elif isinstance(event, Received):
                try:
                    self._heard(event)
                except WireError:
                    continue
        now = time.monotonic()
        if now - self._status_at >= STATUS_EVERY_S and self._send(self._ready, retain=True):
            self._status_at = now
        told = self._round
        if told is None or told.state not in _OPEN or self._answered == (told.run, told.round):
            return
        if now - self._offer_at >= OFFER_EVERY_S and self._send(
            self._lie(told, _REFUSED[told.round % len(_REFUSED)])
        ):
            self._offer_at = now

    def misbehave(self, seed: int) -> str | None:
        """One piece of misbehaviour; what it was, or None without a connection."""
        if not self._bus.connected:
            return None
        chance = random.Random(seed)  # noqa: S311 - faults to repeat, nothing to guess
        kinds: list[Callable[[random.Random], str]] = [
            self._double_offers, self._flood, self._lies, self._forge_its_own, self._forge_others,
        ]  # fmt: skip
        return chance.choice(kinds)(chance)

    def close(self) -> None:
        """Leave."""
        self._bus.close()

    # -- what it does

    def _double_offers(self, chance: random.Random) -> str:
        told = self._round
        if told is None:
            return self._flood(chance)
        offers = [self._offer(told, chance.randbytes(_UPDATE_BYTES)) for _ in range(DOUBLES // 2)]
        sent = sum(self._send(offer) for offer in [*offers, *reversed(offers)])
        return f"{sent} offers back to back"

    def _flood(self, chance: random.Random) -> str:
        topics = [
            self._topics.build(kind, node=NodeId(NAME))
            for kind in (TopicKind.NODE_ASK, TopicKind.NODE_OFFER, TopicKind.NODE_WANT, TopicKind.UPLOAD)
        ]
        asks = [(topics[0], Ask(session="chaos").encode())] * (FLOOD // 2)
        noise = [(chance.choice(topics), chance.randbytes(chance.randrange(1, 3_000))) for _ in asks]
        sent = sum(self._bus.publish(topic, payload, qos=1) for topic, payload in [*asks, *noise])
        return f"{sent} messages at once"

    def _lies(self, chance: random.Random) -> str:
        told = self._round
        if told is None:
            return self._forge_its_own(chance)
        sent = sum(self._send(self._lie(told, way)) for way in range(5))
        return f"{sent} offers with false sizes, samples, digests and rounds"

    def _forge_its_own(self, chance: random.Random) -> str:
        told = self._round
        run, number = (told.run, told.round) if told is not None else ("none", 1)
        states: list[NodeState] = ["training", "sending", "paused", "lost", "init"]
        forged: list[Message] = [
            self._ready.model_copy(
                update={"state": state, "run": run, "round": number + chance.randint(-1, 3)}
            )
            for state in states
        ]
        forged.append(Progress(run=run, round=number + 1, epoch=9, epochs=2, loss=0.0))
        forged.append(Want(digest="0" * 64, missing=[(0, 2**20)]))
        chance.shuffle(forged)
        self._status_at = 0.0  # and then it is ready again
        return f"{sum(map(self._send, forged))} statuses and stages that are not so"

    def _forge_others(self, chance: random.Random) -> str:
        """All of these the broker's access list refuses."""
        told = self._round
        victim = chance.choice(self._others)
        gone = NodeStatus(state="lost", why="connection lost")
        forged: list[tuple[TopicKind, NodeId | None, bytes]] = [
            (TopicKind.NODE_STATUS, victim, gone.encode()),
            (TopicKind.NODE_STATUS, victim, b""),
            (TopicKind.ROUND_CURRENT, None, b""),
            (TopicKind.COORDINATOR_STATUS, None, b""),
        ]
        if told is not None:
            offer = self._offer(told, chance.randbytes(_UPDATE_BYTES))
            declined = gone.model_copy(update={"declined": True, "run": told.run, "round": told.round})
            receipt = Receipt(digest=offer.update.digest, state="accepted", run=told.run, round=told.round)
            over = told.model_copy(update={"state": "finished"})
            forged += [
                (TopicKind.NODE_STATUS, victim, declined.encode()),
                (TopicKind.NODE_OFFER, victim, offer.encode()),
                (TopicKind.NODE_RECEIPT, victim, receipt.encode()),
                (TopicKind.ROUND_CURRENT, None, over.encode()),
            ]
        sent = sum(
            self._bus.publish(self._topics.build(kind, node=node), payload, qos=1, retain=True)
            for kind, node, payload in forged
        )
        return f"{sent} messages of {victim} and the coordinator"

    # -- its rounds

    def _heard(self, event: Received) -> None:
        topic = self._topics.parse(event.topic)
        match topic.kind:
            case TopicKind.ROUND_CURRENT if event.payload:
                self._round = Announcement.decode(event.payload, who="the coordinator")
            case TopicKind.NODE_RECEIPT:
                receipt = Receipt.decode(event.payload, who="the coordinator")
                if receipt.state == "rejected":
                    self._answered = (receipt.run, receipt.round)
            case TopicKind.NODE_GRANT:
                self._upload(Grant.decode(event.payload, who="the coordinator"))
            case _:
                return

    def _upload(self, grant: Grant) -> None:
        """Whole chunks of the document that it offered, which may have another digest."""
        document = self._documents.get(grant.digest)
        if document is None:
            return
        topic = self._topics.build(TopicKind.UPLOAD, node=NodeId(NAME))
        for index in indices(grant.missing, count(len(document))):
            begin, end = span(index, len(document))
            payload = encode(Digest(grant.digest), index, document[begin:end])
            self._bus.publish(topic, payload, qos=1)

    def _lie(self, told: Announcement, way: int) -> Offer:
        """An offer that is refused: by its size, its samples, its bytes or its digest."""
        document = hashlib.shake_256(f"{told.run}/{told.round}/{way}".encode()).digest(_UPDATE_BYTES)
        match way:
            case 0:
                return self._offer(told, document, size=told.bounds.max_bytes + 1)
            case 1:
                return self._offer(told, document, samples=2**24)
            case 2:
                return self._offer(told, document, digest=digest_of(document[::-1]))
            case 3:
                return self._offer(told, document, number=told.round + 1)
            case _:
                return self._offer(told, document)

    def _offer(
        self,
        told: Announcement,
        document: bytes,
        *,
        size: int | None = None,
        samples: int = 9,
        digest: str | None = None,
        number: int | None = None,
    ) -> Offer:
        named = digest or digest_of(document)
        self._documents[named] = document
        while len(self._documents) > _KEPT:
            self._documents.pop(next(iter(self._documents)))
        return Offer(
            run=told.run,
            round=told.round if number is None else number,
            update=BlobRef(digest=named, bytes=len(document) if size is None else size),
            codec=told.plan.codec,
            samples=samples,
            metrics=TrainMetrics(loss=0.0, accuracy=1.0),
        )

    def _send(self, message: Message, *, retain: bool = False) -> bool:
        topic = self._topics.build(message.kind, node=NodeId(NAME))
        return self._bus.publish(topic, message.encode(), qos=1, retain=retain)
