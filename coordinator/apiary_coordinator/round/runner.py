"""One round in progress: performs what the state table commands; each step is journaled, then published."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, assert_never

from apiary.errors import StoreError
from apiary.settings import RunSettings, Settings
from apiary.tensors import Weights
from apiary.wire import NodeId, blob
from apiary.wire.messages import Bounds, NodeStatus, Plan, RoundResult
from apiary_coordinator import strategies
from apiary_coordinator.fleet.demands import Demands
from apiary_coordinator.fleet.rests import Rests
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.fleet.selection import Draw, draw, quorum_of
from apiary_coordinator.journal import AcceptedRow, RoundRow
from apiary_coordinator.model.builder import ModelBuilder
from apiary_coordinator.resources import Resources
from apiary_coordinator.round import state as table
from apiary_coordinator.round.aggregation import Aggregation, EvaluatedModel, NewWeights
from apiary_coordinator.round.collector import Collector, spool_path
from apiary_coordinator.round.deadline import deadline_s, longest_s
from apiary_coordinator.round.server_state import ClosedRound, RoundTerms, ServerState
from apiary_coordinator.round.state import Phase, Round
from apiary_coordinator.updates.capacity import most_uploads
from apiary_coordinator.updates.exact_sum import grid_bits
from apiary_coordinator.updates.limits import expected_samples, norm_bound, weight_cap
from apiary_coordinator.updates.spool import Spool
from apiary_coordinator.updates.uploads import Uploads

log = logging.getLogger(__name__)

_LEFT: Final = {"lost": "lost the connection", "paused": "paused"}


class RoundOwner(Protocol):
    """The run that a round belongs to."""

    def announce(self) -> None:
        """Publish the round as it stands now."""

    def invite(self, node: NodeId) -> None:
        """Notify a node that it belongs to the cohort."""

    def capped(self, node: NodeId, samples: int, cap: int, *, reported: int) -> None:
        """An update of so many samples counts for `cap` of them; the node's status `reported` as many."""

    def round_closed(self, closed: ClosedRound) -> None:
        """The round is over. Raises StoreError, and is called again then."""


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What every round of a run works with."""

    run: str
    settings: Settings
    builder: ModelBuilder
    server: ServerState
    resources: Resources
    owner: RoundOwner
    rests: Rests
    loss_before: float | None
    """The held-out loss that a rise is measured from; None where none is known."""


class RoundRunner:
    """The round's state and the collector of its updates. Made by `open` or `resume`."""

    def __init__(self, context: RoundContext, round_: Round, terms: RoundTerms, shares: dict[str, Any]):
        self.round = round_
        self.terms = terms
        self.server = context.server
        self.again: set[NodeId] = set()
        """Nodes whose update had its receipt and was damaged since: they are to train once more."""
        self._settings = context.settings
        self._resources = context.resources
        self._journal = context.resources.storage.journal
        self._clock = context.resources.clocks.monotonic
        self._owner = context.owner
        self._rests = context.rests
        self._demands = Demands.of(self._settings.run, terms.plan, context.server.exported.labels)
        self._shares = shares
        self._opened_at = self._clock()
        self._resumed: list[AcceptedRow] = []
        self._new_weights: NewWeights | None = None
        self._evaluated: EvaluatedModel | None = None
        self._todo: deque[Callable[[], None]] = deque()
        self._unjournaled = False
        self._counts_misses = True
        coordinator = self._settings.coordinator
        path = spool_path(coordinator.state_dir, round_.run, round_.number)
        self.collector = Collector(
            terms,
            self,
            self._resources,
            spool=Spool(path, terms.bounds.max_bytes, sync=coordinator.sync),
            uploads=Uploads(self.max_uploads, coordinator.upload_idle_s),
            summed=strategies.load(self._settings.run).streams,
        )
        self._aggregation = Aggregation(
            self._settings.run,
            context.server,
            self.collector.counted,
            builder=context.builder,
            blobs=context.resources.storage.blobs,
            loss_before=context.loss_before,
        )

    @classmethod
    def open(
        cls,
        context: RoundContext,
        candidates: list[NodeId],
        plan: Plan,
        *,
        number: int,
        recent: list[list[float]],
        last_norm: float | None,
        roster: Roster,
        now: float,
    ) -> RoundRunner:
        """Draw a cohort, fix the bounds, and journal them with the plan. Raises StoreError.

        `last_norm` is the median norm of the last closed round's updates, None where there is none.
        """
        run = context.settings.run
        drawn = draw(candidates, run, number, roster.groups(run.per_tag))
        bounds = _bounds(context, plan, drawn, roster, last_norm)
        terms = RoundTerms(
            plan=plan,
            bounds=bounds,
            deadline_s=deadline_s(recent, fixed=run.deadline_s, first=run.first_deadline_s),
            shapes=context.server.manifest.update_shapes,
            bits=grid_bits(bounds, drawn.goal),
        )
        round_ = _fresh(context.run, run, number, drawn, now + terms.deadline_s)
        labels = frozenset(context.server.exported.labels)
        runner = cls(context, round_, terms, {n: _share(roster[n].status, labels) for n in drawn.cohort})
        try:
            runner._journal_round(sealed=False)
        except StoreError:
            runner.collector.close(remove=False)  # it is opened anew, and no descriptor may stay each time
            raise
        return runner

    @classmethod
    def resume(
        cls,
        context: RoundContext,
        row: RoundRow,
        rows: list[AcceptedRow],
        whole: Container[NodeId],
        now: float,
    ) -> RoundRunner:
        """Resume a round that the journal holds as open, with those accepted `rows` that are `whole`.

        Raises StoreError.
        """
        o = row.opened
        plan, bounds = Plan.model_validate(o["plan"]), Bounds.model_validate(o["bounds"])
        # The version before journaled no bound that follows from the model.
        max_bytes = _most_bytes(bounds, plan, context.server)
        terms = RoundTerms(
            plan=plan,
            bounds=bounds.model_copy(update={"max_bytes": max_bytes}),
            deadline_s=o["deadline_s"],
            shapes=context.server.manifest.update_shapes,
            bits=o["bits"],
        )
        run, drawn = context.run, Draw(tuple(o["cohort"]), tuple(o["reserve"]), o["goal"])
        round_ = _fresh(run, context.settings.run, row.number, drawn, now + terms.deadline_s)
        runner = cls(context, round_, terms, o["shares"])
        runner._resumed = [r for r in rows if r.node in whole]
        runner.collector.restore(runner._resumed)
        damaged = [r.node for r in rows if r.node not in whole]
        runner.again = {*o.get("again", ()), *damaged} - {r.node for r in runner._resumed}
        accepted = {r.node: r.contributor for r in runner._resumed}
        refused = runner._journal.rejected(run, row.number)
        rejected = {node: why for node, why in refused.items() if node not in accepted}
        phase = Phase.COLLECTING if accepted else Phase.OPEN
        runner.round = replace(round_, phase=phase, accepted=accepted, rejected=rejected)
        if o["sealed"] and not damaged:
            # It had begun to aggregate: exactly these updates count, even if more could come now.
            runner.round = replace(runner.round, goal=len(accepted), deadline_at=now)
            runner._counts_misses = False
        elif o["sealed"]:
            # The same updates, and no others: those that were damaged are waited for once more.
            chosen = tuple(r.node for r in rows)
            runner.round = replace(runner.round, cohort=chosen, reserve=(), goal=len(chosen))
        if damaged:
            try:
                runner._strike(damaged)
            except StoreError:
                runner.collector.close(remove=False)
                raise
        return runner

    def _strike(self, damaged: list[NodeId]) -> None:
        """Take back journaled updates whose bytes do not hold; their nodes are journaled first."""
        self._journal_round(sealed=False)
        for node in damaged:
            log.warning("round=%d node=%s its update in the spool is damaged", self.round.number, node)
            self._journal.forget(self.round.run, self.round.number, node)

    @property
    def max_uploads(self) -> int:
        """How many updates may be on their way at once."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        receive_maximum = self._resources.outgoing.bus.limits.receive_maximum
        settings = self._settings.coordinator
        return settings.max_uploads or most_uploads(
            self.server.train_on.bytes,
            receive_maximum,
            memory,
            queue_messages=settings.queue_messages,
            queue_bytes=settings.queue_bytes,
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the round was opened, or resumed."""
        return self._clock() - self._opened_at

    def begin(self, now: float) -> None:
        """Start; a resumed round may already have all it needs. Raises StoreError."""
        for node in sorted(self.again):
            self._owner.invite(node)
        if self._resumed:
            self.tick(now)

    def ask_again(self, node: NodeId) -> None:
        """Invite a node that gave up this round and has forgotten that."""
        self._rests.took_part(node)
        self._handle(table.AskedAgain(node))

    def abandon(self, why: str) -> None:
        """Give the round up where it still collects; one that aggregates comes to its end by itself."""
        self._handle(table.Abandoned(why))

    def accepted(self, row: AcceptedRow) -> None:
        """An update was journaled: it counts. Raises StoreError."""
        self.again.discard(row.node)
        self._rests.took_part(row.node)
        self._handle(table.UpdateAccepted(row.node, row.contributor))
        self._shorten()

    def _shorten(self) -> None:
        """Wait no longer than the fleet's pace explains, once a quorum of three or more shows it.

        A first round has hours: a node that is there and sends nothing would take them all.
        """
        round_ = self.round
        enough = max(3, round_.quorum)
        if self._settings.run.deadline_s is None and round_.collecting and len(round_.accepted) >= enough:
            longest = self._opened_at + longest_s([c.seconds for c in round_.accepted.values()])
            if longest < round_.deadline_at:
                self.round = replace(round_, deadline_at=longest)

    def rejected(self, node: NodeId, why: str) -> None:
        """An update was refused. Raises StoreError."""
        self._handle(table.UpdateRejected(node, why))

    def capped(self, node: NodeId, samples: int) -> None:
        """An update of so many samples counts for the round's cap."""
        reported = self._shares.get(node, {}).get("samples", 0)
        self._owner.capped(node, samples, self.terms.bounds.max_samples, reported=reported)

    def tick(self, now: float) -> None:
        """Time has passed. Raises StoreError."""
        self._work_off()  # what a full disk left over comes before the deadline does
        before = self.round
        self._handle(table.RoundTick())
        if self.round.collecting:
            self.collector.tick(now)
        elif before.collecting and before.accepted and now >= before.deadline_at and self._counts_misses:
            # Where nobody made it, the deadline is at fault.
            for node in before.awaited:
                if node not in before.lost:
                    self._rests.missed(node, self.terms.deadline_s, now)

    def node_status(self, node: NodeId, status: NodeStatus, roster: Roster, now: float) -> None:
        """A node's status as far as it concerns this round. Raises StoreError."""
        here = (status.run, status.round) == (self.round.run, self.round.number)
        if status.declined and here:
            why = status.why or status.state
            if self.round.awaits(node):
                self._rests.declined(node, status, why, now)
            self._handle(table.Left(node, why, final=True))
            self.collector.left(node, now)
        elif status.state in ("lost", "paused"):
            self._handle(table.Left(node, status.why or _LEFT[status.state], final=False))
        elif node in roster.silent:
            self._handle(table.Left(node, roster.silent[node], final=False))
        elif (
            node in roster
            and not status.declined
            and roster.unfit(node, self._demands) is None
            and self._rests.resting(node, status, now) is None
        ):
            self._shares.setdefault(node, _share(status, self._demands.labels))
            # With the next tick: a thousand that come in one turn are journaled once, then invited.
            self._take(table.Joined(node))

    # -- commands --------------------------------------------------------------------------------------

    def _handle(self, event: table.Event) -> None:
        self._take(event)
        self._work_off()

    def _take(self, event: table.Event) -> None:
        """Put an event through the state table, and what it commands into the queue."""
        before = self.round
        self.round, commands = table.handle(self.round, event, self._clock())
        if self.round.cohort is not before.cohort:
            self._unjournaled = True
            self._todo.append(self._journal_cohort)
        self._todo += [partial(self._perform, command) for command in commands]

    def _work_off(self) -> None:
        """Perform what is due, in order; what a full disk refuses stays first in line for the next tick."""
        while self._todo:
            self._todo[0]()
            self._todo.popleft()

    def _perform(self, command: table.Command) -> None:
        match command:
            case table.Announce():
                self._owner.announce()
            case table.Invite(node):
                log.info("round=%d node=%s invited to a free place", self.round.number, node)
                self._owner.invite(node)
            case table.Aggregate():
                self._journal_round(sealed=True)
                aggregate = partial(self._aggregation.aggregate, len(self.round.accepted))
                self._resources.worker.submit(aggregate, self._on_aggregated)
            case table.Evaluate():
                assert self._new_weights is not None  # noqa: S101 - Aggregated came before
                evaluate = partial(self._aggregation.evaluate, self._new_weights)
                self._resources.worker.submit(evaluate, self._on_evaluated)
            case table.Close():
                self._close()
            case table.Fail(why):
                result = self._result("failed", why, self._node_metrics())
                self._owner.round_closed(ClosedRound(result, {"shares": self._shares}))
            case _:
                assert_never(command)

    def _on_aggregated(self, new: NewWeights) -> None:
        self._new_weights = new
        self._handle(table.Aggregated())

    def _on_evaluated(self, evaluated: EvaluatedModel) -> None:
        self._new_weights, self._evaluated = None, evaluated
        for node, why in evaluated.left_out.items():
            log.warning("round=%d node=%s is left out: %s", self.round.number, node, why)
        self._handle(table.Evaluated())

    def _close(self) -> None:
        assert self._evaluated is not None  # noqa: S101 - the table says so
        metrics, shown, made = (
            self._node_metrics(),
            self._evaluated.evaluation.to_json(),
            self._evaluated.made,
        )
        details = {
            "shares": self._shares,
            "node_metrics": metrics,
            "median_norm": made.median_norm,
            "strategy_state": made.strategy_state,
            "sends_next": made.sent.model.digest if made.sent is not None else None,
            "bounds": self.terms.bounds.model_dump(mode="json"),
            "plan": self.terms.plan.model_dump(mode="json", include={"epochs", "learning_rate"}),
            "per_class": shown["classes"],
            "confusion": shown["confusion"],
        }
        result = self._result("closed", None, metrics)
        self._owner.round_closed(ClosedRound(result, details, made))
        # A round is part of cycles: the model would stay until their collector comes by.
        self._evaluated = None

    def _result(self, state: str, why: str | None, metrics: dict[str, Any]) -> RoundResult:
        evaluated = self._evaluated
        left_out = evaluated.left_out if evaluated else {}
        counted = {n: c for n, c in sorted(self.round.accepted.items()) if n not in left_out}
        return RoundResult.model_validate(
            {
                "run": self.round.run,
                "round": self.round.number,
                "state": state,
                "accuracy": evaluated.evaluation.accuracy if evaluated else None,
                "tested_on": evaluated.evaluation.count if evaluated else None,
                "loss": evaluated.evaluation.loss if evaluated else None,
                "n_contributors": len(counted),
                "n_rejected": len(self.round.rejected),
                "n_missing": len(self.round.missing),
                "n_samples": sum(c.samples for c in counted.values()),
                "contributors": counted,
                "rejected": {n: w[:500] for n, w in self.round.rejected.items()},
                "missing": {n: w[:500] for n, w in self.round.missing.items()},
                "left_out": left_out or None,
                "node_accuracy": _mean(
                    [
                        m["accuracy"]
                        for node, m in metrics.items()
                        if m.get("accuracy") is not None and node not in left_out
                    ]
                ),
                "bytes_up": self.collector.bytes_up,
                "seconds": round(self.elapsed_s, 3),
                "model": evaluated.made.model.digest if evaluated else None,
                "why": why,
            }
        )

    def _node_metrics(self) -> dict[str, Any]:
        """What the accepted nodes reported of their training."""
        rows = self._journal.accepted(self.round.run, self.round.number)
        return {r.node: r.offer.metrics.model_dump(mode="json") for r in rows}

    def _journal_cohort(self) -> None:
        """The cohort as it is now: what stands in line behind may have been journaled with it."""
        if self._unjournaled:
            self._journal_round(sealed=False)
            self._unjournaled = False

    def _journal_round(self, *, sealed: bool) -> None:
        self._journal.open_round(
            self.round.run,
            self.round.number,
            {
                "cohort": list(self.round.cohort),
                "reserve": list(self.round.reserve),
                "goal": self.round.goal,
                "plan": self.terms.plan.model_dump(mode="json"),
                "bounds": self.terms.bounds.model_dump(mode="json"),
                "bits": self.terms.bits,
                "deadline_s": self.terms.deadline_s,
                "shares": self._shares,
                "sealed": sealed,
                "again": sorted(self.again),
            },
        )


def _fresh(name: str, run: RunSettings, number: int, drawn: Draw, deadline_at: float) -> Round:
    return Round(
        run=name,
        number=number,
        cohort=drawn.cohort,
        reserve=drawn.reserve,
        goal=drawn.goal,
        quorum=quorum_of(run, drawn.goal, strategies.load(run).least_updates),
        deadline_at=deadline_at,
        lost_grace_s=run.lost_grace_s,
    )


def _bounds(
    context: RoundContext, plan: Plan, drawn: Draw, roster: Roster, last_norm: float | None
) -> Bounds:
    """What an update of this cohort may hold: the settings' bounds, narrowed by what the round knows."""
    run, server = context.settings.run, context.server
    expected = [expected_samples(roster[n].status.samples or 1, plan.validation_share) for n in drawn.cohort]
    cap = weight_cap(expected, drawn.goal, run.max_weight_ratio)
    return run.bounds.model_copy(
        update={
            "max_samples": min(run.bounds.max_samples, cap),
            "max_norm": norm_bound(last_norm, _norm_of_parts(server), run.clip, run.bounds.max_norm),
            "max_bytes": _most_bytes(run.bounds, plan, server),
        }
    )


def _norm_of_parts(server: ServerState) -> float:
    """Of what an update holds."""
    sent = server.manifest.update_shapes
    return Weights({name: t for name, t in server.train_from.items() if name in sent}).norm()


def _most_bytes(bounds: Bounds, plan: Plan, server: ServerState) -> int:
    """What one update may have at most: as an honest one of this model and codec, and within the setting."""
    return min(bounds.max_bytes, blob.most_bytes(server.manifest.update_shapes, plan.codec))


def _share(status: NodeStatus, labels: Collection[str]) -> dict[str, Any]:
    """What a round's record keeps of a node: of its labels those of the model, which are bounded."""
    runtime = status.runtimes[0] if status.runtimes else ""
    known = {label: n for label, n in (status.labels or {}).items() if label in labels}
    return {"samples": status.samples or 0, "labels": known, "runtime": runtime}


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
