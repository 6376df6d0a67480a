"""Options of a run that change who counts: more nodes than are needed."""

from __future__ import annotations

import pytest
from tests.fleet.harness import MakeFleet, samples_of

from apiary.bus.bus import Received
from apiary.wire.messages import Receipt


@pytest.mark.parametrize("worker_s", [0.3, 3.0])
def test_with_more_nodes_than_are_needed_the_first_count_and_no_more(
    make_fleet: MakeFleet, worker_s: float
) -> None:
    """All are ready at once, so that more of them are synced together than there are places."""
    fleet = make_fleet(6, fraction=0.5, min_nodes=3, over_select=2.0, worker_s=worker_s)
    for training in fleet.trainings.values():
        training.seconds = 1.0
    watcher = fleet.broker.bus("watcher", None)
    watcher.subscribe("apiary/+/node/+/receipt")
    said: list[tuple[str, Receipt]] = []

    def watch(_: int) -> None:
        for event in watcher.poll(0):
            if isinstance(event, Received):
                said.append((event.topic.split("/")[3], Receipt.decode(event.payload, who="coordinator")))

    fleet.run(each=watch)
    for number, result in enumerate(fleet.results(), start=1):
        counted = result["contributors"]
        assert len(counted) == 3 == result["n_contributors"]
        assert {n: c["samples"] for n, c in counted.items()} == {n: samples_of(n) for n in counted}
        assert not result["rejected"]
        of_round = [(node, receipt) for node, receipt in said if receipt.round == number]
        assert {n for n, r in of_round if r.state == "accepted"} == set(counted)
        late = {n: r for n, r in of_round if n not in counted}
        assert late and {r.state for r in late.values()} == {"closed"}
    whys = {r.why for _, r in said if r.state == "closed"}
    assert "the round had enough" in whys, "some were whole and screened when the last place was taken"
    assert all(not node._stores.outbox.waiting() for node in fleet.nodes.values())


def test_of_more_nodes_than_are_needed_some_may_be_lost(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(6, fraction=0.5, min_nodes=3, over_select=2.0, rounds=1, lost_grace_s=600)
    for node in ("pi-00", "pi-01", "pi-02"):
        fleet.trainings[node].seconds = 10_000
    fleet.run()
    (result,) = fleet.results()
    assert sorted(result["contributors"]) == ["pi-03", "pi-04", "pi-05"]
    assert fleet.broker.now < 60, "nobody waits for the others"


@pytest.mark.parametrize("killed", [False, True])
def test_learning_rate_and_epochs_follow_the_schedule_over_failed_rounds_and_kills(
    make_fleet: MakeFleet, killed: bool
) -> None:
    fleet = make_fleet(
        2,
        rounds=4,
        plan={"learning_rate": 0.1, "epochs": 2},
        by_round={"learning_rate": "linear", "last_share": 0.1, "epochs": {"3": 1}},
    )
    rounds: list[int] = []
    plans: dict[int, tuple[float, int]] = {}

    def watch(turn: int) -> None:
        runner = fleet.runner
        if runner is None:
            return
        number = runner.round.number
        plans[number] = (runner.terms.plan.learning_rate, runner.terms.plan.epochs)
        if number not in rounds:
            rounds.append(number)
            if number == 2:
                runner.abandon("tried")  # a round that fails takes no step of the schedule
            elif killed:
                fleet.kill_coordinator()
                fleet.start_coordinator()

    fleet.run(each=watch)
    expected = {1: (0.1, 2), 2: (0.07, 2), 3: (0.07, 2), 4: (0.04, 1), 5: (0.01, 1)}
    assert plans == expected
    shown = {r["round"]: r["plan"] for r in fleet.results() if r["state"] == "closed"}
    assert shown == {n: {"learning_rate": p[0], "epochs": p[1]} for n, p in expected.items() if n != 2}
