"""One round in progress: performs what the state table commands, and journals each step before it is told."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, assert_never

from apiary.errors import StoreError
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.messages import BlobRef, Bounds, NodeStatus, Offer, Plan, RoundResult
from apiary_coordinator.fleet.roster import Draw, Roster, draw
from apiary_coordinator.journal import AcceptedRow, RoundRow
from apiary_coordinator.model.builder import Evaluation
from apiary_coordinator.round import state as table
from apiary_coordinator.round.collector import Collector, Terms, spool_path
from apiary_coordinator.round.deadline import deadline_s
from apiary_coordinator.round.start import ClosedRound, Parts, strategy
from apiary_coordinator.round.state import Phase, Round
from apiary_coordinator.updates.capacity import most_uploads
from apiary_coordinator.updates.exact_sum import grid_bits
from apiary_coordinator.updates.spool import Spool
from apiary_coordinator.updates.uploads import Uploads

log = logging.getLogger(__name__)

_LEFT: Final = {"lost": "lost the connection", "paused": "paused"}


@dataclass(slots=True)
class RoundRunner:
    """The round's state, its collection of updates, and the shell around both."""

    parts: Parts
    round: Round
    plan: Plan
    bounds: Bounds
    deadline_s: float
    collection: Collector = field(init=False)
    again: set[NodeId] = field(default_factory=set)
    """Nodes whose update had its receipt and was damaged since: they are asked to train once more."""
    _opened_at: float = 0.0
    _resumed: list[AcceptedRow] = field(default_factory=list)
    _shares: dict[str, Any] = field(default_factory=dict)
    _next: tuple[Weights, Digest, Digest | None] | None = None
    _judgement: Evaluation | None = None
    _todo: deque[Callable[[], None]] = field(default_factory=deque)
    _unjournaled: bool = False

    @classmethod
    def open(
        cls,
        parts: Parts,
        candidates: list[NodeId],
        *,
        number: int,
        recent: list[list[float]],
        roster: Roster,
        now: float,
    ) -> RoundRunner:
        """Draw a cohort, fix plan and bounds, and journal them."""
        run = parts.settings.run
        drawn = draw(
            candidates,
            seed=run.seed,
            round_number=number,
            fraction=run.fraction,
            min_nodes=run.min_nodes,
            cohort_size=run.cohort_size,
            over_select=run.over_select,
            groups=roster.groups(run.per_tag),
        )
        samples = max((roster[n].status.samples or 1 for n in candidates), default=1)
        bounds = run.bounds.model_copy(
            # Room for a node whose folder grows meanwhile; the tighter the bound, the finer the sum's grid.
            update={"max_samples": min(run.bounds.max_samples, 2 ** math.ceil(math.log2(2 * samples)))}
        )
        plan = run.plan.model_copy(update={"seed": run.seed})
        plan = strategy(parts.settings).plan(plan, run.strategy_options)
        seconds = deadline_s(recent, fixed=run.deadline_s, first=run.first_deadline_s)
        live = cls(parts, _fresh(parts, number, drawn, seconds, now), plan, bounds, seconds)
        live._shares = {n: _share(roster[n].status) for n in drawn.cohort}
        live._collect(grid_bits(bounds, drawn.goal), now)
        try:
            live._journal(sealed=False)
        except StoreError:
            live.collection.close(remove=False)  # it is opened anew, and a descriptor must not stay each time
            raise
        return live

    @classmethod
    def resume(
        cls, parts: Parts, row: RoundRow, rows: list[AcceptedRow], whole: Container[NodeId], now: float
    ) -> RoundRunner:
        """Take up a round that the journal holds as open, with those accepted `rows` that are `whole`."""
        o = row.opened
        drawn = Draw(tuple(o["cohort"]), tuple(o["reserve"]), o["goal"])
        seconds = o["deadline_s"]
        live = cls(
            parts,
            _fresh(parts, row.number, drawn, seconds, now),
            Plan.model_validate(o["plan"]),
            Bounds.model_validate(o["bounds"]),
            seconds,
        )
        live._shares = o["shares"]
        live._collect(o["bits"], now)
        live._resumed = [r for r in rows if r.node in whole]
        live.collection.restore(live._resumed)
        damaged = [r.node for r in rows if r.node not in whole]
        live.again = {*o.get("again", ()), *damaged} - {r.node for r in live._resumed}
        accepted = {r.node: r.contributor for r in live._resumed}
        rejected = parts.journal.rejected(parts.run, row.number)
        phase = Phase.COLLECTING if accepted else Phase.OPEN
        live.round = replace(live.round, phase=phase, accepted=accepted, rejected=rejected)
        if o["sealed"] and not damaged:
            # It had begun to aggregate: exactly these updates count, even if more could come now.
            live.round = replace(live.round, goal=len(accepted), deadline_at=now)
        elif o["sealed"]:
            # The same updates, and no others: those that were damaged are waited for once more.
            chosen = tuple(r.node for r in rows)
            live.round = replace(live.round, cohort=chosen, reserve=(), goal=len(chosen))
        if damaged:
            try:
                live._strike(damaged)
            except StoreError:
                live.collection.close(remove=False)
                raise
        return live

    def _strike(self, damaged: list[NodeId]) -> None:
        """Take journaled updates back whose bytes do not hold; whose they are is journaled first."""
        self._journal(sealed=False)
        for node in damaged:
            log.warning("round=%d node=%s its update in the spool is damaged", self.round.number, node)
            self.parts.journal.forget(self.parts.run, self.round.number, node)

    @property
    def max_uploads(self) -> int:
        """How many updates may be on their way at once."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        derived = most_uploads(self.model.bytes, self.parts.limits().receive_maximum, memory)
        return self.parts.settings.coordinator.max_uploads or derived

    @property
    def model(self) -> BlobRef:
        """The model that this round starts from."""
        return self.parts.model

    @property
    def _asked(self) -> tuple[int, list[str]]:
        """What a node must have to be drawn: samples and tags."""
        return self.plan.min_samples, self.parts.settings.run.only

    def begin(self, now: float) -> None:
        """Start the clock; a resumed round may already have all it needs."""
        for node in sorted(self.again):
            self.parts.invite(node)
        if self._resumed:
            self.tick(now)

    def ask_again(self, node: NodeId) -> None:
        """Invite a node that gave up this round and has forgotten that."""
        self._handle(table.AskedAgain(node))

    def abandon(self, why: str) -> None:
        """Give the round up where it still collects; one that aggregates comes to its end by itself."""
        self._handle(table.Abandoned(why))

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._work_off()
        self._handle(table.RoundTick())
        if self.round.collecting:
            self.collection.tick(now)

    def node_status(self, node: NodeId, status: NodeStatus, roster: Roster, now: float) -> None:
        """A node's state as far as it touches this round."""
        here = (status.run, status.round) == (self.parts.run, self.round.number)
        if status.declined and here:
            self._handle(table.Left(node, status.why or status.state, final=True))
            self.collection.left(node, now)
        elif status.state in ("lost", "paused"):
            self._handle(table.Left(node, status.why or _LEFT[status.state], final=False))
        elif node in roster and not status.declined and roster[node].unfit(*self._asked) is None:
            self._shares.setdefault(node, _share(status))
            # With the next tick: a thousand that come in one turn are journaled once, then invited.
            self._take(table.Joined(node))

    # -- commands --------------------------------------------------------------------------------------

    def _handle(self, event: table.Event) -> None:
        self._take(event)
        self._work_off()

    def _take(self, event: table.Event) -> None:
        """What an event makes of the round, and what is then to be done."""
        before = self.round
        self.round, commands = table.handle(self.round, event, self.parts.clock())
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
                self.parts.announce()
            case table.Invite(node):
                log.info("round=%d node=%s invited to a free place", self.round.number, node)
                self.parts.invite(node)
            case table.Aggregate():
                self._journal(sealed=True)
                self.parts.worker.submit(self._aggregate, self._aggregated)
            case table.Evaluate():
                assert self._next is not None  # noqa: S101 - Aggregated came before
                evaluate = partial(self.parts.workshop.evaluate, self.parts.artefacts, self._next[0])
                self.parts.worker.submit(evaluate, self._evaluated)
            case table.Close():
                self._close()
            case table.Fail(why):
                result = self._result("failed", why, self._node_metrics())
                self.parts.closed(ClosedRound(result, {"shares": self._shares}))
            case _:
                assert_never(command)

    def _aggregate(self) -> tuple[Weights, Digest, Digest | None]:
        """Worker: the next model, on disk before anything speaks of it."""
        if (added := self.collection.sum.updates) != len(self.round.accepted):
            raise AssertionError(f"the sum holds {added} updates, {len(self.round.accepted)} were accepted")
        strat = strategy(self.parts.settings)
        state, weights = strat.apply(self.parts.state, self.parts.weights, self.collection.sum.mean())
        model = self.parts.blobs.put(blob.encode(weights))
        return weights, model, self.parts.blobs.put(blob.encode(state)) if len(state) else None

    def _accepted(self, row: AcceptedRow) -> None:
        self.again.discard(row.node)
        self._handle(table.UpdateAccepted(row.node, row.contributor))

    def _aggregated(self, made: tuple[Weights, Digest, Digest | None]) -> None:
        self._next = made
        self._handle(table.Aggregated())

    def _evaluated(self, judgement: Evaluation) -> None:
        self._judgement = judgement
        self._handle(table.Evaluated())

    def _close(self) -> None:
        assert self._next is not None and self._judgement is not None  # noqa: S101 - the table says so
        weights, model, state = self._next
        metrics = self._node_metrics()
        details = {"shares": self._shares, "node_metrics": metrics, **self._judgement.details}
        result = self._result("closed", None, metrics)
        self.parts.closed(ClosedRound(result, details, weights, model, state))
        # A round is part of cycles: the models would stay until their collector comes by.
        self._next = None
        self.parts = replace(self.parts, weights=Weights({}), state=Weights({}))

    def _result(self, state: str, why: str | None, metrics: dict[str, Any]) -> RoundResult:
        judged = self._judgement
        return RoundResult.model_validate(
            {
                "run": self.parts.run,
                "round": self.round.number,
                "state": state,
                "accuracy": judged.accuracy if judged else None,
                "loss": judged.loss if judged else None,
                "n_contributors": len(self.round.accepted),
                "n_rejected": len(self.round.rejected),
                "n_missing": len(self.round.missing),
                "n_samples": sum(c.samples for c in self.round.accepted.values()),
                "contributors": dict(sorted(self.round.accepted.items())),
                "rejected": {n: w[:500] for n, w in self.round.rejected.items()},
                "missing": {n: w[:500] for n, w in self.round.missing.items()},
                "node_accuracy": _mean(
                    [m["accuracy"] for m in metrics.values() if m.get("accuracy") is not None]
                ),
                "bytes_up": self.collection.bytes_up,
                "seconds": round(self.parts.clock() - self._opened_at, 3),
                "model": self._next[1] if self._next else None,
                "why": why,
            }
        )

    def _node_metrics(self) -> dict[str, Any]:
        """What the accepted nodes say of their training."""
        rows = self.parts.journal.accepted(self.parts.run, self.round.number)
        return {r.node: Offer.model_validate_json(r.offer).metrics.model_dump(mode="json") for r in rows}

    def _collect(self, bits: int, now: float) -> None:
        parts, coordinator = self.parts, self.parts.settings.coordinator
        self._opened_at = now
        self.collection = Collector(
            Terms(self.bounds, self.plan.codec, parts.manifest.shapes, bits),
            spool=Spool(
                spool_path(coordinator.state_dir, parts.run, self.round.number), sync=coordinator.sync
            ),
            uploads=Uploads(self.max_uploads, coordinator.upload_idle_s),
            journal=parts.journal,
            worker=parts.worker,
            outlet=parts.outlet,
            current=lambda: self.round,
            on_accepted=self._accepted,
            on_rejected=lambda node, why: self._handle(table.UpdateRejected(node, why)),
            seconds=lambda: self.parts.clock() - self._opened_at,
        )

    def _journal_cohort(self) -> None:
        """The cohort as it is now: what stands in line behind may have been journaled with it."""
        if self._unjournaled:
            self._journal(sealed=False)
            self._unjournaled = False

    def _journal(self, *, sealed: bool) -> None:
        self.parts.journal.open_round(
            self.parts.run,
            self.round.number,
            {
                "cohort": list(self.round.cohort),
                "reserve": list(self.round.reserve),
                "goal": self.round.goal,
                "plan": self.plan.model_dump(mode="json"),
                "bounds": self.bounds.model_dump(mode="json"),
                "bits": self.collection.sum.bits,
                "deadline_s": self.deadline_s,
                "shares": self._shares,
                "sealed": sealed,
                "again": sorted(self.again),
            },
        )


def _fresh(parts: Parts, number: int, drawn: Draw, seconds: float, now: float) -> Round:
    run = parts.settings.run
    return Round(
        run=parts.run,
        number=number,
        cohort=drawn.cohort,
        reserve=drawn.reserve,
        goal=drawn.goal,
        quorum=max(1, math.ceil(run.quorum * drawn.goal - 1e-9)),
        deadline_at=now + seconds,
        lost_grace_s=run.lost_grace_s,
    )


def _share(status: NodeStatus) -> dict[str, Any]:
    runtime = status.runtimes[0] if status.runtimes else ""
    return {"samples": status.samples or 0, "labels": status.labels or {}, "runtime": runtime}


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
