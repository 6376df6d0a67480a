"""The course of a run: building -> waiting -> (round -> waiting)* -> finishing -> parting -> done.

Whatever the journal holds is taken up again at the next start, at the stage where it stood. A run that is to
stop gives up a round that still collects, and is finished with the best model it has, if any.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal

from apiary.errors import RequestRefused, RunFailed, StoreError
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Notice, RoundResult
from apiary_coordinator.journal import AcceptedRow, RoundRow
from apiary_coordinator.model.builder import Evaluation, ExportedModel
from apiary_coordinator.model.checkpoints import Checkpoints
from apiary_coordinator.round.collector import clear_spools, intact, spool_path
from apiary_coordinator.round.runner import RoundRunner
from apiary_coordinator.round.start import ClosedRound, Parts, ServerState
from apiary_coordinator.run.announcer import Announcer
from apiary_coordinator.run.assignment import Assignment, Means
from apiary_coordinator.run.history import RunHistory
from apiary_coordinator.worker import Lane, LaneWorker

log = logging.getLogger(__name__)

Stage = Literal["building", "waiting", "round", "finishing", "parting", "done"]
LENT: Final = "model"
"""Whose blobs are served between rounds: those of the newest model."""
_SAY_EVERY_S: Final = 10.0
_COUNT_EVERY_S: Final = 0.25
"""While there are too few nodes, they are counted so often: each turn would make thousands that come slow."""
_RETRY_S: Final = 5.0
"""A step that the disk refused is tried again after this pause: neither the log nor the disk is flooded."""
_PARTING_S: Final = 60.0
"""The broker may take this long to hear that the run is over: longer than a dead link goes unnoticed."""


class Run:
    """One run, from its first start to its last word. Called on the loop only."""

    def __init__(self, means: Means, assignment: Assignment, *, epoch: str):
        self.run = assignment.run
        self.lane = Lane()
        self.stage: Stage = "building"
        self.live: RoundRunner | None = None
        self.artefacts: ExportedModel | None = None
        self.record = RunHistory(
            assignment.run,
            assignment.created,
            assignment.settings,
            partial(means.journal.told, assignment.run),
        )
        self.record.told_to_stop = assignment.stop
        self.summary: dict[str, Any] = {}
        """What became of it; empty where it ended without a model."""
        self._means = means
        self._assignment = assignment
        self._settings = assignment.settings
        self._workshop = assignment.workshop
        self._models = Checkpoints(assignment.run, means.blobs)
        self._worker = LaneWorker(means.worker, self.lane)
        self._bulletin = Announcer(self.run, self._settings.run, outlet=means.outlet, epoch=epoch)
        self._opening: ServerState | None = None
        self._said = (-_SAY_EVERY_S, "")
        self._newcomer_at = means.clock()
        self._count_at = 0.0
        self._taking_up = False
        """A round is open, and is not under way yet: its model is judged, its updates are read."""
        self._undecided = False
        """What follows the last round could not be settled yet: the disk refused it."""
        self._part_at = 0.0
        self._turn_at = 0.0

    def start(self) -> None:
        """Begin to build, or with what was built before."""
        artefacts, stop = self._assignment.artefacts, self.record.told_to_stop
        rows = self._means.journal.rounds(self.run)
        self._taking_up = bool(rows) and rows[-1].result is None
        if artefacts is None and stop is not None:
            self._give_up("stopped", stop)
        elif artefacts is not None and self._models.whole(artefacts):
            self._built(artefacts)
        else:
            log.info("run=%s building the model recipe=%s", self.run, self._settings.run.recipe)
            self._worker.submit(self._workshop.build, self._built)

    def tick(self) -> None:
        """Time has passed. Raises StoreError, and then does nothing for a while."""
        now = self._means.clock()
        if now < self._turn_at:
            return
        try:
            if self.live is not None:
                self.live.tick(now)
            elif self.stage == "waiting" and self._undecided:
                self._next()
            elif self.stage == "waiting":
                self._try_open(now)
            elif self.stage == "parting":
                self._part(now)
        except StoreError:
            self._turn_at = now + _RETRY_S
            raise

    def newcomer(self, now: float) -> None:
        """A node has just come: the first round waits a moment for others."""
        self._newcomer_at = now

    def notice(self, node: NodeId) -> Notice | None:
        """What is current, for one node; None while a round is being taken up: it may be training for it."""
        if self.live is not None:
            return self._bulletin.notice(self.live, node)
        if self._taking_up:
            return None
        # An owner who has labelled nothing yet should know what there is to choose from.
        return Notice(labels=list(self.artefacts.labels) if self.artefacts is not None else None)

    def stop(self, why: str) -> None:
        """Come to an end early. Raises RequestRefused where the run is over in any case, StoreError."""
        if self.stage in ("finishing", "parting", "done"):
            raise RequestRefused(f"run {self.run} is being finished already: {self.record.stop}")
        if self.record.told_to_stop is not None:
            return
        self._means.journal.ask_to_stop(self.run, why)
        self.record.told_to_stop = why
        log.info("run=%s is to stop: %s", self.run, why)
        match self.stage:
            case "building" if self.artefacts is None and self._assignment.artefacts is None:
                self._give_up("stopped", why)
            case "waiting":
                self._next()
            case "round" if self.live is not None:
                self.live.abandon(why)
            case _:
                pass  # the judge of the first model is at work: what follows asks why_stop

    def fail(self, why: str) -> None:
        """It cannot go on: something that it needs does not work. Raises StoreError."""
        self._give_up("failed", why)

    # -- building --------------------------------------------------------------------------------------

    def _built(self, artefacts: ExportedModel) -> None:
        means = self._means
        self.artefacts = artefacts
        self.record.labels = artefacts.labels
        means.journal.set_artefacts(self.run, artefacts.model_dump_json())
        rows = means.journal.rounds(self.run)
        self.record.take_up()
        model = next((row.model for row in reversed(rows) if row.model), Digest(artefacts.initial.digest))
        state = next((row.state for row in reversed(rows) if row.state), None)
        self._opening = ServerState(
            self._settings,
            artefacts,
            self._workshop.manifest(artefacts),
            self._models.weights(model),
            model,
            state,
            means.blobs,
        )
        first = self._models.weights(Digest(artefacts.initial.digest))
        self._worker.submit(partial(self._workshop.evaluate, artefacts, first), self._judged)

    def _judged(self, judgement: Evaluation) -> None:
        if self.stage != "building":
            return  # a full disk came in between, and the round that was taken up is under way
        means = self._means
        self.record.initial = {"accuracy": judgement.accuracy, "loss": judgement.loss}
        self.record.begin()
        log.info("run=%s the untrained model has accuracy=%.1f%%", self.run, 100 * judgement.accuracy)
        rows = means.journal.rounds(self.run)
        row = rows[-1] if rows and rows[-1].result is None else None
        state_dir = self._settings.coordinator.state_dir
        spool = spool_path(state_dir, self.run, row.number) if row else None
        clear_spools(state_dir, spool)
        if row is not None and spool is not None:
            accepted = means.journal.accepted(self.run, row.number)
            log.info("run=%s going on in round=%d updates=%d", self.run, row.number, len(accepted))
            self._worker.submit(partial(intact, spool, accepted), partial(self._take_up, row, accepted))
        else:
            self._newcomer_at = means.clock()
            self._next()

    def _take_up(self, row: RoundRow, accepted: list[AcceptedRow], whole: set[NodeId]) -> None:
        self._begin(RoundRunner.resume(self._parts(), row, accepted, whole, self._means.clock()))
        self._catch_up()

    def _catch_up(self) -> None:
        """What came while a round was being taken up, of nodes that may not say it again: they are lost."""
        roster = self._means.roster
        with suppress(StoreError):  # it is decided; what could not be written is tried again with each tick
            if self.live is not None and self.record.told_to_stop is not None:
                self.live.abandon(self.record.told_to_stop)
        for node in self.live.round.awaited if self.live is not None else ():
            if self.live is not None and node in roster:
                with suppress(StoreError):
                    self.live.node_status(node, roster[node].status, roster, self._means.clock())

    # -- rounds ----------------------------------------------------------------------------------------

    def _try_open(self, now: float) -> None:
        if now < self._count_at:
            return
        run, roster = self._settings.run, self._means.roster
        fit = roster.fit(run.plan.min_samples, run.only)
        if len(fit) < run.min_nodes:
            self._count_at = now + _COUNT_EVERY_S
            which = f" with {', '.join(run.only)}" if run.only else ""
            self._say(f"waiting for nodes{which}: {len(fit)} of {run.min_nodes} are ready", now)
            return
        if now - self._newcomer_at < run.settle_s and not self.record.rounds:
            return
        number, paces = self.record.next_number, list(self.record.paces)
        self._begin(RoundRunner.open(self._parts(), fit, number=number, recent=paces, roster=roster, now=now))

    def _parts(self) -> Parts:
        assert self._opening is not None  # noqa: S101 - the stage says so
        return self._opening.parts(
            run=self.run,
            journal=self._means.journal,
            worker=self._worker,
            outlet=self._means.outlet,
            workshop=self._workshop,
            clock=self._means.clock,
            limits=lambda: self._means.bus.limits,
            announce=self._announce,
            invite=self._invite,
            closed=self._round_closed,
        )

    def _begin(self, live: RoundRunner) -> None:
        self.live = live
        self.stage, self._taking_up = "round", False
        told, size = self._bulletin.announcement(live), len(live.round.cohort)
        refs = (told.model, told.manifest, told.trainer, told.base)
        self._means.down.serve([ref for ref in refs if ref is not None], size)
        log.info(
            "run=%s round=%d opened cohort=%d deadline_s=%.0f uploads=%d",
            self.run,
            live.round.number,
            size,
            live.deadline_s,
            live.max_uploads,
        )
        self._means.flow.bytes_sent = 0
        self._announce()
        try:
            live.begin(self._means.clock())
        except StoreError as e:
            log.error("%s; trying again", e)  # what was not done stays first in line for the next tick

    def _announce(self) -> None:
        if self.live is not None:
            self._bulletin.announce(self.live)

    def _invite(self, node: NodeId) -> None:
        if self.live is not None:
            self._bulletin.invite(self.live, node)

    def _round_closed(self, closed: ClosedRound) -> None:
        live, opening, journal = self.live, self._opening, self._means.journal
        assert live is not None and opening is not None  # noqa: S101 - the stage says so
        result = closed.result.model_copy(update={"bytes_down": self._means.flow.bytes_sent})
        entry = {**result.model_dump(mode="json", exclude={"v"}), **closed.details}
        if closed.weights is not None and closed.model is not None:
            journal.close_round(self.run, result.round, entry, closed.model, closed.state)
            opening.advance(closed.weights, closed.model, closed.state)
        else:
            journal.close_round(self.run, result.round, entry, opening.model, opening.state)
        # Up to here a full disk changes nothing, and all of it is tried again. What follows waits for a tick.
        self.live = None
        self.stage, self._undecided = "waiting", True
        if result.state == "failed":
            # Who still trains for it learns so: finishing and publishing may take hours.
            self._bulletin.announce(live)
        self._bulletin.forget()
        live.collection.close(remove=True)
        self.record.add(entry)
        try:
            self._publish(result, opening, live.parts.artefacts)
            self._lend(opening, live.parts.artefacts, len(live.round.cohort))
        except StoreError as e:
            log.error("%s; it is told of with the next round", e)

    def _publish(self, result: RoundResult, opening: ServerState, artefacts: ExportedModel) -> None:
        self._bulletin.result(result)
        if result.state == "closed":
            best = self.record.best
            is_best = best is not None and best.round == result.round
            self._bulletin.model(result, opening.model_ref, artefacts, best=is_best)

    def _lend(self, opening: ServerState, artefacts: ExportedModel, nodes: int) -> None:
        """Nodes that predict may ask for the newest model while no round is open, too."""
        refs = (opening.model_ref, artefacts.manifest, artefacts.trainer, artefacts.base)
        self._means.down.serve([ref for ref in refs if ref is not None], nodes, LENT)

    def _prune(self, opening: ServerState, artefacts: ExportedModel) -> None:
        """Keep what something may still need: the first model, the best, the newest. Raises StoreError."""
        best = self.record.best
        keep = {opening.model, artefacts.initial.digest}
        if best is not None:
            keep.add(Digest(self.record.model_of(best.round)))
        self._models.prune((entry["model"] for entry in self.record.rounds), keep)

    # -- the end ---------------------------------------------------------------------------------------

    def _next(self) -> None:
        """A round or the end: what follows. Raises StoreError, and is settled with a later tick then."""
        self.stage, self._undecided = "waiting", True
        if self._opening is not None and self.artefacts is not None:
            self._prune(self._opening, self.artefacts)
        self._settle()
        self._undecided = False

    def _settle(self) -> None:
        stop = self.record.why_stop()
        if stop is None:
            return
        best = self.record.best
        if best is None and self.record.told_to_stop is not None:
            self._say_goodbye(None)
            return
        if best is None:
            with suppress(StoreError):  # the journal says it, too
                self.record.end()
            self._means.journal.end_run(self.run, "failed", stop)
            last = self.record.rounds[-1]["why"] if self.record.rounds else "no round was opened"
            raise RunFailed(f"run {self.run} ended without a model: {stop}; the last: {last}")
        model = self.record.model_of(best.round)
        assert self.artefacts is not None  # noqa: S101 - rounds were closed
        finish = self._workshop.finish
        weights = self._models.weights(Digest(model))
        log.info("run=%s %s; finishing with round=%d", self.run, stop, best.round)
        self.stage = "finishing"
        self._worker.submit(
            partial(finish, self.artefacts, weights, self.record.folder), partial(self._finished, model)
        )

    def _finished(self, model: str, extra: dict[str, Any]) -> None:
        self.summary = self.record.finish(model, self._means.wall() - self._assignment.created, extra)
        self._worker.submit(self._follow_up, self._say_goodbye)

    def _follow_up(self) -> None:
        """Worker: report and publish. The model is written: nothing that fails here fails the run."""
        try:
            self._means.inspect(self.record.folder)
        except Exception:
            log.exception("run=%s is finished, but what follows it failed", self.run)

    def _say_goodbye(self, _: Any) -> None:
        assert self._opening is not None and self.artefacts is not None  # noqa: S101 - rounds were closed
        self._bulletin.finished(self.artefacts, self._opening.model_ref, self.record.next_number - 1)
        self._part_at = self._means.clock() + _PARTING_S
        self.stage = "parting"

    def _part(self, now: float) -> None:
        """End the run once the broker has what was said last: nobody answers after us.

        A node whose receipt was lost learns by it that its update is not waited for. Journaled after it was
        said: a coordinator that is killed between the two says it once more.
        """
        means, bus = self._means, self._means.bus
        quiet = means.flow.pending == 0 and means.down.next_due() is None
        if (bus.connected and bus.backlog == 0 and quiet) or now >= self._part_at:
            state = "finished" if self.record.told_to_stop is None else "stopped"
            self.record.end()
            self._means.journal.end_run(self.run, state, self.record.stop or "")
            self.stage = "done"

    def _give_up(self, state: str, why: str) -> None:
        """End at once and without a model; what the worker still makes is nobody's."""
        self._means.journal.end_run(self.run, state, why)
        self.lane.left, self._taking_up = True, False
        self.record.stop = why
        if self.record.rounds:
            with suppress(StoreError):
                self.record.end()
        if self.live is not None:
            self.live.collection.close(remove=True)
            self.live = None
        if self._opening is not None and self.artefacts is not None:
            number = max(0, self.record.next_number - 1)
            self._bulletin.finished(self.artefacts, self._opening.model_ref, number)
        self.stage = "done"

    # -- small parts -----------------------------------------------------------------------------------

    def _say(self, what: str, now: float) -> None:
        if what != self._said[1] or now - self._said[0] >= _SAY_EVERY_S:
            self._said = (now, what)
            log.info("run=%s %s", self.run, what)
