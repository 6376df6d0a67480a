"""The look at the whole fleet: silence, what does not fit, other versions, how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary_coordinator.fleet.demands import Demands
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.fleet.versions import SETTLE_S
from apiary_coordinator.fleet.watch import FleetWatch
from apiary_coordinator.journal import Journal


class Runner:
    """A round; notes the statuses that it is given."""

    def __init__(self) -> None:
        self.statuses: list[str] = []

    def node_status(self, node: NodeId, status: NodeStatus, roster: Roster, now: float) -> None:
        assert roster.silent[node] and roster[node].status == status
        self.statuses.append(node)


class Host:
    def __init__(self) -> None:
        self.nodes_before = -1
        self.demands = Demands(labels=("cat", "dog"))
        self.runner: Runner | None = None


class Bus:
    connected = True


class Bench:
    """A watch whose time goes by in steps of a second."""

    def __init__(self, folder: Path):
        self.host, self.bus, self.roster = Host(), Bus(), Roster()
        self.journal = Journal(folder)
        self.watch = FleetWatch(self.bus, self.host, self.roster, self.journal)  # type: ignore[arg-type]  # stand-ins
        self.now = 0.0

    def node(self, name: str, **more: Any) -> None:
        fields = {"state": "ready", "samples": 10, "labels": {"cat": 10}, "repeat_s": 10.0, **more}
        self.roster.update(NodeId(name), NodeStatus.model_validate(fields), self.now)

    def go_on(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.watch.tick(self.now)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.watch.start(0.0)
    yield made
    made.journal.close()


def test_a_silent_node_is_said_once_and_its_round_learns_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.node("a")
    bench.node("b", repeat_s=1000.0)
    bench.host.runner = Runner()
    bench.go_on(29)
    assert bench.roster.silent == {} and bench.host.runner.statuses == []
    bench.go_on(3)
    assert list(bench.roster.silent) == ["a"] and bench.host.runner.statuses == ["a"]
    assert caplog.messages == [
        "nodes=1 a: silent: it should send something every 10 s, and nothing came for 30 s"
    ]
    bench.go_on(30)
    assert bench.host.runner.statuses == ["a"] and len(caplog.messages) == 1


def test_without_a_round_silence_is_said_all_the_same(bench: Bench) -> None:
    bench.node("a")
    bench.go_on(40)
    assert list(bench.roster.silent) == ["a"]


def test_a_coordinator_that_hears_nothing_calls_nobody_silent(bench: Bench) -> None:
    bench.node("a")
    bench.bus.connected = False
    bench.go_on(100)
    bench.bus.connected = True
    bench.go_on(20)
    assert bench.roster.silent == {}
    bench.go_on(12)
    assert list(bench.roster.silent) == ["a"], "the time in which it was heard counts"


def test_a_machine_that_slept_calls_nobody_silent(bench: Bench) -> None:
    bench.node("a")
    bench.go_on(2)
    bench.now += 500
    bench.go_on(20)
    assert bench.roster.silent == {}
    bench.go_on(10)
    assert list(bench.roster.silent) == ["a"], "a look's time of it counts"


@pytest.mark.parametrize(("slept", "counts"), [(10, True), (11, False)])
def test_a_turn_that_comes_late_is_time_and_one_that_comes_later_is_not(
    bench: Bench, slept: int, counts: bool
) -> None:
    bench.node("a")
    bench.go_on(3)  # it looked at the first and at the third
    bench.now += slept - 1
    bench.go_on(1)
    bench.go_on(26 - slept)
    assert bench.roster.silent == {}
    bench.go_on(4)
    assert (list(bench.roster.silent) == ["a"]) is counts


def test_it_looks_every_other_second(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.go_on(2)
    bench.node("a", labels={"bird": 10})
    bench.watch.tick(bench.now + 0.9)
    assert caplog.messages == []
    bench.go_on(2)
    assert len(caplog.messages) == 1


def test_who_will_not_be_drawn_is_said_once_for_each_reason(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.node("a", labels={"bird": 10})
    bench.node("b", labels={"bird": 10})
    bench.node("c")
    bench.node("d", labels={"fish": 10}, state="lost")
    bench.go_on(10)
    (said,) = caplog.messages
    assert said.startswith("nodes=2 not drawn: a, b: none of its labels (bird)")
    caplog.clear()
    bench.node("a", labels={"bird": 11})  # other counts, the same reason
    bench.go_on(4)
    assert caplog.messages == []
    bench.node("a", labels={"cat": 11})
    bench.go_on(4)
    bench.node("a", labels={"bird": 11})
    bench.go_on(4)
    assert len(caplog.messages) == 1, "it fitted meanwhile"
    caplog.clear()
    bench.host.demands = Demands(labels=("bird",))
    bench.go_on(4)
    (said,) = caplog.messages
    assert said.startswith("nodes=1 not drawn: c: none of its labels (cat)")


def test_a_fleet_of_many_reasons_does_not_flood_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(20):
        bench.node(f"n{i:02d}", labels={f"other-{i}": 10})
    bench.go_on(4)
    assert len(caplog.messages) == 20
    caplog.clear()
    for i in range(25):
        bench.node(f"m{i:02d}", labels={f"more-{i}": 10})
    bench.go_on(4)
    assert len(caplog.messages) == 21
    assert caplog.messages[-1] == "and 5 more nodes are not drawn: apiary nodes"


def test_another_version_is_said_of_those_that_are_here(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.node("a", version="0.0.9", repeat_s=None)
    bench.node("b", version="0.0.8", state="lost")
    bench.go_on(int(SETTLE_S) + 6)
    (said,) = caplog.messages
    assert "a" in said and "0.0.9" in said and "0.0.8" not in said


def test_how_many_nodes_there_are_is_known_after_a_restart(bench: Bench) -> None:
    assert bench.host.nodes_before == 0
    for i in range(19):
        bench.node(f"n{i:02d}", repeat_s=None)
    bench.go_on(58)
    assert bench.journal.recall("fleet.nodes") is None
    bench.go_on(4)
    assert bench.journal.recall("fleet.nodes") == bench.host.nodes_before == 19
    for i in range(19, 20):
        bench.node(f"n{i:02d}", repeat_s=None)
    bench.go_on(64)
    assert bench.host.nodes_before == 19, "a tenth more is no news"
    bench.node("n20", repeat_s=None)
    bench.go_on(64)
    assert bench.host.nodes_before == 21
    again = FleetWatch(bench.bus, bench.host, Roster(), bench.journal)  # type: ignore[arg-type]  # stand-ins
    bench.host.nodes_before = -1
    again.start(0.0)
    assert bench.host.nodes_before == 21


def test_a_count_that_is_none_is_0(bench: Bench) -> None:
    bench.journal.remember("fleet.nodes", "many")
    bench.watch.start(0.0)
    assert bench.host.nodes_before == 0
