"""The updates of one round on their way in: grants, chunks, spool, screening, journal, receipt, sum.

Everything slow (hashing, decoding, syncing, adding) is done by the worker, in order; the journal's commit
stands between an update's sync and its receipt.
"""

import logging
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from apiary.errors import StoreError
from apiary.wire import Digest, NodeId
from apiary.wire.chunks import digest_of
from apiary.wire.messages import Grant, Offer, Receipt
from apiary.wire.messages.transfer import ReceiptState
from apiary_coordinator.journal import AcceptedRow
from apiary_coordinator.resources import Resources
from apiary_coordinator.round.server_state import RoundTerms
from apiary_coordinator.round.state import Round
from apiary_coordinator.updates.counted import CountedUpdates
from apiary_coordinator.updates.screening import Rejection, screen_offer, screen_update
from apiary_coordinator.updates.spool import Spool
from apiary_coordinator.updates.uploads import Upload, Uploads

log = logging.getLogger(__name__)

MAX_DAMAGED = 2
"""A complete upload of good chunks whose digest does not hold is granted again this often, then refused."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """An upload's bytes do not give its digest; `chunks` are those at fault, empty where that is unknown."""

    chunks: tuple[int, ...]


class CollectingRound(Protocol):
    """The round that updates are collected for. `accepted` and `rejected` follow the journal, on the loop."""

    round: Round

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was opened."""

    def accepted(self, row: AcceptedRow) -> None:
        """An update counts. Raises StoreError."""

    def rejected(self, node: NodeId, why: str) -> None:
        """An update was refused. Raises StoreError."""

    def capped(self, node: NodeId, samples: int) -> None:
        """An update of so many samples counts for the round's cap."""


class Collector:
    """Takes the updates of one round."""

    def __init__(
        self,
        terms: RoundTerms,
        runner: CollectingRound,
        resources: Resources,
        *,
        spool: Spool,
        uploads: Uploads,
        summed: bool,
    ):
        """The exact sum is kept where updates are `summed` as they come."""
        self._terms = terms
        self._runner = runner
        self._journal = resources.storage.journal
        self._worker = resources.worker
        self._outlet = resources.outgoing.outlet
        self._spool = spool
        self._uploads = uploads
        self._screening: dict[NodeId, Upload] = {}
        """Complete uploads that the worker looks at."""
        self._screened: list[AcceptedRow] = []
        self._syncing: list[AcceptedRow] = []
        self._confirming: deque[AcceptedRow] = deque()
        """Journaled, and their receipts not sent yet."""
        self._damaged: dict[NodeId, int] = {}
        self._digests: dict[NodeId, Digest] = {}
        self.counted = CountedUpdates(spool, terms.shapes, terms.bits, summed=summed)
        """What was accepted; the worker's."""
        self.bytes_up = 0
        self._over = False

    @property
    def uploading(self) -> tuple[int, int]:
        """Uploads granted, and those that wait for a grant."""
        return self._uploads.active, self._uploads.waiting

    def restore(self, rows: list[AcceptedRow]) -> None:
        """Count journaled updates again after a restart; `intact` has looked at their bytes."""
        self._spool.keep((row.slot, row.bytes) for row in rows)
        for row in rows:
            self._digests[row.node] = row.digest
            self._worker.submit(partial(self._add, row), _nothing)

    def offered(self, node: NodeId, offer: Offer, now: float) -> None:
        """Answer an offer for this round with a grant, now or later, or with a receipt."""
        round_ = self._runner.round
        if self._answered(node, offer):
            return
        if not round_.collecting or node not in round_.cohort:
            why = "the round is over" if node in round_.cohort else "not drawn for this round"
            self._receipt(node, offer, "closed", why)
        elif self._in_hand(node):
            # Whatever it offers now: the update that came whole is the one that is answered.
            log.debug("node=%s offers while its update is being screened", node)
        elif (refused := screen_offer(offer, self._terms.bounds, self._terms.plan.codec)) is not None:
            self._reject(node, offer, refused.why)
        else:
            self._free(self._uploads.superseded(node, Digest(offer.update.digest)))
            self._perform(self._uploads.offered(node, offer, now))

    def chunk(self, node: NodeId, digest: str, index: int, payload: bytes, now: float) -> None:
        """Take one chunk of a granted upload; others are dropped. Raises ChunkError and StoreError.

        `digest`: of its blob, or the beginning of it that stands in each chunk.
        """
        if not self._runner.round.collecting:
            return
        upload = self._uploads.receiving(node, digest)
        if upload is None or upload.assembly.complete:
            return
        # A complete upload is hashed: to verify each of its chunks, too, would cost half as much again.
        taken = upload.assembly.accept(index, payload, verify=upload.suspect)
        if taken is None:
            return
        self._uploads.came(upload, now)
        offset, data = taken
        try:
            self._spool.write(upload.slot, offset, data)
        except StoreError:
            upload.assembly.lost(index)  # it is asked for again, as a chunk that was lost is
            raise
        self.bytes_up += len(payload)
        if upload.assembly.complete:
            self._screening[node] = upload
            self._worker.submit(partial(self._screen, upload), partial(self._on_screened, upload))
            self._perform(self._uploads.arrived(upload, now))

    def tick(self, now: float) -> None:
        """Grant again what stalled, and grant what has room."""
        if self._runner.round.collecting:
            self._perform(self._uploads.tick(now))

    def left(self, node: NodeId, now: float) -> None:
        """A node is out of this round: free its place."""
        self._finished(node, now)

    def close(self, *, remove: bool) -> None:
        """The round is over. What the worker still has of it ends before the spool does."""
        self._over = True
        if remove:
            # Freeing a gigabyte takes the disk a while, and the next round need not wait for it.
            self._worker.submit(self._wind_up, _nothing)
        else:
            self._spool.close()
        # Rounds are parts of cycles, and the collector of those does not see how large a sum is.
        self.counted.drop_sum()

    def _answered(self, node: NodeId, offer: Offer) -> bool:
        """Answer a node whose update was counted or refused already; False where none was."""
        round_ = self._runner.round
        if node in round_.accepted:
            again = None if self._digests.get(node) == offer.update.digest else "another update was counted"
            self._receipt(node, offer, "duplicate", again)
        elif node in round_.rejected:
            self._receipt(node, offer, "rejected", round_.rejected[node])
        else:
            return False
        return True

    def _in_hand(self, node: NodeId) -> bool:
        """Whether an update of this node has come whole, and its outcome is not journaled yet."""
        return node in self._screening or any(r.node == node for r in (*self._screened, *self._syncing))

    def _perform(self, grants: list[Upload]) -> None:
        for upload in grants:
            if upload.slot < 0:
                try:
                    upload.slot = self._spool.allocate(len(self._runner.round.cohort))
                except StoreError:
                    # Nothing is lost: the node keeps its update and offers it again after its own pause.
                    self._uploads.drop(upload.node)
                    raise
            # An access list of the version before refuses the one topic, on MQTT 3.1.1 without a word: where
            # nothing comes, every second grant names the old ones.
            grant = Grant(
                digest=upload.digest,
                missing=upload.assembly.missing(),
                one_topic=True if upload.stalls % 2 == 0 else None,
            )
            self._outlet.send(grant, upload.node)

    def _screen(self, upload: Upload) -> Rejection | Damaged | None:
        """Worker: None where the update is good."""
        with self._spool.view(upload.slot, upload.assembly.bytes) as view:
            if digest_of(view) != upload.digest:
                return Damaged(tuple(upload.assembly.damaged(view)))
            return screen_update(view, upload.offer, upload.node, self._terms.bounds, self._terms.shapes)

    def _on_screened(self, upload: Upload, verdict: Rejection | Damaged | None) -> None:
        """Called again with the same verdict where the disk refused a step of it."""
        node = upload.node
        if self._screening.get(node) is upload:
            if isinstance(verdict, Damaged) and self._asked_again(upload, verdict):
                return
            self._judge(upload, verdict)
            del self._screening[node]
        self._finished(node, upload.heard_at)
        self._sync_next()

    def _asked_again(self, upload: Upload, damaged: Damaged) -> bool:
        """Whether a damaged upload is granted once more: not for ever, and not where its node has left."""
        node = upload.node
        whole = 0 if damaged.chunks else 1
        times = self._damaged.get(node, 0) + whole
        if times > MAX_DAMAGED or not self._uploads.has(upload):
            return False
        self._damaged[node] = times
        del self._screening[node]
        what = f"{len(damaged.chunks)} chunks" if damaged.chunks else "all"
        log.warning("node=%s %s of its update came damaged: asked for again", node, what)
        self._perform(self._uploads.again(upload, damaged.chunks, upload.heard_at))
        return True

    def _judge(self, upload: Upload, verdict: Rejection | Damaged | None) -> None:
        """Put a good update in line for its sync; journal and answer the refusal of another."""
        if isinstance(verdict, Damaged):
            verdict = Rejection(f"node {upload.node}: the update's bytes do not give the digest it offered")
        node = upload.node
        if verdict is not None:
            self._reject(node, upload.offer, verdict.why)
            self._spool.release(upload.slot)
            return
        self._screened.append(
            AcceptedRow(
                node=node,
                digest=upload.digest,
                slot=upload.slot,
                bytes=upload.assembly.bytes,
                samples=self._weight(node, upload.offer),
                seconds=self._runner.elapsed_s,
                offer=upload.offer,
            )
        )

    def _weight(self, node: NodeId, offer: Offer) -> int:
        """What an update counts for: the samples that it trained on, capped as the round was announced."""
        weight = min(offer.samples, self._terms.bounds.max_samples)
        if weight < offer.samples:
            self._runner.capped(node, offer.samples)
        return weight

    def _sync_next(self) -> None:
        """One sync and one commit for all that were screened meanwhile."""
        if not self._runner.round.collecting:
            self._turn_away(self._screened)
            self._screened = []
        elif self._screened and not self._syncing:
            self._syncing, self._screened = self._screened, []
            self._worker.submit(self._spool.sync, self._on_synced)

    def _on_synced(self, _: None) -> None:
        rows = self._syncing
        round_ = self._runner.round
        room = round_.goal - len(round_.accepted) if round_.collecting else 0
        wanted: dict[NodeId, AcceptedRow] = {}
        for row in rows:
            if row.node not in round_.accepted and row.node not in round_.rejected:
                wanted.setdefault(row.node, row)
        answered = [row for row in rows if wanted.get(row.node) is not row]
        counted, late = list(wanted.values())[:room], list(wanted.values())[room:]
        if counted:
            written = self._journal.accept(round_.run, round_.number, counted)
            answered += [row for row in counted if row not in written]
            counted = written
        # Only now: a commit that a full disk refused is tried again with the same rows.
        self._syncing = []
        for row in counted:
            self._digests[row.node] = row.digest
            self._worker.submit(partial(self._add, row), _nothing)
        self._confirming += counted
        if len(counted) < room:
            self._screened = [*late, *self._screened]  # the journal left a row out: there is a place for them
        else:
            self._turn_away(late)
        self._confirm()
        self._leave_out(answered)
        self._sync_next()

    def _leave_out(self, rows: list[AcceptedRow]) -> None:
        """Answer updates that the journal has no place for: they cost their own nodes only."""
        for row in rows:
            log.error(
                "round=%d node=%s an update of it has no place in the journal",
                self._runner.round.number,
                row.node,
            )
            self._spool.release(row.slot)
            try:
                if not self._answered(row.node, row.offer):
                    self._reject(row.node, row.offer, f"node {row.node}: the journal refuses its update")
            except StoreError as e:
                log.error("%s; it is answered with its next offer", e)

    def _confirm(self) -> None:
        """Send each counted row's receipt. What the disk refuses of what follows costs others nothing."""
        while self._confirming:
            row = self._confirming.popleft()
            self._receipt(row.node, row.offer, "accepted")
            try:
                self._runner.accepted(row)
            except StoreError as e:
                log.error("%s; trying again", e)  # the round's steps stay first in line for its next tick

    def _turn_away(self, rows: list[AcceptedRow]) -> None:
        for row in rows:
            self._receipt(row.node, row.offer, "closed", "the round had enough")

    def _wind_up(self) -> None:
        """Worker: after its last look at the spool."""
        self._spool.close()
        self._spool.remove()

    def _add(self, row: AcceptedRow) -> None:
        """Worker: count one accepted update; none any more where the round failed meanwhile."""
        if not self._over:
            self.counted.add(row.node, row.slot, row.bytes, row.samples)

    def _reject(self, node: NodeId, offer: Offer, why: str) -> None:
        self._journal.reject(offer.run, offer.round, node, why)
        log.warning("round=%d node=%s update rejected: %s", offer.round, node, why)
        self._receipt(node, offer, "rejected", why)
        self._runner.rejected(node, why)

    def _receipt(self, node: NodeId, offer: Offer, state: ReceiptState, why: str | None = None) -> None:
        self._outlet.send(receipt(offer, state, why), node)

    def _free(self, upload: Upload | None) -> None:
        """Give back an unfinished upload's room; a complete one may lie under the worker's eyes."""
        if upload is not None and upload.slot >= 0 and not upload.assembly.complete:
            self._spool.release(upload.slot)

    def _finished(self, node: NodeId, now: float) -> None:
        self._free(self._uploads.drop(node))
        if self._runner.round.collecting:
            self._perform(self._uploads.freed(now))


def receipt(offer: Offer, state: ReceiptState, why: str | None = None) -> Receipt:
    """The receipt for an offer."""
    why = why[:500] if why else None
    return Receipt(digest=offer.update.digest, state=state, run=offer.run, round=offer.round, why=why)


def spool_path(state_dir: Path, run: str, number: int) -> Path:
    """Where a round's updates lie."""
    return state_dir / "spool" / f"{run}-{number}.spool"


def intact(path: Path, rows: list[AcceptedRow]) -> set[NodeId]:
    """Whose journaled updates are whole in the spool at `path`. Reads all of them: of a fleet gigabytes."""
    spool = Spool(path, 1)
    try:
        return {row.node for row in rows if _holds(spool, row)}
    finally:
        spool.close()


def _holds(spool: Spool, row: AcceptedRow) -> bool:
    try:
        with spool.view(row.slot, row.bytes) as view:
            return digest_of(view) == row.digest
    except (OSError, ValueError):
        return False


def clear_spools(state_dir: Path, keep: Path | None) -> None:
    """Remove the spools of rounds that are over; one is left where power went before it was removed."""
    for path in (state_dir / "spool").glob("*.spool"):
        if path != keep:
            log.info("removing the spool of a round that is over: %s", path.name)
            path.unlink(missing_ok=True)


def _nothing(_: object) -> None:
    pass
