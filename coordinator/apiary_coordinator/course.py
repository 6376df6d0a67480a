"""The course of a run: building -> waiting -> (round -> waiting)* -> finishing -> parting -> done.

Whatever the journal holds is taken up again at the next start, at the stage where it stood.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from apiary.blobs import BlobStore
from apiary.bus.bus import Bus
from apiary.bus.flow import ChunkFlow
from apiary.bus.outlet import Outlet
from apiary.errors import RunFailed
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.messages import Announcement, ModelManifest, Notice, RoundResult
from apiary_coordinator import announcements
from apiary_coordinator.collection import clear_spools, spool_path
from apiary_coordinator.downlink import Downlink
from apiary_coordinator.history import Record
from apiary_coordinator.live_round import Closed, LiveRound, Opening, Parts
from apiary_coordinator.roster import Roster
from apiary_coordinator.round import Phase
from apiary_coordinator.store import Journal
from apiary_coordinator.worker import Worker
from apiary_coordinator.workshop import Artefacts, Judgement, Workshop

log = logging.getLogger(__name__)

Stage = Literal["building", "waiting", "round", "finishing", "parting", "done"]
_SAY_EVERY_S: Final = 10.0
_PARTING_S: Final = 60.0
"""The broker may take this long to hear that the run is over: longer than a dead link goes unnoticed."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a run works with."""

    settings: Settings
    journal: Journal
    blobs: BlobStore
    workshop: Workshop
    worker: Worker
    bus: Bus
    outlet: Outlet
    flow: ChunkFlow
    down: Downlink
    roster: Roster
    clock: Callable[[], float]
    wall: Callable[[], float]
    inspect: Callable[[Path], Any]


class Course:
    """One run, from its first start to its last word. Called on the loop only."""

    def __init__(self, means: Means, *, run: str, created: float, epoch: str):
        self.run = run
        self.stage: Stage = "building"
        self.live: LiveRound | None = None
        self.artefacts: Artefacts | None = None
        self.record = Record(run, created, means.settings)
        self.summary: dict[str, Any] = {}
        self._means = means
        self._created = created
        self._epoch = epoch
        self._opening: Opening | None = None
        self._told: tuple[tuple[LiveRound, Phase, tuple[NodeId, ...]], Announcement] | None = None
        self._said = (-_SAY_EVERY_S, "")
        self._newcomer_at = means.clock()
        self._part_at = 0.0

    def start(self, artefacts: Artefacts | None) -> None:
        """Begin to build; a resumed run's `artefacts` are used where they are still whole."""
        if artefacts is not None and self._whole(artefacts):
            self._built(artefacts)
        else:
            log.info("run=%s building the model recipe=%s", self.run, self._means.settings.run.recipe)
            self._means.worker.submit(self._means.workshop.build, self._built)

    def tick(self) -> None:
        """Time has passed."""
        now = self._means.clock()
        if self.live is not None:
            self.live.tick(now)
        elif self.stage == "waiting":
            self._try_open(now)
        elif self.stage == "parting":
            self._part(now)

    def newcomer(self, now: float) -> None:
        """A node has just come: the first round waits a moment for others."""
        self._newcomer_at = now

    def notice(self, node: NodeId) -> Notice:
        """What is current, for one node."""
        if self.live is None:
            return Notice()
        # Who else was drawn is not this node's concern: with a large fleet the list is most of the message.
        told = self._announcement(self.live).model_copy(update={"cohort": None})
        return Notice(invited=self.live.round.welcomes(node), announcement=told)

    # -- building --------------------------------------------------------------------------------------

    def _built(self, artefacts: Artefacts) -> None:
        means = self._means
        self.artefacts = artefacts
        self.record.labels = artefacts.labels
        means.journal.set_artefacts(self.run, artefacts.model_dump_json())
        rows = means.journal.rounds(self.run)
        self.record.rounds = [row.result for row in rows if row.result is not None]
        model = next((row.model for row in reversed(rows) if row.model), Digest(artefacts.initial.digest))
        state = next((row.state for row in reversed(rows) if row.state), None)
        self._opening = Opening(
            means.settings,
            artefacts,
            means.workshop.manifest(artefacts),
            self._weights(model),
            model,
            state,
            means.blobs,
        )
        first = self._weights(Digest(artefacts.initial.digest))
        means.worker.submit(partial(means.workshop.evaluate, artefacts, first), self._judged)

    def _judged(self, judgement: Judgement) -> None:
        means = self._means
        self.record.initial = {"accuracy": judgement.accuracy, "loss": judgement.loss}
        log.info("run=%s the untrained model has accuracy=%.1f%%", self.run, 100 * judgement.accuracy)
        self.stage = "waiting"
        self._newcomer_at = means.clock()
        rows = means.journal.rounds(self.run)
        row = rows[-1] if rows and rows[-1].result is None else None
        state_dir = means.settings.coordinator.state_dir
        clear_spools(state_dir, spool_path(state_dir, self.run, row.number) if row else None)
        if row is not None:
            log.info("run=%s going on in round=%d", self.run, row.number)
            self._begin(LiveRound.resume(self._parts(), row, means.clock()))
        else:
            self._next()

    # -- rounds ----------------------------------------------------------------------------------------

    def _try_open(self, now: float) -> None:
        run, roster = self._means.settings.run, self._means.roster
        fit = roster.fit(run.plan.min_samples, run.only)
        if len(fit) < run.min_nodes:
            which = f" with {', '.join(run.only)}" if run.only else ""
            self._say(f"waiting for nodes{which}: {len(fit)} of {run.min_nodes} are ready", now)
            return
        if now - self._newcomer_at < run.settle_s and not self.record.rounds:
            return
        number, paces = self.record.next_number, self.record.paces
        self._begin(LiveRound.open(self._parts(), fit, number=number, recent=paces, roster=roster, now=now))

    def _parts(self) -> Parts:
        assert self._opening is not None  # noqa: S101 - the stage says so
        return self._opening.parts(
            run=self.run,
            journal=self._means.journal,
            worker=self._means.worker,
            outlet=self._means.outlet,
            workshop=self._means.workshop,
            clock=self._means.clock,
            announce=self._announce,
            invite=self._invite,
            closed=self._round_closed,
        )

    def _begin(self, live: LiveRound) -> None:
        self.live = live
        self.stage = "round"
        told, size = self._announcement(live), len(live.round.cohort)
        refs = (told.model, told.manifest, told.trainer, told.base)
        self._means.down.serve([ref for ref in refs if ref is not None], size)
        log.info(
            "run=%s round=%d opened cohort=%d deadline_s=%.0f",
            self.run,
            live.round.number,
            size,
            live.deadline_s,
        )
        self._means.flow.bytes_sent = 0
        self._announce()
        live.begin(self._means.clock())

    def _announce(self) -> None:
        if self.live is None:
            return
        told = self._announcement(self.live)
        self._means.outlet.send(told)
        if told.cohort is None and told.state == "open":
            for node in self.live.round.awaited:
                self._invite(node)

    def _invite(self, node: NodeId) -> None:
        if self.live is not None:
            told = self._announcement(self.live).model_copy(update={"cohort": None})
            self._means.outlet.send(Notice(invited=True, announcement=told), node)

    def _announcement(self, live: LiveRound) -> Announcement:
        """As it stands; made once for all who ask meanwhile, because it names the whole cohort."""
        about = (live, live.round.phase, live.round.cohort)
        if self._told is None or any(a is not b for a, b in zip(self._told[0], about, strict=True)):
            self._told = (about, self._opened(live))
        return self._told[1]

    def _opened(self, live: LiveRound) -> Announcement:
        return announcements.opened(
            live.round,
            live.parts.artefacts,
            model=live.model,
            plan=live.plan,
            bounds=live.bounds,
            deadline_s=live.deadline_s,
            rounds=self._means.settings.run.rounds,
            epoch=self._epoch,
            needs=announcements.needs(live.parts.manifest),
        )

    def _round_closed(self, closed: Closed) -> None:
        live, opening, journal = self.live, self._opening, self._means.journal
        assert live is not None and opening is not None  # noqa: S101 - the stage says so
        result = closed.result.model_copy(update={"bytes_down": self._means.flow.bytes_sent})
        entry = {**result.model_dump(mode="json", exclude={"v"}), **closed.details}
        if closed.weights is not None and closed.model is not None:
            journal.close_round(self.run, result.round, entry, closed.model, closed.state)
            opening.advance(closed.weights, closed.model, closed.state)
        else:
            journal.close_round(self.run, result.round, entry, opening.model, opening.state)
        # Up to here a full disk changes nothing, and all of it is tried again.
        self.live = self._told = None
        self.record.rounds.append(entry)
        live.collection.close(remove=True)
        self._prune(opening, live.parts.artefacts)
        self._publish(result, opening, live.parts.artefacts)
        self.record.write()
        self._next()

    def _publish(self, result: RoundResult, opening: Opening, artefacts: Artefacts) -> None:
        outlet = self._means.outlet
        outlet.send(result)
        if result.state == "failed":
            log.warning("run=%s round=%d failed: %s", self.run, result.round, result.why)
            return
        best = self.record.best
        outlet.send(
            ModelManifest(
                run=self.run,
                round=result.round,
                model=opening.model_ref,
                labels=list(artefacts.labels),
                accuracy=result.accuracy,
                best=best is not None and best.round == result.round,
            )
        )
        for name in ("accuracy", "loss", "bytes_up", "bytes_down", "seconds"):
            outlet.metric(name, float(getattr(result, name) or 0.0))
        outlet.metric("contributors", len(result.contributors))
        outlet.metric("round", result.round)
        log.info(
            "run=%s round=%d closed accuracy=%.1f%% loss=%.4f contributors=%d rejected=%d missing=%d",
            self.run,
            result.round,
            100 * (result.accuracy or 0),
            result.loss or 0,
            len(result.contributors),
            len(result.rejected),
            len(result.missing),
        )

    def _prune(self, opening: Opening, artefacts: Artefacts) -> None:
        """Keep the models that something may still need: the first, the best, the newest."""
        best = self.record.best
        keep = {opening.model, artefacts.initial.digest}
        if best is not None:
            keep.add(Digest(self.record.model_of(best.round)))
        for entry in self.record.rounds:
            if entry["model"] and entry["model"] not in keep:
                self._means.blobs.remove(Digest(entry["model"]))

    # -- the end ---------------------------------------------------------------------------------------

    def _next(self) -> None:
        stop = self.record.why_stop()
        if stop is None:
            self.stage = "waiting"
            return
        best = self.record.best
        self.record.write()
        if best is None:
            self._means.journal.end_run(self.run, "failed", stop)
            last = self.record.rounds[-1]["why"] if self.record.rounds else "no round was opened"
            raise RunFailed(f"run {self.run} ended without a model: {stop}; the last: {last}")
        self.stage = "finishing"
        log.info("run=%s %s; finishing with round=%d", self.run, stop, best.round)
        model = self.record.model_of(best.round)
        assert self.artefacts is not None  # noqa: S101 - rounds were closed
        finish = self._means.workshop.finish
        weights = self._weights(Digest(model))
        self._means.worker.submit(
            partial(finish, self.artefacts, weights, self.record.folder), partial(self._finished, model)
        )

    def _finished(self, model: str, extra: dict[str, Any]) -> None:
        self.summary = self.record.finish(model, self._means.wall() - self._created, extra)
        self._means.worker.submit(partial(self._means.inspect, self.record.folder), self._say_goodbye)

    def _say_goodbye(self, _: Any) -> None:
        assert self._opening is not None and self.artefacts is not None  # noqa: S101 - rounds were closed
        run = self._means.settings.run
        self._means.outlet.send(
            announcements.finished(
                self.artefacts,
                run=self.run,
                number=self.record.next_number - 1,
                model=self._opening.model_ref,
                plan=run.plan,
                bounds=run.bounds,
                rounds=run.rounds,
                epoch=self._epoch,
            )
        )
        self._part_at = self._means.clock() + _PARTING_S
        self.stage = "parting"

    def _part(self, now: float) -> None:
        """End the run once the broker has what was said last: nobody answers after us.

        A node whose receipt was lost learns by it that its update is not waited for. Journaled after it was
        said: a coordinator that is killed between the two says it once more.
        """
        bus = self._means.bus
        if (bus.connected and bus.backlog == 0) or now >= self._part_at:
            self._means.journal.end_run(self.run, "finished", self.record.stop or "")
            self.stage = "done"

    # -- small parts -----------------------------------------------------------------------------------

    def _whole(self, artefacts: Artefacts) -> bool:
        refs = (artefacts.manifest, artefacts.trainer, artefacts.base, artefacts.initial)
        return all(self._means.blobs.verify(Digest(ref.digest)) for ref in refs if ref is not None)

    def _weights(self, digest: Digest) -> Weights:
        return blob.decode(self._means.blobs.read(digest), who="the blob store").weights

    def _say(self, what: str, now: float) -> None:
        if what != self._said[1] or now - self._said[0] >= _SAY_EVERY_S:
            self._said = (now, what)
            log.info("run=%s %s", self.run, what)
