"""What `apiary chaos` found: each mended at its root, and tried here without processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fleet.harness import Fleet, MakeFleet
from tests.stand_ins.memory_bus import LinkFault

from apiary.wire.messages import Announcement
from apiary_coordinator.round.collector import spool_path
from apiary_edge.training.newest_round import NewestRound


def stage(fleet: Fleet) -> str:
    return fleet.hosted.stage


def round_number(fleet: Fleet) -> int:
    runner = fleet.runner
    return runner.round.number if runner is not None else 0


def test_a_spool_left_by_a_power_cut_goes_at_the_next_start(make_fleet: MakeFleet) -> None:
    """Killed between the commit that closed a round and the removal of its spool."""
    fleet = make_fleet(3)
    fleet.until(lambda: round_number(fleet) == 2)
    fleet.kill_coordinator()
    state_dir = fleet.settings().coordinator.state_dir
    for stray in (spool_path(state_dir, "run", 1), spool_path(state_dir, "abandoned", 7)):
        stray.write_bytes(b"x" * 10_000)
    fleet.start_coordinator()
    fleet.run()
    assert list((state_dir / "spool").iterdir()) == []
    assert [len(r["contributors"]) for r in fleet.results()] == [3, 3, 3]


def test_half_written_files_go_at_the_next_start(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2)
    fleet.until(lambda: round_number(fleet) == 2)
    fleet.kill_coordinator()
    fleet.kill_node("pi-00")
    planted: list[Path] = []
    for folder in ("runs/run", "coordinator", "coordinator/final", "pi-00/training", "pi-00/cache/a/00"):
        planted.append(fleet.folder / folder / ".file.abc.part")
        planted[-1].parent.mkdir(parents=True, exist_ok=True)
        planted[-1].write_bytes(b"torn")
    fleet.start_coordinator()
    fleet.start_node("pi-00")
    assert [p for p in planted if p.exists()] == []
    fleet.run()


@pytest.mark.parametrize("killed_while_parting", [False, True])
def test_the_end_of_a_run_is_said_until_the_broker_has_it(
    make_fleet: MakeFleet, killed_while_parting: bool
) -> None:
    """The broker was away when the run ended, and nobody ever told the nodes."""
    fleet = make_fleet(2, rounds=1)
    fleet.until(lambda: len(fleet.results()) == 1)
    fleet.broker.stop()
    fleet.until(lambda: stage(fleet) == "parting")
    if killed_while_parting:
        fleet.kill_coordinator()
        fleet.start_coordinator()
        fleet.until(lambda: stage(fleet) == "parting")
    for _ in range(50):
        fleet.turn()
    assert stage(fleet) == "parting"
    fleet.broker.start()
    fleet.run()
    said = Announcement.decode(fleet.broker.retained["apiary/default/round/current"], who="test")
    assert said.state == "finished"


def test_a_coordinator_without_a_broker_ends_all_the_same(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, rounds=1)
    fleet.until(lambda: len(fleet.results()) == 1)
    fleet.broker.stop()
    assert fleet.run(seconds=90)["rounds_closed"] == 1


def test_an_update_whose_last_receipt_was_lost_does_not_wait_for_ever(make_fleet: MakeFleet) -> None:
    """The run ended, its coordinator with it: nobody is left to say `duplicate`."""
    fleet = make_fleet(2, rounds=1)
    fleet.broker.script(LinkFault("drop", "apiary/+/node/pi-01/receipt"))
    fleet.run()
    outbox = fleet.nodes["pi-01"]._stores.outbox
    fleet.until(lambda: outbox.waiting() == [], seconds=5)
    assert outbox.done() == ("run", 1)
    assert sorted(fleet.results()[0]["contributors"]) == ["pi-00", "pi-01"]


def test_an_announcement_repeated_from_an_earlier_round_is_not_followed(make_fleet: MakeFleet) -> None:
    """A node followed it: left its training, waited for a model that is served no more, and trained twice."""
    fleet = make_fleet(2)
    topic = "apiary/default/round/current"
    fleet.until(lambda: round_number(fleet) == 1)
    fleet.turn()
    old = fleet.broker.retained[topic]
    fleet.until(lambda: round_number(fleet) == 2)
    somebody = fleet.broker.bus("somebody")
    somebody.poll(0)

    def repeat(turn: int) -> None:
        if turn % 7 == 0:
            somebody.publish(topic, old)
        somebody.poll(0)

    fleet.run(each=repeat)
    assert [t.started for t in fleet.trainings.values()] == [3, 3]


def test_a_birth_repeated_from_an_earlier_start_locks_nobody_out(make_fleet: MakeFleet) -> None:
    """Epochs have no order: a node that took an old one for the newest must still hear the present one."""
    fleet = make_fleet(2)
    topic = "apiary/default/coordinator/status"
    fleet.until(lambda: round_number(fleet) == 1)
    old = fleet.broker.retained[topic]
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.until(lambda: round_number(fleet) == 1)
    fleet.kill_node("pi-00")
    fleet.start_node("pi-00")
    somebody = fleet.broker.bus("somebody")
    somebody.poll(0)

    def repeat(turn: int) -> None:
        if turn % 11 == 0:
            somebody.publish(topic, old)
        somebody.poll(0)

    fleet.run(seconds=120, each=repeat)
    assert [len(r["contributors"]) for r in fleet.results()] == [2, 2, 2]


def test_earlier_rounds_are_believed_again_after_a_while(make_fleet: MakeFleet) -> None:
    """A journal restored from a backup begins at an earlier round; its nodes must not wait for the later."""
    fleet = make_fleet(1, rounds=2)
    fleet.run()
    node = fleet.nodes["pi-00"]
    told = Announcement.decode(fleet.broker.retained["apiary/default/round/current"], who="test")
    earlier = told.model_copy(update={"round": 1})

    def follows(announcement: Announcement, later_s: float = 0.0) -> bool:
        return NewestRound(node._newest.heard).take(announcement, fleet.broker.now + later_s)

    assert not follows(earlier)
    assert follows(told)
    assert follows(told.model_copy(update={"round": 3}))
    assert follows(earlier.model_copy(update={"run": "another"}))
    assert follows(earlier, 301)
