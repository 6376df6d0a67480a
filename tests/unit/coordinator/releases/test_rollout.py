"""The roll-out's state table: waves, verdicts, halts, what operators may do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.coordinator.releases.rollouts import (
    NODES,
    ONE,
    POLICY,
    begun,
    fleet,
    holders,
    known,
    release,
    report,
    reported,
    ticked,
)

from apiary.wire.messages.releases import place
from apiary_coordinator.releases import rollout as table
from apiary_coordinator.releases import rollout_events as words
from apiary_coordinator.releases.rollout_events import Member, Pins


def test_a_good_release_goes_out_wave_by_wave_and_every_wave_holds_the_one_before() -> None:
    rollout = begun()
    sizes, now = [], 0.0
    before: set[str] = set()
    for _ in range(3):
        assert holders(rollout) == set(rollout.members) >= before
        before = set(rollout.members)
        sizes.append(len(before))
        rollout = reported(rollout, rollout.members)
        rollout, notes = ticked(rollout, now)
        assert notes == [], "a wave soaks first"
        now += 10.0
        rollout, notes = ticked(rollout, now)
        assert len(notes) == 1
    assert sizes == [2, 5, 10]
    assert (rollout.state, rollout.share) == ("done", 1.0)
    assert holders(rollout, [*NODES, "pi-new"]) == {*NODES, "pi-new"}, "nodes that were off catch up"


def test_the_first_of_the_order_are_the_canaries_and_another_release_has_others() -> None:
    order = sorted(NODES, key=lambda n: place(n, release().file.digest))
    assert begun().members == frozenset(order[:2])
    other = sorted(NODES, key=lambda n: place(n, ONE.file.digest))
    assert other != order


def test_a_wave_has_one_node_at_least() -> None:
    assert len(begun(nodes=["only"]).members) == 1
    assert len(begun(POLICY.model_copy(update={"waves": [0.01, 1.0]})).members) == 1


def test_a_failure_in_the_canary_takes_it_back_and_the_rest_never_has_it() -> None:
    rollout = begun()
    first = sorted(rollout.members)[0]
    rollout = reported(rollout, [first], "failed", why="4 of 20 right")
    rollout, notes = ticked(rollout, 1.0)
    assert rollout.state == "halted"
    assert notes == [f"two halted, back to one: 1 of 2 nodes failed; {first}: 4 of 20 right"]
    assert holders(rollout) == set()
    assert ticked(rollout, 1e6) == (rollout, [])


def test_a_few_failures_in_a_large_wave_are_no_reason_to_stop() -> None:
    nodes = [f"n{i}" for i in range(100)]
    rollout = begun(POLICY.model_copy(update={"waves": [1.0]}), nodes)
    rollout = reported(rollout, nodes[:10], "failed")
    assert ticked(rollout, 1.0)[0].state == "rolling"
    rollout = reported(rollout, nodes[10:])
    rollout, _ = ticked(rollout, 2.0)
    assert ticked(rollout, 12.0)[0].state == "done"
    rollout = reported(begun(POLICY.model_copy(update={"waves": [1.0]}), nodes), nodes[:11], "failed")
    assert ticked(rollout, 1.0)[0].state == "halted"


@pytest.mark.parametrize("state", ["failed", None])
def test_of_three_members_one_decides_nothing_unless_no_failure_is_allowed(state: str | None) -> None:
    nodes = NODES[:6]
    halves = {"waves": [0.5, 1.0]}
    for strict, stays in (({}, True), ({"max_failed": 0.0, "min_healthy": 1.0}, False)):
        rollout = begun(POLICY.model_copy(update={**halves, **strict}), nodes)
        liar, *others = sorted(rollout.members)
        assert len(others) == 2
        for node in others:
            rollout, _ = table.handle(rollout, known(rollout, node, report=report(rollout)), 1.0)
        if state is not None:
            rollout, _ = table.handle(rollout, known(rollout, liar, report=report(rollout, state)), 1.0)
        for now in (2.0, 12.5, 101.0):
            rollout, _ = table.handle(rollout, words.RolloutTick(), now)
        assert (rollout.state, rollout.wave) == (("rolling", 1) if stays else ("halted", 0))
    # A second one that fails is no single word any more.
    rollout = begun(POLICY.model_copy(update=halves), nodes)
    for node in sorted(rollout.members)[:2]:
        rollout, _ = table.handle(rollout, known(rollout, node, report=report(rollout, "failed")), 1.0)
    rollout, _ = table.handle(rollout, words.RolloutTick(), 2.0)
    assert rollout.state == "halted"


def test_a_wave_that_says_nothing_is_halted_when_its_time_is_over() -> None:
    rollout = begun()
    rollout, notes = ticked(rollout, 99.9)
    assert notes == []
    rollout, notes = ticked(rollout, 100.0)
    assert rollout.state == "halted"
    assert "0 of 2 nodes of wave 1 reported healthy within 100 s (waiting: pi-" in notes[0]


def test_a_node_that_turns_bad_while_the_wave_soaks_stops_it() -> None:
    rollout = reported(begun(), begun().members)
    rollout, _ = ticked(rollout, 0.0)
    rollout = reported(rollout, sorted(rollout.members)[:1], "failed", why="crashed in use")
    assert ticked(rollout, 9.0)[0].state == "halted"


def test_soaking_begins_anew_when_a_node_is_missing_again() -> None:
    rollout = reported(begun(), begun().members)
    rollout, _ = ticked(rollout, 0.0)
    rollout = reported(rollout, sorted(rollout.members)[:1], "testing")
    rollout, _ = ticked(rollout, 5.0)
    rollout = reported(rollout, rollout.members)
    rollout, _ = ticked(rollout, 9.0)
    assert ticked(rollout, 18.9)[1] == []
    assert len(ticked(rollout, 19.0)[1]) == 1


def test_reports_of_another_release_or_attempt_do_not_count() -> None:
    rollout = begun()
    other = replace(rollout, release=release(attempt=2))
    for node in rollout.members:
        rollout, _ = table.handle(rollout, known(rollout, node, report=report(other, "failed")), 0.0)
    assert ticked(rollout, 1.0)[0].state == "rolling"
    assert rollout.having("waiting") == NODES


def test_the_fleets_pictures_together_judge_what_one_nodes_could_not() -> None:
    policy = POLICY.model_copy(update={"waves": [0.5, 1.0], "max_accuracy_drop": 0.05})
    rollout = begun(policy)
    rollout = reported(rollout, rollout.members, pictures=20, accuracy=0.90, accuracy_before=0.94)
    assert ticked(rollout, 1.0)[0].state == "rolling"
    rollout = reported(rollout, rollout.members, pictures=20, accuracy=0.88, accuracy_before=0.94)
    rollout, notes = ticked(rollout, 1.0)
    assert rollout.state == "halted"
    assert "on 100 held-out pictures of 5 nodes it is 6.0 points worse" in notes[0]


def test_a_node_outside_the_wave_decides_nothing() -> None:
    """It was not given the release, and may report of it what it likes."""
    rollout = begun()
    outside = [n for n in NODES if n not in rollout.members]
    rollout = reported(rollout, outside, "failed", why="I say so")
    assert ticked(rollout, 1.0)[0].state == "rolling"
    rollout = reported(rollout, outside[:2], pictures=2**40, accuracy=0.0, accuracy_before=1.0)
    rollout = reported(rollout, rollout.members, pictures=20, accuracy=0.9, accuracy_before=0.9)
    rollout, notes = ticked(rollout, 1.0)
    assert (rollout.state, notes) == ("rolling", [])


@pytest.mark.parametrize(("honest", "lie", "state"), [(0.9, 0.0, "rolling"), (0.8, 1.0, "halted")])
def test_one_member_neither_halts_a_good_release_nor_lets_a_bad_one_pass(
    honest: float, lie: float, state: str
) -> None:
    rollout = begun(POLICY.model_copy(update={"waves": [0.5, 1.0]}))
    liar, *others = sorted(rollout.members)
    rollout = reported(rollout, others, pictures=20, accuracy=honest, accuracy_before=0.9)
    rollout = reported(rollout, [liar], pictures=2**40, accuracy=lie, accuracy_before=1.0 - lie)
    assert ticked(rollout, 1.0)[0].state == state


def test_a_node_with_many_pictures_weighs_no_more_than_half_of_the_others() -> None:
    rollout = begun(POLICY.model_copy(update={"waves": [0.3, 1.0]}))
    large, *small = sorted(rollout.members)
    rollout = reported(rollout, small, pictures=20, accuracy=0.8, accuracy_before=0.9)
    rollout = reported(rollout, [large], pictures=5000, accuracy=0.9, accuracy_before=0.9)
    rollout, notes = ticked(rollout, 1.0)
    assert rollout.state == "halted"
    assert "on 60 held-out pictures of 3 nodes it is 10.0 points worse, by the median node" in notes[0]


def test_a_node_that_is_too_slow_has_failed() -> None:
    rollout = begun(POLICY.model_copy(update={"max_inference_ms": 50.0}))
    rollout = reported(rollout, rollout.members, inference_ms=50.1)
    rollout, notes = ticked(rollout, 1.0)
    assert rollout.state == "halted" and "too slow" in notes[0]


def test_nodes_whom_it_is_not_for_count_in_no_wave() -> None:
    rollout = begun()
    unfit, *fit = sorted(rollout.members)
    rollout = reported(rollout, [unfit], "unfit")
    rollout = reported(rollout, fit)
    rollout, _ = ticked(rollout, 1.0)
    rollout, notes = ticked(rollout, 11.0)
    assert notes == ["wave 1: 1 of 1 nodes healthy; wave 2 of 3 opens for 5 of 9 nodes"]
    assert unfit not in rollout.members


def test_named_canaries_are_the_first_wave_and_are_not_waited_for_without_end() -> None:
    rollout = begun(POLICY.model_copy(update={"canaries": ["pi-7"]}))
    assert rollout.members == {"pi-7"} == holders(rollout)
    rollout = reported(rollout, ["pi-7"])
    rollout, _ = ticked(rollout, 0.0)
    rollout, _ = ticked(rollout, 10.0)
    assert "pi-7" in rollout.members and len(rollout.members) in (5, 6)
    lonely = begun(POLICY.model_copy(update={"canaries": ["pi-absent"]}))
    for now in (0.0, 50.0, 99.0):
        lonely, _ = ticked(lonely, now)
        assert lonely.state == "rolling"
    lonely, notes = ticked(lonely, 100.0)
    assert lonely.state == "halted" and "no canary (pi-absent) was here within 100 s" in notes[0]


@pytest.mark.parametrize(("after", "state"), [(0.9, "rolling"), (0.8999, "halted")])
def test_where_nothing_may_be_lost_the_same_is_enough_and_less_is_not(after: float, state: str) -> None:
    policy = POLICY.model_copy(update={"waves": [0.5, 1.0], "max_accuracy_drop": 0.0})
    rollout = begun(policy)
    rollout = reported(rollout, rollout.members, accuracy=after, accuracy_before=0.9, pictures=20)
    rollout, _ = ticked(rollout, 1.0)
    assert rollout.state == state


@pytest.mark.parametrize("ends", ["halted", "aborted"])
def test_named_canaries_go_back_with_the_others(ends: str) -> None:
    rollout = begun(POLICY.model_copy(update={"canaries": ["pi-7", "pi-8"]}))
    assert holders(rollout) == {"pi-7", "pi-8"}
    if ends == "halted":
        rollout, _ = ticked(reported(rollout, ["pi-7"], "failed", why="it crashes"), 1.0)
    else:
        rollout, _ = table.handle(rollout, words.AbortRollout(), 1.0)
    assert rollout.state == ends and holders(rollout) == set()
    again, _ = table.handle(rollout, words.ResumeRollout(), 2.0)
    assert holders(again) == {"pi-7", "pi-8"}, "tried again, they are the first once more"


def test_named_canaries_keep_it_while_the_next_waves_open() -> None:
    rollout = begun(POLICY.model_copy(update={"canaries": ["pi-7"], "soak_s": 0.0}))
    seen = [holders(rollout)]
    for now in (1.0, 2.0):
        rollout, _ = ticked(reported(rollout, rollout.members), now)
        seen.append(holders(rollout))
        assert rollout.members == frozenset(holders(rollout))
    assert all("pi-7" in held for held in seen)
    assert (len(seen[0]), len(seen[2])) == (1, 10) and len(seen[1]) in (5, 6)


def test_a_fleet_that_is_off_is_waited_for() -> None:
    rollout, _ = table.begin(release(), None, POLICY, 0.0, fleet={})
    rollout, notes = ticked(rollout, 1e6)
    assert (rollout.state, notes) == ("rolling", [])
    rollout, _ = table.handle(rollout, known(rollout, "late", here=True), 1e6)
    rollout, _ = ticked(rollout, 1e6)
    assert rollout.members == {"late"}


def test_operators_pause_resume_and_abort() -> None:
    rollout = begun()
    rollout, commands = table.handle(rollout, words.PauseRollout(), 0.0)
    assert rollout.state == "paused" and len(commands) == 1
    rollout = reported(rollout, rollout.members)
    assert ticked(rollout, 500.0)[1] == [], "a paused wave neither goes on nor runs out of time"
    assert table.handle(rollout, words.PauseRollout(), 0.0) == (rollout, [])
    rollout, _ = table.handle(rollout, words.ResumeRollout(), 500.0)
    rollout, _ = ticked(rollout, 500.0)
    rollout, notes = ticked(rollout, 510.0)
    assert rollout.wave == 1 and len(notes) == 1
    rollout, commands = table.handle(rollout, words.AbortRollout(), 511.0)
    assert rollout.state == "aborted" and holders(rollout) == set()
    assert [command.bad for command in commands] == [True], "the history and the log show it as bad news"


def test_failures_halt_a_paused_rollout_too() -> None:
    rollout, _ = table.handle(begun(), words.PauseRollout(), 0.0)
    rollout = reported(rollout, rollout.members, "failed")
    assert ticked(rollout, 1.0)[0].state == "halted"


def test_a_halted_release_that_is_resumed_is_another_attempt_from_the_first_wave() -> None:
    rollout = reported(begun(), begun().members, "failed")
    rollout, _ = ticked(rollout, 1.0)
    rollout, _ = table.handle(rollout, words.ResumeRollout(), 2.0)
    assert (rollout.state, rollout.wave, rollout.release.attempt) == ("rolling", 0, 2)
    assert ticked(rollout, 3.0)[0].state == "rolling", "what failed was the attempt before"


@pytest.mark.parametrize("event", [words.PauseRollout(), words.ResumeRollout(), words.AbortRollout()])
def test_what_is_out_is_out(event: words.Event) -> None:
    done = replace(begun(), state="done", share=1.0)
    assert table.handle(done, event, 0.0) == (done, [])


def test_back_to_an_earlier_one_is_for_all_at_once() -> None:
    rollout, commands = table.restore(ONE, POLICY, 0.0, fleet=fleet())
    assert (rollout.state, len(commands)) == ("done", 1)
    assert holders(rollout) == set(NODES)


def test_pinned_nodes_keep_what_they_are_pinned_to_and_belong_to_no_wave() -> None:
    pins = Pins({"pi-3": "one"}, {"site=north": "one"}, {"one": ONE})
    rollout = begun()
    rollout, _ = table.handle(rollout, known(rollout, "pi-4", here=True, tags={"site": "north"}), 0.0)
    rollout, commands = table.handle(rollout, words.Pinned(pins), 0.0)
    assert len(commands) == 1
    rollout = replace(
        rollout, policy=POLICY.model_copy(update={"waves": [1.0]}), members=frozenset(), share=0.0
    )
    rollout, _ = ticked(rollout, 1.0)
    assert rollout.members == set(NODES) - {"pi-3", "pi-4"}
    assert "pi-3" not in holders(rollout)


def test_after_a_restart_a_wave_has_its_full_time_again() -> None:
    rollout = table.taken_up(begun(), 1000.0)
    assert ticked(rollout, 1099.0)[1] == []
    assert ticked(rollout, 1100.0)[0].state == "halted"


def test_a_wave_that_would_add_nobody_is_left_out() -> None:
    rollout = reported(
        begun(POLICY.model_copy(update={"waves": [0.1, 0.3, 0.5, 1.0]}), ["a", "b"]), ["a", "b"]
    )
    assert len(rollout.members) == 1
    rollout, _ = ticked(rollout, 0.0)
    rollout, notes = ticked(rollout, 10.0)
    assert (rollout.wave, len(rollout.members)) == (3, 2)
    assert notes == ["wave 1: 1 of 1 nodes healthy; wave 4 of 4 opens for 2 of 2 nodes"]


def test_nodes_that_are_not_here_belong_to_no_wave() -> None:
    away = {n: Member(here=n in ("pi-1", "pi-4")) for n in NODES}
    rollout, _ = table.begin(release(), ONE, POLICY.model_copy(update={"waves": [1.0]}), 0.0, fleet=away)
    assert rollout.members == {"pi-1", "pi-4"}


def test_members_without_pictures_say_nothing_of_accuracy() -> None:
    rollout = begun(POLICY.model_copy(update={"waves": [0.5, 1.0]}))
    one, two, three, *_ = sorted(rollout.members)
    rollout = reported(rollout, [one], accuracy=0.1, accuracy_before=0.9, pictures=20)
    rollout = reported(rollout, [two], accuracy=0.1, accuracy_before=0.9)
    rollout = reported(rollout, [three], accuracy=0.1)
    assert ticked(rollout, 1.0)[0].state == "rolling", "one alone judges nothing but its own pictures"


def test_back_at_once_is_for_the_nodes_that_are_known_or_for_those_to_come() -> None:
    known_nodes, commands = table.restore(release(), POLICY, 5.0, fleet=fleet())
    assert known_nodes.members == frozenset(NODES) and known_nodes.since == 5.0 and len(commands) == 1
    nobody, _ = table.restore(release(), POLICY, 5.0)
    assert nobody.members == frozenset() and nobody.fleet == {}
    assert holders(nobody) == set(NODES), "whoever comes later has it"


def test_a_wave_that_waits_names_ten_at_most() -> None:
    many = [f"n{i:02d}" for i in range(30)]
    rollout = begun(POLICY.model_copy(update={"waves": [1.0]}), many)
    rollout, notes = ticked(rollout, 100.0)
    assert rollout.state == "halted"
    assert "(waiting: n00, n01, n02, n03, n04, n05, n06, n07, n08, n09)" in notes[0]


def test_a_wave_that_nobody_can_take_says_so_once_and_waits_without_a_word() -> None:
    """All of its members turned out unfit, and named canaries are waited for."""
    rollout = begun(POLICY.model_copy(update={"canaries": ["pi-7"]}))
    rollout = reported(rollout, ["pi-7"], "unfit", why="another machine")
    rollout, first = ticked(rollout, 1.0)
    later, second = ticked(rollout, 2.0)
    assert (first, second) == ([], []) and later.state == "rolling"
    assert ticked(later, 101.0)[0].state == "halted"
