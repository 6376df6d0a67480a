"""An enrolled node that is nothing but its messages: what it offers in a round is up to a row."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tests.attacks.ground import THIEF, Ground
from tests.fleet.harness import update_of

from apiary.blobs import BlobStore
from apiary.bus.bus import Received
from apiary.errors import SignatureRefused, StoreError
from apiary.identity.gate import OPEN, MessageGate
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob, capabilities
from apiary.wire.chunks import count, digest_of, encode, indices, span
from apiary.wire.messages import Announcement, BlobRef, Grant, NodeStatus, Offer, Receipt, TrainMetrics
from apiary.wire.topics import TopicKind, Topics

STATUS_EVERY_S: Final = 4.0
OFFER_EVERY_S: Final = 2.0
SAMPLES: Final = 30
ME: Final = NodeId(THIEF)
Tensors = Mapping[str, NDArray[Any]]


class Liar:
    """A context manager: drawn like any other node from its begin to its end.

    `lie(liar)` gives what it offers in the round that is open, and is called again every two seconds until
    something is refused or counted; `then(liar)` what it offers once it has sent an update.
    """

    def __init__(
        self,
        ground: Ground,
        lie: Callable[[Liar], Iterable[Offer]],
        *,
        then: Callable[[Liar], Iterable[Offer]] = lambda liar: (),
    ):
        self.receipts: list[Receipt] = []
        self.round: Announcement | None = None
        self.topics = Topics()
        self._ground = ground
        self._lie = lie
        self._then = then
        self._gate: MessageGate = OPEN
        self._documents: dict[str, bytes] = {}
        self._over = threading.Event()
        self._answered: tuple[str, int] | None = None
        self._failure: Exception | None = None
        self.bus = ground.broker.party(THIEF)
        self._thread = threading.Thread(target=self._guarded, name="liar")

    def __enter__(self) -> Liar:
        self._thread.start()
        try:
            self._ground.until("the liar is ready", lambda: self._ground.state_of(THIEF) == "ready", 120.0)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(30)
        assert self._failure is None, f"the liar itself failed: {self._failure!r}"

    # -- what a row's lie is made of

    def change(self) -> Tensors:
        """What its training would give in this round."""
        told = self.round
        assert told is not None
        store = BlobStore(self._ground.folder / "coordinator-state" / "blobs")
        before = blob.decode(store.read(Digest(told.model.digest)), who="test").weights
        after, _ = update_of(THIEF, told.round, before)
        return dict((after - before).items())

    def offer(self, tensors: Tensors, *, samples: int = SAMPLES) -> Offer:
        """Of an update with these tensors."""
        told = self.round
        assert told is not None
        about = {"run": told.run, "round": told.round, "node": THIEF, "samples": samples}
        weights = Weights({name: np.asarray(t, np.float32) for name, t in tensors.items()})
        document = blob.encode(weights, codec_name=told.plan.codec, about=about)
        return self.bare_offer(digest_of(document), len(document), samples, document)

    def bare_offer(
        self, digest: str, size: int, samples: int = SAMPLES, document: bytes | None = None
    ) -> Offer:
        """Of a document of this digest and size, which there need not be."""
        told = self.round
        assert told is not None
        if document is not None:
            self._documents[digest] = document
        return Offer(
            run=told.run,
            round=told.round,
            update=BlobRef(digest=digest, bytes=size),
            codec=told.plan.codec,
            samples=samples,
            metrics=TrainMetrics(loss=0.1),
        )

    # -- its thread

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as e:  # a row must not hold, nor fail, because of it
            self._failure = e

    def _run(self) -> None:
        self._gate = self._ground.gate(THIEF)
        for kind in (TopicKind.NODE_GRANT, TopicKind.NODE_RECEIPT):
            self.bus.subscribe(self.topics.build(kind, node=ME))
        self.bus.subscribe(self.topics.build(TopicKind.ROUND_CURRENT))
        each = SAMPLES // 2
        ready = NodeStatus(
            state="ready",
            samples=SAMPLES,
            labels={"a": each, "b": each},
            runtimes=["fake"],
            capabilities=capabilities.of_this_version(),
            session="liar",
        )
        status = self.topics.build(TopicKind.NODE_STATUS, node=ME)
        status_at = offer_at = 0.0
        while not self._over.is_set():
            for event in self.bus.poll(0.05):
                if isinstance(event, Received) and event.payload:
                    at = self.topics.parse(event.topic)
                    with contextlib.suppress(SignatureRefused):
                        self._heard(at.kind, self._gate.open(at, event.topic, event.payload))
            now = time.monotonic()
            if not self.bus.connected:
                continue
            if now - status_at > STATUS_EVERY_S:
                self.bus.publish(status, ready.encode(), qos=1, retain=True)
                status_at = now
            told = self.round
            if (
                told is not None
                and told.state in ("open", "collecting")
                and THIEF in (told.cohort or ())
                and self._answered != (told.run, told.round)
                and now - offer_at > OFFER_EVERY_S
            ):
                self._publish(self._lie)
                offer_at = now
        self.bus.publish(status, NodeStatus(state="lost", why="switched off").encode(), qos=1, retain=True)
        end = time.monotonic() + 5
        while self.bus.backlog and time.monotonic() < end:
            self.bus.poll(0.05)
        self.bus.close()

    def _publish(self, lie: Callable[[Liar], Iterable[Offer]]) -> None:
        topic = self.topics.build(TopicKind.NODE_OFFER, node=ME)
        # A round's model is gone once the round is over, and where the coordinator was begun anew.
        with contextlib.suppress(StoreError):
            for offer in lie(self):
                sealed = self._gate.seal(TopicKind.NODE_OFFER, topic, offer.encode())
                self.bus.publish(topic, sealed, qos=1)

    def _heard(self, kind: TopicKind, payload: bytes) -> None:
        match kind:
            case TopicKind.ROUND_CURRENT:
                told = Announcement.decode(payload, who="the coordinator")
                if self.round is None or (told.run, told.round) != (self.round.run, self.round.round):
                    self._documents.clear()
                self.round = told
            case TopicKind.NODE_RECEIPT:
                receipt = Receipt.decode(payload, who="the coordinator")
                self.receipts.append(receipt)
                if receipt.state in ("accepted", "rejected"):
                    self._answered = (receipt.run, receipt.round)
            case TopicKind.NODE_GRANT:
                self._send(Grant.decode(payload, who="the coordinator"))
            case _:
                return

    def _send(self, grant: Grant) -> None:
        document = self._documents.get(grant.digest)
        if document is None:
            return
        for index in indices(grant.missing, count(len(document))):
            begin, end = span(index, len(document))
            payload = encode(Digest(grant.digest), index, document[begin:end])
            self.bus.publish(self.topics.build(TopicKind.UPLOAD, node=ME), payload, qos=1)
        self._publish(self._then)
