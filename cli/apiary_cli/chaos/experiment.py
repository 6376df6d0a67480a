"""Two runs of one federation, undisturbed and under faults, and the comparison of their results."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from apiary.errors import RunFailed
from apiary.wire.topics import Topics
from apiary_cli.chaos import invariants, schedule
from apiary_cli.chaos.fault_injector import AIMED, MAX_AIMED, FaultInjector, OnFault
from apiary_cli.chaos.fleet import Fleet
from apiary_cli.chaos.invariants import FinishedRun, InvariantResult
from apiary_cli.chaos.misbehaving_node import NAME as MISBEHAVING
from apiary_cli.chaos.misbehaving_node import MisbehavingNode
from apiary_cli.chaos.schedule import Fault
from apiary_cli.chaos.states import SeenStates
from apiary_cli.chaos.traffic_replayer import TrafficReplayer
from apiary_cli.datasets.partition import Layout, materialise
from apiary_cli.demo.federation import COORDINATOR

PICTURES: Final = 360
"""Training pictures of all nodes together: an epoch takes tenths of a second."""
DRAIN_S: Final = 30.0
"""After the run's end, the nodes may take this long to empty their outboxes."""
STUCK_S: Final = 600.0
"""Without a fault or a new round for so long, the run hangs."""
_TURN_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """What the schedule of a disturbed run is drawn from; `export`: it exports its model itself, too.

    `every_transition`: a run in which no fault fell into one of them does not hold.
    """

    count: int
    seed: int
    kinds: tuple[str, ...]
    export: bool = False
    every_transition: bool = False

    @property
    def misbehaving(self) -> bool:
        """Whether one enrolled node more takes part, in both runs, and is refused in every round."""
        return "misbehaving-node" in self.kinds


@dataclass(slots=True)
class Experiment:
    """An undisturbed and a disturbed run in `folder`. `say` gets lines of progress, `stop` ends it early."""

    folder: Path
    exports_dir: Path
    rounds: int
    faults: FaultOptions
    say: Callable[[str], None]
    stop: Callable[[], bool]
    injected: Counter[str] = field(default_factory=Counter)
    """Scheduled faults so far, by kind."""
    aimed: int = field(default=0, init=False)
    """Faults beyond those, at transitions into which none fell."""
    states: SeenStates | None = field(default=None, init=False)
    """Into which transitions they fell."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each of the two runs took."""
    _fleets: list[Fleet] = field(default_factory=list)

    def run(self, nodes: int) -> list[InvariantResult] | None:
        """Both runs with so many nodes, and the comparison; None where it was stopped. Raises RunFailed."""
        layout = materialise(
            "digits", self.folder / "data", nodes=nodes, by="dirichlet", alpha=2.0, seed=0, limit=PICTURES
        )
        self.say(
            f"undisturbed run: {nodes} nodes, {self.rounds} rounds (the first export takes TensorFlow's time)"
        )
        calm = self._one("undisturbed", "calm", layout, self.exports_dir, [])
        if calm is None:
            return None
        fleet = self._fleets[0]
        if fleet.fell:
            raise RunFailed(f"the undisturbed run was not: {fleet.fell[0]}")
        took = self.seconds["undisturbed"]
        self.say(f"undisturbed: model {calm.summary['model_sha256'][:16]}, {took:.0f} s")
        plan = schedule.draw(
            seed=self.faults.seed, faults=self.faults.count, rounds=self.rounds, nodes=fleet.nodes,
            kinds=self.faults.kinds, building=self.faults.export,
        )  # fmt: skip
        self.say(f"disturbed run: {len(plan)} faults, seed {self.faults.seed}")
        exports = self.folder / "storm" / "exports" if self.faults.export else self.exports_dir
        storm = self._one("disturbed", "storm", layout, exports, plan)
        if storm is None:
            return None
        undisturbed, fleet = self._fleets
        refused = frozenset({MISBEHAVING} if self.faults.misbehaving else ())
        found = [
            invariants.same_model(calm, storm),
            invariants.counted_once(calm, storm, refused),
            invariants.journal_sound(fleet, storm),
            invariants.stores_sound(fleet, storm),
            invariants.result_whole(undisturbed, fleet),
            invariants.nothing_waits(fleet),
            invariants.nothing_half_written(fleet),
            invariants.nothing_running(fleet),
            invariants.no_crash(fleet),
            invariants.memory_bounded(calm, storm),
            invariants.all_dealt(self.injected.total(), len(plan)),
        ]
        if self.faults.every_transition and self.states is not None:
            found.append(invariants.every_transition(self.states))
        return found

    def close(self) -> None:
        """End all processes."""
        for fleet in self._fleets:
            fleet.close()
            fleet.end_left_running()

    def _one(
        self, name: str, subfolder: str, layout: Layout, exports: Path, plan: list[Fault]
    ) -> FinishedRun | None:
        folder = self.folder / subfolder
        settings = _settings(layout, folder, self.rounds, exports, more=int(self.faults.misbehaving))
        fleet = Fleet(folder, layout, settings)
        self._fleets.append(fleet)
        began = time.monotonic()

        def on_fault(number: int, fault: Fault, how: str) -> None:
            if fault.number == AIMED:
                self.aimed += 1
            else:
                self.injected[fault.kind] += 1
            at, width = time.monotonic() - began, len(str(len(plan)))
            self.say(
                f"[{self.injected.total():>{width}}/{len(plan)}] {at // 60:02.0f}:{at % 60:02.0f} "
                f"round {number:<3} {fault.kind:17} {fault.victim:12} {how}"
            )

        labels = layout.labels if self.faults.misbehaving else ()
        aims = MAX_AIMED if plan and self.faults.every_transition else 0
        finished, self.states = _run(fleet, plan, on_fault, self.stop, misbehaves_with=labels, aims=aims)
        self.seconds[name] = time.monotonic() - began
        return finished


def _run(
    fleet: Fleet,
    plan: list[Fault],
    on_fault: OnFault,
    stop: Callable[[], bool],
    *,
    misbehaves_with: Sequence[str],
    aims: int,
) -> tuple[FinishedRun | None, SeenStates | None]:
    """One whole run; None where it was interrupted. Raises RunFailed where it does not end.

    Where there are labels for it, one node more takes part and misbehaves. Up to `aims` faults are dealt
    beyond the plan.
    """
    replayer: TrafficReplayer | None = None
    misbehaving: MisbehavingNode | None = None
    try:
        fleet.start()
        replayer = TrafficReplayer(fleet.port, Topics(), fleet.nodes)
        if misbehaves_with:
            each = PICTURES // len(fleet.nodes)
            misbehaving = MisbehavingNode(
                fleet.port_of_one_node, Topics(), misbehaves_with, each, fleet.nodes
            )
        injector = FaultInjector(plan, fleet, replayer, on_fault, misbehaving, aims=aims)
        mark, marked_at = (0, 0), time.monotonic()
        while (result := fleet.result) is None:
            if stop():
                return None, None
            if replayer.poll(_TURN_S):
                injector.moved()
            if misbehaving is not None:
                misbehaving.turn()
            fleet.turn()
            for node in filter(fleet.trains, fleet.nodes):
                replayer.states.trains(node)
            injector.turn()
            if mark != (now := (replayer.round, len(injector.left))):
                mark, marked_at = now, time.monotonic()
            if time.monotonic() - marked_at > STUCK_S:
                raise RunFailed(
                    f"nothing went on for {STUCK_S:.0f} s in round {replayer.round}: logs in {fleet.folder}"
                )
        _drain(fleet, replayer, stop)
    finally:
        for client in (replayer, misbehaving):
            if client is not None:
                client.close()
        fleet.close()
    return invariants.read_record(fleet.folder, result["summary"], fleet.peaks_mb), replayer.states


def _drain(fleet: Fleet, replayer: TrafficReplayer, stop: Callable[[], bool]) -> None:
    """Everybody is brought back, and has a moment to find out that the run is over."""
    fleet.settle()
    until = time.monotonic() + DRAIN_S
    while time.monotonic() < until and not stop():
        replayer.poll(_TURN_S)
        fleet.turn()
        waiting = any(invariants.outbox(fleet.state(node)) for node in fleet.nodes)
        if not waiting and all(map(fleet.up, fleet.nodes)):
            return


def _settings(
    layout: Layout, folder: Path, rounds: int, exports: Path, *, more: int = 0
) -> dict[str, dict[str, Any]]:
    """For the layout's nodes, all of whom must count, and so many `more` whose updates are refused."""
    nodes = len(layout.nodes)
    return {
        # Impatient, so that a fault costs seconds: what is waited for is the same, only shorter.
        "broker": {"retry_max_s": 2.0, "keepalive_s": 5, "connect_timeout_s": 3.0},
        "run": {
            "rounds": rounds,
            "min_nodes": nodes + more,
            "settle_s": 0.5,
            # Nobody is left behind: the cohort stays the same, so the bits must.
            "deadline_s": 3600.0,
            "lost_grace_s": 3600.0,
            "quorum": nodes / (nodes + more),
            "recipe_options": {"size": 16, "channels": 1, "widths": [16, 32, 64, 96]},
        },
        "run.plan": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003, "shift": 0.07},
        "coordinator": {
            "test_data": layout.server.resolve(),
            "labels": layout.labels,
            "state_dir": folder / "state" / COORDINATOR,
            "exports_dir": exports.resolve(),
            "runs_dir": folder / "runs",
            "upload_idle_s": 2.0,
        },
        "edge": {"upload_idle_s": 2.0, "want_idle_s": 1.5, "refresh_s": 10.0},
    }
