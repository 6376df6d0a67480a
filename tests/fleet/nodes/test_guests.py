"""Nodes that are guests of their machines, with the real coordinator: they pause, and lose nothing."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet

from apiary.settings import GuestSettings
from apiary.wire import NodeId
from apiary.wire.messages import NodeHealth, NodeStatus
from apiary_edge.feature import NodeFeature
from apiary_edge.guest.stay import Guest
from apiary_edge.health.readings import MB, Heat, Readings
from apiary_edge.service import Edge
from apiary_edge.training.job import TrainingEvent

WELL = Readings(heat=Heat("cpu-thermal", 60.0), throttled=0, memory_available=4000 * MB, disk_free=4000 * MB)
HOT = replace(WELL, heat=Heat("cpu-thermal", 85.0))


class Machine:
    """A machine that a test makes hot and cool again."""

    def __init__(self) -> None:
        self.now = WELL
        self.minute = 12 * 60
        self.guest: Guest | None = None

    def read(self) -> Readings:
        return self.now

    def close(self) -> None:
        pass

    def features(self, folder: Path, **guest: Any) -> Any:
        def make(node: Edge) -> Sequence[NodeFeature]:
            self.guest = Guest(
                node.channel,
                node,
                node.clocks,
                node.downloads.blobs,
                settings=GuestSettings(check_s=0.5, settle_s=1.0, **guest),
                machine=self,
                runtime="litert",
                minute=lambda wall: self.minute,
            )
            return [self.guest]

        return make


@pytest.fixture
def machine() -> Machine:
    return Machine()


def status(fleet: Fleet, node: str) -> NodeStatus:
    """What the broker holds of a node."""
    topic = f"apiary/default/node/{node}/status"
    return NodeStatus.decode(fleet.broker.retained[topic], who="test")


def test_a_hot_node_is_frozen_says_why_and_goes_on_with_what_it_had(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    fleet = make_fleet(2, rounds=1, features={"pi-00": machine.features(tmp_path)})
    training = fleet.trainings["pi-00"]
    training.seconds = 10.0
    fleet.until(lambda: training.started == 1)
    machine.now = HOT
    fleet.until(lambda: training.frozen_at is not None)
    for _ in range(200):
        fleet.turn()
    told = status(fleet, "pi-00")
    assert told.state == "paused" and told.why is not None and told.why.startswith("85 degrees Celsius")
    machine.now = WELL
    fleet.run()
    assert training.started == 1
    assert set(fleet.results()[0]["contributors"]) == {"pi-00", "pi-01"}


def test_the_run_of_a_node_that_paused_gives_the_same_model(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    calm = make_fleet(3, rounds=2)
    calm.run()
    fleet = make_fleet(3, rounds=2, features={"pi-01": machine.features(tmp_path)})

    def each(turn: int) -> None:
        machine.now = HOT if turn // 20 % 2 else WELL

    fleet.run(each=each)
    assert [r["model"] for r in fleet.results()] == [r["model"] for r in calm.results()]


def test_a_node_that_comes_back_after_the_grace_joins_again_while_there_is_time(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    fleet = make_fleet(2, rounds=1, lost_grace_s=5.0, features={"pi-00": machine.features(tmp_path)})
    training, other = fleet.trainings["pi-00"], fleet.trainings["pi-01"]
    training.seconds, other.seconds = 3.0, 60.0
    fleet.until(lambda: training.started == 1)
    machine.now = HOT
    runner = fleet.runner
    assert runner is not None
    fleet.until(lambda: NodeId("pi-00") in runner.round.gone)
    machine.now = WELL
    fleet.until(lambda: NodeId("pi-00") in runner.round.accepted)
    fleet.run()
    assert training.started == 1
    assert set(fleet.results()[0]["contributors"]) == {"pi-00", "pi-01"}


def test_a_frozen_node_that_asks_meanwhile_is_not_sent_away(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    """Its grace is over, but what it has trained would still count."""
    fleet = make_fleet(2, rounds=1, lost_grace_s=5.0, features={"pi-00": machine.features(tmp_path)})
    for training in fleet.trainings.values():
        training.seconds = 200.0
    training = fleet.trainings["pi-00"]
    fleet.until(lambda: training.started == 1)
    machine.now = HOT
    runner = fleet.runner
    assert runner is not None
    fleet.until(lambda: NodeId("pi-00") in runner.round.gone)
    # More than edge.refresh_s: it asks what is current, and is told.
    for _ in range(800):
        fleet.turn()
    assert training.frozen_at is not None and training._job is not None
    machine.now = WELL
    fleet.run()
    assert training.started == 1


def test_a_node_that_is_short_of_memory_gives_it_back_and_begins_anew(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    fleet = make_fleet(2, rounds=1, features={"pi-00": machine.features(tmp_path)})
    training = fleet.trainings["pi-00"]
    training.seconds = 5.0
    fleet.until(lambda: training.started == 1)
    machine.now = replace(WELL, memory_available=20 * MB)
    fleet.until(lambda: training._job is None)
    # What it freed itself is not enough for it to begin anew.
    machine.now = replace(WELL, memory_available=100 * MB)
    for _ in range(100):
        fleet.turn()
    assert training.started == 1 and status(fleet, "pi-00").state == "paused"
    machine.now = WELL
    fleet.run()
    assert training.started == 2
    assert "pi-00" in fleet.results()[0]["contributors"]


def test_a_pause_beyond_the_deadline_is_declined_with_its_reason(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    hours = machine.features(tmp_path, hours=["12:00-13:00"])
    fleet = make_fleet(2, rounds=1, deadline_s=600.0, features={"pi-00": hours})
    training = fleet.trainings["pi-00"]
    training.seconds = 30.0
    fleet.until(lambda: training.started == 1)
    machine.minute = 13 * 60
    fleet.run()
    why = fleet.results()[0]["missing"]["pi-00"]
    assert why.startswith("paused beyond the round's deadline: outside edge.guest.hours (12:00-13:00)")


def test_hours_that_begin_again_in_time_are_waited_for(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    hours = machine.features(tmp_path, hours=["12:00-13:00"])
    fleet = make_fleet(2, rounds=1, deadline_s=600.0, lost_grace_s=600.0, features={"pi-00": hours})
    training = fleet.trainings["pi-00"]
    training.seconds = 30.0
    fleet.until(lambda: training.started == 1)
    machine.minute = 11 * 60 + 55
    fleet.until(lambda: status(fleet, "pi-00").state == "paused")
    machine.minute = 12 * 60
    fleet.run()
    assert training.started == 2
    assert "pi-00" in fleet.results()[0]["contributors"]


def test_a_node_outside_its_hours_is_not_drawn_and_comes_when_they_begin(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    hours = machine.features(tmp_path, hours=["13:00-14:00"])
    fleet = make_fleet(2, rounds=3, min_nodes=1, features={"pi-00": hours})
    fleet.trainings["pi-01"].seconds = 20.0
    fleet.until(lambda: len(fleet.results()) == 1)
    machine.minute = 13 * 60
    fleet.run()
    first, *_, last = fleet.results()
    assert set(first["contributors"]) == {"pi-01"}
    assert set(last["contributors"]) == {"pi-00", "pi-01"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (replace(WELL, memory_available=60 * MB), "MB are available and 24 MB are kept for others"),
        (replace(WELL, disk_free=100 * MB), "of disk, 100 MB are free and 100 MB are kept for others"),
        (replace(WELL, address_limit=64 * MB), "limited to 64 MB (RLIMIT_AS, ulimit -v)"),
    ],
    ids=["memory", "disk", "address space"],
)
def test_a_round_that_does_not_fit_is_declined_before_a_byte_is_fetched(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path, found: Readings, said: str
) -> None:
    machine.now = found
    fleet = make_fleet(2, rounds=1, features={"pi-00": machine.features(tmp_path)})
    fleet.run()
    result = fleet.results()[0]
    assert said in result["missing"]["pi-00"] and set(result["contributors"]) == {"pi-01"}
    assert fleet.trainings["pi-00"].started == 0
    assert not any((fleet.folder / "pi-00" / "blobs").iterdir())


def test_what_the_child_of_the_round_before_holds_is_free_for_the_next(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    """The next round may be announced while the child of one that was missed still trains."""
    fleet = make_fleet(2, rounds=1, features={"pi-00": machine.features(tmp_path)})
    training = fleet.trainings["pi-00"]
    fleet.until(lambda: training.started == 1)
    told = fleet.nodes["pi-00"].session.round
    assert told is not None and machine.guest is not None
    machine.now = replace(WELL, memory_available=70 * MB)
    assert "70 MB are available" in (machine.guest.unfit(told) or "")
    training.holds = 150 * MB
    assert machine.guest.unfit(told) is None


def test_a_pause_does_not_count_as_time_that_training_took(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    fleet = make_fleet(2, rounds=1, lost_grace_s=10_000.0, features={"pi-00": machine.features(tmp_path)})
    node, training = fleet.nodes["pi-00"], fleet.trainings["pi-00"]
    node.training._settings = node.training._settings.model_copy(update={"train_timeout_s": 60.0})
    training.seconds = 30.0
    fleet.until(lambda: training.started == 1)
    machine.now = HOT
    for _ in range(1000):
        fleet.turn()
    machine.now = WELL
    fleet.run()
    assert "pi-00" in fleet.results()[0]["contributors"]


def test_an_update_that_waits_is_sent_whatever_the_weather(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    fleet = make_fleet(2, rounds=1, features={"pi-00": machine.features(tmp_path)})

    def each(turn: int) -> None:
        if fleet.nodes["pi-00"].session.state.value == "sending":
            machine.now = HOT

    fleet.run(each=each)
    assert machine.now is HOT
    assert "pi-00" in fleet.results()[0]["contributors"]


def test_health_is_retained_and_told_again_only_where_it_changed(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    sent: list[tuple[str, bytes]] = []
    fleet = make_fleet(2, rounds=1, features={"pi-00": machine.features(tmp_path, health_s=10.0)})
    topic = "apiary/default/node/pi-00/health"
    for turn in range(600):
        machine.now = WELL if turn < 300 else HOT
        fleet.turn()
        payload = fleet.broker.retained.get(topic)
        if payload is not None and (not sent or sent[-1][1] != payload):
            sent.append((topic, payload))
    temperatures = [NodeHealth.decode(payload, who="test").temperature_c for _, payload in sent]
    assert temperatures == [60.0, 85.0]


def test_the_figures_of_a_pause_are_told_with_it(
    make_fleet: MakeFleet, machine: Machine, tmp_path: Path
) -> None:
    fleet = make_fleet(2, rounds=1, features={"pi-00": machine.features(tmp_path, health_s=3600.0)})

    def told() -> float | None:
        payload = fleet.broker.retained["apiary/default/node/pi-00/health"]
        return NodeHealth.decode(payload, who="test").temperature_c

    for celsius, expected in ((60.0, 60.0), (70.0, 60.0), (85.0, 85.0), (95.0, 85.0), (65.0, 65.0)):
        machine.now = replace(WELL, heat=Heat("cpu-thermal", celsius))
        for _ in range(40):
            fleet.turn()
        assert told() == expected


@pytest.fixture
def limited() -> Iterator[None]:
    """This process under a limit of its address space that it will not reach."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**45, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_child_that_breaks_under_a_limit_is_not_tried_again(
    make_fleet: MakeFleet, number: signal.Signals
) -> None:
    fleet = make_fleet(2, rounds=1)
    fleet.until(lambda: fleet.trainings["pi-00"].started == 1)
    fleet.trainings["pi-00"].tells(
        TrainingEvent(kind="crashed", text="the training child was ended", signal=number)
    )
    fleet.run()
    why = fleet.results()[0]["missing"]["pi-00"]
    assert why.startswith("the training child was ended; its address space is limited to 35184372 MB")
    assert fleet.trainings["pi-00"].started == 1


def test_without_a_limit_a_child_that_breaks_is_tried_again(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, rounds=1)
    fleet.until(lambda: fleet.trainings["pi-00"].started == 1)
    fleet.trainings["pi-00"].tells(TrainingEvent(kind="crashed", text="ended", signal=signal.SIGSEGV))
    fleet.run()
    assert "pi-00" in fleet.results()[0]["contributors"]
    assert fleet.trainings["pi-00"].started == 2
