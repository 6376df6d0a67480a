"""A node that is nothing but its messages: it offers and sends what a test gives it."""

from __future__ import annotations

import json
from typing import Any

from tests.fleet.harness import Fleet, update_of
from tests.stand_ins.memory_bus import MemoryBus

from apiary.bus.bus import Received
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.chunks import count, digest_of, encode, indices, span
from apiary.wire.messages import BlobRef, Offer, TrainMetrics
from apiary.wire.topics import TopicKind, Topics


class RawNode:
    """Speaks for `node`, whose real service keeps its training to itself meanwhile."""

    def __init__(self, fleet: Fleet, node: str):
        self.receipts: list[dict[str, Any]] = []
        self.granted: list[str] = []
        """Digests that were granted, as often as they were."""
        self._fleet = fleet
        self._node = NodeId(node)
        self._topics = Topics()
        self._documents: dict[str, bytes] = {}
        fleet.trainings[node].seconds = 1e9
        self._bus: MemoryBus = fleet.broker.bus(f"raw-{node}")
        self._bus.poll(0)
        for kind in (TopicKind.NODE_GRANT, TopicKind.NODE_RECEIPT):
            self._bus.subscribe(self._topics.pattern(kind, node=self._node))

    def update(self, *, factor: float = 1.0, samples: int | None = None, about: int | None = None) -> bytes:
        """What its training would give in the open round, times `factor`; `about` claims other samples."""
        runner = self._fleet.runner
        assert runner is not None
        before = runner.server.train_from
        after, own = update_of(self._node, runner.round.number, before)
        change = after - before
        said = {
            "run": runner.round.run,
            "round": runner.round.number,
            "node": self._node,
            "samples": samples or own,
        }
        scaled = Weights({name: factor * tensor for name, tensor in change.items()})
        return blob.encode(scaled, codec_name=runner.terms.plan.codec, about=said)

    def offer(
        self,
        document: bytes,
        *,
        size: int | None = None,
        digest: str | None = None,
        accuracy: float | None = None,
    ) -> None:
        """Offer it; `size` and `digest` may be other than they are."""
        runner = self._fleet.runner
        assert runner is not None
        about = blob.decode(document, who="test").about
        ref = BlobRef(digest=digest or digest_of(document), bytes=size or len(document))
        self._documents[ref.digest] = document
        offer = Offer(
            run=runner.round.run,
            round=runner.round.number,
            update=ref,
            codec=runner.terms.plan.codec,
            samples=about["samples"],
            metrics=TrainMetrics(loss=0.5, accuracy=accuracy),
        )
        self._bus.publish(self._topics.build(TopicKind.NODE_OFFER, node=self._node), offer.encode())

    def answer(self) -> None:
        """Send what was granted, and note what was answered."""
        for event in self._bus.poll(0):
            if not isinstance(event, Received):
                continue
            message = json.loads(event.payload)
            if "state" in message:
                self.receipts.append(message)
                continue
            self.granted.append(message["digest"])
            document = self._documents[message["digest"]]
            digest = Digest(message["digest"])
            for i in indices(message["missing"], count(len(document))):
                start, end = span(i, len(document))
                topic = self._topics.build(TopicKind.CHUNK_UP, node=self._node, digest=digest, index=i)
                self._bus.publish(topic, encode(digest, i, document[start:end]))
