"""A run: building -> waiting -> (round -> waiting)* -> finishing -> parting -> done.

Whatever the journal holds is resumed at the next start, at the stage where it stood. A run that is to
stop gives up a round that still collects, and is finished with the best model it has, if any.
"""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from apiary.errors import RequestRefused, RunFailed, StoreError
from apiary.learn.metrics import Evaluation
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Notice
from apiary_coordinator import strategies
from apiary_coordinator.fleet.demands import Demands, some
from apiary_coordinator.fleet.muster import muster
from apiary_coordinator.fleet.rests import Rests
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.journal import AcceptedRow, RoundRow
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.checkpoints import Checkpoints, model_ref
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.resources import Resources
from apiary_coordinator.round.aggregation import rule_state, sent_model
from apiary_coordinator.round.collector import clear_spools, intact, spool_path
from apiary_coordinator.round.runner import RoundContext, RoundRunner
from apiary_coordinator.round.server_state import ClosedRound, ServerState
from apiary_coordinator.run.ancestors import Ancestors
from apiary_coordinator.run.announcer import Announcer
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.current_model import Bar, CurrentModel, offer_model, takes_place
from apiary_coordinator.run.history import RunHistory
from apiary_coordinator.run.plan_schedule import plan_of
from apiary_coordinator.worker import Lane

log = logging.getLogger(__name__)

Stage = Literal["building", "waiting", "round", "finishing", "parting", "done"]
_LOG_EVERY_S: Final = 10.0
_COUNT_EVERY_S: Final = 0.25
"""While there are too few nodes, they are counted so often: each turn would make thousands that come slow."""
_RETRY_S: Final = 5.0
"""A step that the disk refused is tried again after this pause: neither the log nor the disk is flooded."""
_MOST_SETTLES: Final = 10
"""So many pauses for newcomers at most: in a fleet without certificates names cost nothing."""
_PARTING_S: Final = 60.0
"""The broker may take this long to receive the end of the run: longer than a dead link goes unnoticed."""


class Run:
    """One run, from its first start to its last message. Called on the loop only.

    The worker of `resources` puts each job into `lane`.
    """

    def __init__(
        self,
        assignment: Assignment,
        resources: Resources,
        lane: Lane,
        *,
        roster: Roster,
        epoch: str,
        after_run: Callable[[Path], object],
    ):
        self.name = assignment.run
        self.lane = lane
        self.stage: Stage = "building"
        self.runner: RoundRunner | None = None
        """Of the round that is under way, if any."""
        self.exported: ExportedModel | None = None
        self.summary: dict[str, Any] = {}
        """The run's result; empty where it ended without a model."""
        self._assignment = assignment
        self._settings = assignment.settings
        self._builder = assignment.builder
        self._chain = strategies.load(self._settings.run)
        self._resources = resources
        self._journal = resources.storage.journal
        self._worker = resources.worker
        self._clock = resources.clocks.monotonic
        self._roster = roster
        self._after_run = after_run
        self._ancestors = Ancestors(resources.storage, self._settings.coordinator.runs_dir)
        self._current = CurrentModel(self._journal)
        self._models = Checkpoints(self.name, resources.storage.blobs)
        self._announcer = Announcer(
            self.name, self._settings.run, outlet=resources.outgoing.outlet, epoch=epoch
        )
        results = partial(self._journal.results, self.name)
        self.history = RunHistory(self.name, assignment.created, self._settings, results)
        self.history.stop_requested = assignment.stop
        self.rests = Rests()
        """Nodes that declined a round of this run, and are not drawn again at once."""
        self._server: ServerState | None = None
        self._capped: set[NodeId] = set()
        """Nodes that are known to count for less than they report."""
        self._settled = False
        """Since this start of the coordinator no newcomer has come for a while: the fleet is here."""
        self._logged = (-_LOG_EVERY_S, "")
        self._newcomer_at = self._clock()
        self._came: set[NodeId] = set()
        self._enough_at: float | None = None
        """When enough nodes were ready for the first time."""
        self._count_at = 0.0
        self._resuming = False
        """A round is open, and is not under way yet: its model is evaluated, its updates are read."""
        self._undecided = False
        """What follows the last round could not be settled yet: the disk refused it."""
        self._part_at = 0.0
        self._turn_at = 0.0

    @property
    def demands(self) -> Demands:
        """What the next round needs of a node; without labels before the model is there."""
        run = self._settings.run
        plan = self._chain.plan(run.plan)
        return Demands.of(run, plan, self.exported.labels if self.exported is not None else ())

    def start(self) -> None:
        """Begin to build, or with what was built before."""
        exported, stop = self._assignment.exported, self.history.stop_requested
        rows = self._journal.rounds(self.name)
        self._resuming = bool(rows) and rows[-1].result is None
        if exported is None and stop is not None:
            self.give_up("stopped", stop)
        elif exported is not None and self._models.whole(exported):
            self._built(exported)
        else:
            ancestor = self._ancestors.find(self._settings.run)
            begins = "from scratch" if ancestor is None else f"with the model of {ancestor.name}"
            log.info("run=%s building the model recipe=%s %s", self.name, self._settings.run.recipe, begins)
            self._worker.submit(partial(self._build, ancestor), self._built)

    def tick(self) -> None:
        """Time has passed. Raises StoreError, and then does nothing for a while."""
        now = self._clock()
        if now < self._turn_at:
            return
        try:
            if self.runner is not None:
                self.runner.tick(now)
            elif self.stage == "waiting" and self._undecided:
                self._next()
            elif self.stage == "waiting":
                self._try_open(now)
            elif self.stage == "parting":
                self._part(now)
        except StoreError:
            self._turn_at = now + _RETRY_S
            raise

    def newcomer(self, node: NodeId, now: float) -> None:
        """A node has just come: the first round waits a moment for others, once for each."""
        if node not in self._came:
            self._came.add(node)
            self._newcomer_at = now

    def notice(self, node: NodeId) -> Notice | None:
        """What is current, for one node, without labels between rounds; None while a round is being resumed:
        the node may be training for it.
        """
        if self.runner is not None:
            return self._announcer.notice(self.runner, node)
        if self._resuming:
            return None
        return Notice()

    def stop(self, why: str) -> None:
        """Come to an end early. Raises RequestRefused where the run is over in any case, StoreError."""
        if self.stage in ("finishing", "parting", "done"):
            raise RequestRefused(f"run {self.name} is being finished already: {self.history.stop}")
        if self.history.stop_requested is not None:
            return
        self._journal.request_stop(self.name, why)
        self.history.stop_requested = why
        log.info("run=%s is to stop: %s", self.name, why)
        match self.stage:
            case "building" if self.exported is None and self._assignment.exported is None:
                self.give_up("stopped", why)
            case "waiting":
                self._next()
            case "round" if self.runner is not None:
                self.runner.abandon(why)
            case _:
                pass  # the first model is being evaluated: what follows calls why_stop

    # -- building --------------------------------------------------------------------------------------

    def _build(self, ancestor: Ancestor | None) -> ExportedModel:
        """Worker."""
        if ancestor is None:
            return self._builder.build()
        return self._builder.build(ancestor, self._ancestors.weights(ancestor))

    def _built(self, exported: ExportedModel) -> None:
        self.exported = exported
        self.history.labels = exported.labels
        self._journal.set_exported(self.name, exported.model_dump_json())
        rows = self._journal.rounds(self.name)
        self.history.resume()
        first = Digest(exported.initial.digest)
        model = next((row.model for row in reversed(rows) if row.model), first)
        blobs, weights = self._resources.storage.blobs, self._models.weights(model)
        kept, ref = next((row.state for row in reversed(rows) if row.state), None), model_ref(blobs, model)
        self._server = ServerState(
            exported,
            self._builder.manifest(exported),
            weights,
            ref,
            kept,
            sent_model(self._chain, blobs, rule_state(blobs, kept), weights, ref),
        )
        evaluate = partial(self._builder.evaluate, exported, self._models.weights(first))
        self._worker.submit(evaluate, self._evaluated)

    def _evaluated(self, evaluation: Evaluation) -> None:
        if self.stage != "building":
            return  # a full disk came in between, and the resumed round is under way
        self.history.initial = {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
        self._know_ancestor(evaluation.accuracy)
        self.history.begin()
        which = "untrained" if self.history.ancestor is None else "start"
        log.info("run=%s the %s model has accuracy=%.1f%%", self.name, which, 100 * evaluation.accuracy)
        rows = self._journal.rounds(self.name)
        row = rows[-1] if rows and rows[-1].result is None else None
        state_dir = self._settings.coordinator.state_dir
        spool = spool_path(state_dir, self.name, row.number) if row else None
        clear_spools(state_dir, spool)
        if row is not None and spool is not None:
            accepted = self._journal.accepted(self.name, row.number)
            log.info("run=%s going on in round=%d updates=%d", self.name, row.number, len(accepted))
            self._worker.submit(partial(intact, spool, accepted), partial(self._resume, row, accepted))
        else:
            self._newcomer_at = self._clock()
            self._next()

    def _know_ancestor(self, accuracy: float) -> None:
        """How good the model that the run began with is on this run's pictures. Raises StoreError."""
        exported = self.exported
        if exported is None or exported.ancestor is None:
            return
        # As results are rounded: a run that only keeps its level is not below it by the seventh digit.
        ancestor = exported.ancestor.model_copy(update={"accuracy_here": round(accuracy, 6)})
        if ancestor != exported.ancestor:
            self.exported = exported.model_copy(update={"ancestor": ancestor})
            self._journal.set_exported(self.name, self.exported.model_dump_json())
            for what, labels in (("new", ancestor.added), ("not trained any more", ancestor.dropped)):
                if labels:
                    log.info("run=%s labels %s: %s", self.name, what, some(labels))
        self.history.ancestor = ancestor

    def _resume(self, row: RoundRow, accepted: list[AcceptedRow], whole: set[NodeId]) -> None:
        self._begin(RoundRunner.resume(self._context(), row, accepted, whole, self._clock()))
        self._catch_up()

    def _catch_up(self) -> None:
        """Handle what came while the round was being resumed: nodes may not send it again."""
        runner, roster = self.runner, self._roster
        if runner is None:
            return
        with suppress(StoreError):  # it is decided; what could not be written is tried again with each tick
            if self.history.stop_requested is not None:
                runner.abandon(self.history.stop_requested)
        for node in runner.round.awaited:
            if node in roster:
                with suppress(StoreError):
                    runner.node_status(node, roster[node].status, roster, self._clock())

    # -- rounds ----------------------------------------------------------------------------------------

    def _try_open(self, now: float) -> None:
        if now < self._count_at:
            return
        run, roster = self._settings.run, self._roster
        found = muster(roster, self.demands, self.rests, now)
        if found.waits_for(run.min_nodes, self._chain.least_updates):
            self._count_at = now + _COUNT_EVERY_S
            self._log(found.describe(run, roster), now)
            return
        if self._enough_at is None:
            self._enough_at = now
        waits = now - self._enough_at < _MOST_SETTLES * run.settle_s
        if waits and now - self._newcomer_at < run.settle_s and not self._settled:
            return
        self._settled = True
        runner = RoundRunner.open(
            self._context(),
            found.ready,
            self._chain.plan(plan_of(run, self.history.closed)),
            number=self.history.next_number,
            recent=list(self.history.paces),
            last_norm=self.history.last_norm,
            roster=roster,
            now=now,
        )
        self._begin(runner)

    def _context(self) -> RoundContext:
        assert self._server is not None  # noqa: S101 - the stage says so
        return RoundContext(
            self.name,
            self._settings,
            self._builder,
            self._server,
            self._resources,
            self,
            self.rests,
            self.history.loss_before,
        )

    def _begin(self, runner: RoundRunner) -> None:
        self.runner = runner
        self.stage, self._resuming = "round", False
        size, models = len(runner.round.cohort), self._resources.outgoing.model_server
        models.serve(runner.server.training_files, size)
        log.info(
            "run=%s round=%d opened cohort=%d deadline_s=%.0f uploads=%d",
            self.name,
            runner.round.number,
            size,
            runner.terms.deadline_s,
            runner.max_uploads,
        )
        models.flow.bytes_sent = 0
        self.announce()
        try:
            runner.begin(self._clock())
        except StoreError as e:
            log.error("%s; trying again", e)  # what was not done stays first in line for the next tick

    def announce(self) -> None:
        """Publish the round as it stands now."""
        if self.runner is not None:
            self._announcer.announce(self.runner)

    def invite(self, node: NodeId) -> None:
        """Notify a node that it belongs to the cohort."""
        if self.runner is not None:
            self._announcer.invite(self.runner, node)

    def capped(self, node: NodeId, samples: int, cap: int, *, reported: int) -> None:
        """Log once a node that its updates count for less than it trained on, or than it claims."""
        if node in self._capped:
            return
        self._capped.add(node)
        where = f"run={self.name} node={node} counts for {cap} samples (run.max_weight_ratio)"
        if samples > reported:
            log.warning("%s: it claims %d, its status reported %d", where, samples, reported)
        else:
            log.info("%s, not for all %d that it trained on: its cohort has fewer", where, samples)

    def round_closed(self, closed: ClosedRound) -> None:
        """Journal and publish how the round ended. Raises StoreError: then nothing was done."""
        runner, server, models = self.runner, self._server, self._resources.outgoing.model_server
        assert runner is not None and server is not None  # noqa: S101 - the stage says so
        result = closed.result.model_copy(update={"bytes_down": models.flow.bytes_sent})
        entry = {**result.model_dump(mode="json", exclude={"v"}), **closed.details}
        model, strategy_state = server.model, server.strategy_state
        if closed.made is not None:
            model, strategy_state = closed.made.model, closed.made.strategy_state
        self._journal.close_round(self.name, result.round, entry, Digest(model.digest), strategy_state)
        # Up to here a full disk changes nothing, and all of it is tried again. What follows waits for a tick.
        server.model, server.strategy_state = model, strategy_state
        if closed.made is not None:
            server.weights, server.sent = closed.made.weights, closed.made.sent
        self.runner = None
        self.stage, self._undecided = "waiting", True
        if result.state == "failed":
            # Nodes that still train for it stop then: finishing and publishing may take hours.
            self._announcer.announce(runner)
        self._announcer.forget()
        runner.collector.close(remove=True)
        self.history.add(entry)
        try:
            self._announcer.result(result)
        except StoreError as e:
            log.error("%s; it is published with the next round", e)

    def _offer(self, *, over: bool) -> None:
        """Have the fleet predict with the best model so far, where it is no worse than the one in place.

        Raises StoreError, and may be called again.
        """
        best, place = self.history.best, self._current
        if best is None or self.exported is None:
            return
        before = place.read()
        if before is not None and before.run != self.name:
            ancestor = self.exported.ancestor
            same = set(json.loads(before.exported)["labels"]) == set(self.exported.labels)
            bar = Bar(ancestor.accuracy_here if ancestor else None, before.accuracy if same else None)
            if not takes_place(best, bar, over=over):
                return
        elif before is not None and before.round == best.round and before.remembered:
            return
        found = place.offer(self.name, best.round)
        if found is not None:
            offer_model(self._resources, found, len(self._roster))

    def _prune(self, server: ServerState) -> None:
        """Keep what something may still need: the first model, the best, the newest, and what the newest
        needs to go on. Raises StoreError.
        """
        best = self.history.best
        keep = {server.model.digest, server.train_on.digest, server.exported.initial.digest}
        if server.strategy_state is not None:
            keep.add(server.strategy_state)
        if best is not None:
            keep.add(self.history.model_of(best.round))
        made = ("model", "strategy_state", "sends_next")
        self._models.prune((entry.get(key) for entry in self.history.rounds for key in made), keep)

    # -- the end ---------------------------------------------------------------------------------------

    def _next(self) -> None:
        """A round or the end: what follows. Raises StoreError, and is settled with a later tick then."""
        self.stage, self._undecided = "waiting", True
        if self._server is not None:
            self._offer(over=False)
            self._prune(self._server)
        self._settle()
        self._undecided = False

    def _settle(self) -> None:
        stop = self.history.why_stop()
        if stop is None:
            return
        best = self.history.best
        if best is None and self.history.stop_requested is not None:
            self._begin_parting()
            return
        if best is None:
            last = self.history.rounds[-1]["why"] if self.history.rounds else "no round was opened"
            self.history.stop = f"{stop}; the last: {last}"
            with suppress(StoreError):  # the journal says it, too
                self.history.end()
            self._journal.end_run(self.name, "failed", self.history.stop)
            raise RunFailed(f"run {self.name} ended without a model: {self.history.stop}")
        self._offer(over=True)
        model = self.history.model_of(best.round)
        assert self.exported is not None  # noqa: S101 - rounds were closed
        weights = self._models.weights(Digest(model))
        log.info("run=%s %s; finishing with round=%d", self.name, stop, best.round)
        self.stage = "finishing"
        finish = partial(self._builder.finish, self.exported, weights, self.history.folder)
        self._worker.submit(finish, partial(self._finished, model))

    def _finished(self, model: str, extra: dict[str, Any]) -> None:
        seconds = self._resources.clocks.wall() - self._assignment.created
        self.summary = self.history.finish(model, seconds, extra)
        self._worker.submit(self._follow_up, lambda _: self._begin_parting())

    def _follow_up(self) -> None:
        """Worker: report and publish. The model is written: nothing that fails here fails the run."""
        try:
            self._after_run(self.history.folder)
        except Exception:
            log.exception("run=%s is finished, but what follows it failed", self.name)

    def _begin_parting(self) -> None:
        assert self._server is not None  # noqa: S101 - rounds were closed
        self._announcer.finished(self._server, self.history.next_number - 1)
        self._part_at = self._clock() + _PARTING_S
        self.stage = "parting"

    def _part(self, now: float) -> None:
        """End the run once the broker has the last messages: nobody answers after this coordinator.

        A node whose receipt was lost learns by them that its update is not waited for. Journaled after they
        were published: a coordinator that is killed between the two publishes them once more.
        """
        bus, models = self._resources.outgoing.bus, self._resources.outgoing.model_server
        if (bus.connected and bus.backlog == 0 and models.idle) or now >= self._part_at:
            state = "finished" if self.history.stop_requested is None else "stopped"
            self.history.end()
            self._journal.end_run(self.name, state, self.history.stop or "")
            self.stage = "done"

    def give_up(self, state: str, why: str) -> None:
        """End at once and without a model; what the worker still makes is dropped. Raises StoreError."""
        self._journal.end_run(self.name, state, why)
        self.lane.left, self._resuming = True, False
        self.history.stop = why
        if self.history.rounds:
            with suppress(StoreError):
                self.history.end()
        if self.runner is not None:
            self.runner.collector.close(remove=True)
            self.runner = None
        if self._server is not None:
            self._announcer.finished(self._server, max(0, self.history.next_number - 1))
        self.stage = "done"

    # -- small parts -----------------------------------------------------------------------------------

    def _log(self, what: str, now: float) -> None:
        if what != self._logged[1] or now - self._logged[0] >= _LOG_EVERY_S:
            self._logged = (now, what)
            log.info("run=%s %s", self.name, what)
