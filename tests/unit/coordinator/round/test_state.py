"""Every row of the round's table, and both sides of each bound in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from apiary.wire import NodeId
from apiary.wire.messages import Contributor
from apiary_coordinator.round.state import (
    Abandoned,
    Aggregate,
    Aggregated,
    Announce,
    AskedAgain,
    Close,
    Command,
    Evaluate,
    Evaluated,
    Event,
    Fail,
    Invite,
    Joined,
    Left,
    Phase,
    Round,
    RoundTick,
    UpdateAccepted,
    UpdateRejected,
    handle,
)

A, B, C, D, E = (NodeId(n) for n in "abcde")
GOOD = Contributor(samples=10, bytes=100)
BASE = Round("run", 1, cohort=(A, B, C), reserve=(D, E), goal=3, quorum=2, deadline_at=100.0, lost_grace_s=20)


def after(round_: Round, *events: Event, now: float = 1.0) -> tuple[Round, list[Command]]:
    """The round and all commands after these events."""
    commands: list[Command] = []
    for event in events:
        round_, more = handle(round_, event, now)
        commands += more
    return round_, commands


def accepted(*nodes: NodeId) -> Mapping[NodeId, Contributor]:
    return dict.fromkeys(nodes, GOOD)


def test_the_first_update_opens_collecting_and_only_the_first_is_announced() -> None:
    round_, commands = after(BASE, UpdateAccepted(A, GOOD))
    assert (round_.phase, commands) == (Phase.COLLECTING, [Announce()])
    round_, commands = after(round_, UpdateAccepted(B, GOOD))
    assert (round_.phase, commands) == (Phase.COLLECTING, [])
    assert dict(round_.accepted) == accepted(A, B)


def test_a_round_that_collects_can_be_given_up_and_one_that_aggregates_cannot() -> None:
    for phase in Phase:
        round_, commands = after(replace(BASE, phase=phase), Abandoned("stopped by anna"))
        if phase in (Phase.OPEN, Phase.COLLECTING):
            assert (round_.phase, commands) == (Phase.FAILED, [Fail("stopped by anna")])
        else:
            assert (round_.phase, commands) == (phase, [])


def test_a_node_that_gave_up_can_be_asked_again_and_one_that_was_counted_or_refused_cannot() -> None:
    round_, _ = after(BASE, Left(A, "too hot", final=True), UpdateAccepted(B, GOOD), UpdateRejected(C, "bad"))
    again, commands = after(round_, AskedAgain(A))
    assert commands == [Invite(A)] and again.awaits(A) and again.welcomes(A)
    for node in (B, C, D):
        assert after(again, AskedAgain(node)) == (again, [])


def test_the_goal_ends_collecting() -> None:
    round_, commands = after(BASE, UpdateAccepted(A, GOOD), UpdateAccepted(B, GOOD), UpdateAccepted(C, GOOD))
    assert round_.phase is Phase.AGGREGATING
    assert commands == [Announce(), Announce(), Aggregate()]


def test_a_goal_of_one_announces_once_not_twice() -> None:
    round_, commands = after(replace(BASE, goal=1), UpdateAccepted(A, GOOD))
    assert (round_.phase, commands) == (Phase.AGGREGATING, [Announce(), Aggregate()])


@pytest.mark.parametrize(
    "event", [UpdateAccepted(A, GOOD), UpdateAccepted(D, GOOD)], ids=["twice", "not of the cohort"]
)
def test_updates_that_do_not_count_change_nothing(event: Event) -> None:
    before, _ = after(BASE, UpdateAccepted(A, GOOD))
    assert after(before, event) == (before, [])


def test_a_rejected_node_is_replaced_from_the_reserve_in_order() -> None:
    round_, commands = after(BASE, UpdateRejected(A, "NaN"))
    assert commands == [Invite(D)]
    assert (round_.cohort, round_.reserve) == ((A, B, C, D), (E,))
    assert dict(round_.rejected) == {A: "NaN"}
    assert round_.awaited == [B, C, D]


def test_a_rejected_node_is_not_asked_or_counted_again() -> None:
    round_, _ = after(BASE, UpdateRejected(A, "NaN"))
    assert after(round_, UpdateRejected(A, "NaN"), Left(A, "went", final=True), Joined(A)) == (round_, [])


def test_no_replacement_while_the_over_selected_cohort_suffices() -> None:
    round_, commands = after(replace(BASE, goal=2), UpdateRejected(A, "NaN"))
    assert (round_.reserve, commands) == ((D, E), [])


def test_all_heard_ends_the_round_with_a_quorum() -> None:
    none_left = replace(BASE, reserve=())
    round_, commands = after(
        none_left, UpdateAccepted(A, GOOD), UpdateAccepted(B, GOOD), UpdateRejected(C, "NaN")
    )
    assert round_.phase is Phase.AGGREGATING
    assert commands[-1] == Aggregate()


def test_all_heard_below_the_quorum_fails_with_the_numbers() -> None:
    none_left = replace(BASE, reserve=())
    round_, commands = after(
        none_left, UpdateAccepted(A, GOOD), UpdateRejected(B, "NaN"), Left(C, "too hot", final=True)
    )
    assert round_.phase is Phase.FAILED
    assert commands[-1] == Fail("1 of 3 nodes sent a good update, the quorum is 2; b, for one: NaN")


def test_who_declines_is_gone_at_once_and_replaced() -> None:
    round_, commands = after(BASE, Left(B, "too few pictures", final=True))
    assert commands == [Invite(D)]
    assert dict(round_.gone) == {B: "too few pictures"}


def test_who_vanishes_may_come_back_within_the_grace() -> None:
    round_, commands = after(BASE, Left(B, "connection lost", final=False), now=5.0)
    assert (commands, dict(round_.lost)) == ([], {B: (5.0, "connection lost")})
    assert B in round_.awaited
    round_, commands = after(round_, Joined(B), now=10.0)
    assert (commands, dict(round_.lost)) == ([], {})


def test_a_second_loss_does_not_prolong_the_grace() -> None:
    round_, _ = after(BASE, Left(B, "lost", final=False), now=5.0)
    again, _ = after(round_, Left(B, "lost", final=False), now=15.0)
    assert again.lost[B] == (5.0, "lost")


@pytest.mark.parametrize(("now", "commands"), [(24.9, []), (25.0, [Invite(D)])])
def test_the_grace_ends_on_time(now: float, commands: list[Command]) -> None:
    round_, _ = after(BASE, Left(B, "lost", final=False), now=5.0)
    round_, got = after(round_, RoundTick(), now=now)
    assert got == commands
    assert (B in round_.gone) == bool(commands)


def test_several_graces_may_end_in_one_tick() -> None:
    round_, _ = after(BASE, Left(A, "lost", final=False), Left(B, "lost", final=False), now=0.0)
    round_, commands = after(round_, RoundTick(), now=30.0)
    assert commands == [Invite(D), Invite(E)]
    assert round_.awaited == [C, D, E]


def test_who_comes_back_after_the_grace_joins_again_where_a_place_is_free() -> None:
    alone = replace(BASE, reserve=())
    round_, _ = after(alone, Left(A, "too hot", final=False))
    round_, commands = handle(round_, RoundTick(), 30.0)
    assert (dict(round_.gone), set(round_.away), commands) == ({A: "too hot"}, {A}, [])
    assert round_.welcomes(A) and not round_.awaits(A)
    round_, commands = handle(round_, Joined(A), 40.0)
    assert (dict(round_.gone), round_.away, commands) == ({}, frozenset(), [Invite(A)])
    assert round_.awaits(A)


def test_who_comes_back_to_a_place_that_was_given_away_waits_and_may_still_count() -> None:
    round_, _ = after(BASE, Left(A, "too hot", final=False))
    round_, commands = handle(round_, RoundTick(), 30.0)
    assert commands == [Invite(D)]
    assert handle(round_, Joined(A), 40.0) == (round_, [])
    assert round_.welcomes(A)
    round_, _ = handle(round_, UpdateAccepted(A, GOOD), 50.0)
    assert A in round_.accepted and A not in round_.gone and not round_.away


def test_who_declined_does_not_join_again() -> None:
    round_, _ = after(replace(BASE, reserve=()), Left(A, "too small", final=True))
    assert not round_.welcomes(A) and not round_.welcomes(E)
    assert handle(round_, Joined(A), 40.0) == (round_, [])


def test_nobody_is_welcome_once_collecting_is_over() -> None:
    round_, _ = after(replace(BASE, reserve=()), Left(A, "too hot", final=False))
    round_, _ = handle(round_, RoundTick(), 30.0)
    assert not replace(round_, phase=Phase.AGGREGATING).welcomes(A)


def test_the_grace_of_the_last_one_may_end_the_round() -> None:
    none_left = replace(BASE, reserve=())
    round_, _ = after(
        none_left, UpdateAccepted(A, GOOD), UpdateAccepted(B, GOOD), Left(C, "lost", final=False)
    )
    round_, commands = after(round_, RoundTick(), now=99.0)
    assert (round_.phase, commands) == (Phase.AGGREGATING, [Announce(), Aggregate()])


def test_an_update_of_a_node_given_up_still_counts_and_is_not_called_missing() -> None:
    round_, _ = after(BASE, Left(B, "lost", final=True), UpdateAccepted(B, GOOD))
    assert B in round_.accepted
    assert B not in round_.missing


def test_an_update_ends_the_grace() -> None:
    round_, _ = after(BASE, Left(B, "lost", final=False), UpdateAccepted(B, GOOD))
    assert dict(round_.lost) == {}
    assert after(round_, RoundTick(), now=99.0)[0].gone == {}


def test_a_newcomer_fills_a_free_place_only() -> None:
    stranger = NodeId("z")
    assert after(BASE, Joined(stranger)) == (BASE, [])
    short = replace(BASE, cohort=(A, B), reserve=(D,))
    round_, commands = after(short, Joined(stranger))
    assert commands == [Invite(stranger)]
    assert round_.cohort == (A, B, stranger)
    assert after(round_, Joined(D)) == (round_, [])


def test_a_newcomer_from_the_reserve_leaves_it() -> None:
    round_, _ = after(replace(BASE, cohort=(A, B)), Joined(E))
    assert (round_.cohort, round_.reserve) == ((A, B, E), (D,))


@pytest.mark.parametrize(
    ("now", "counted", "phase"),
    [
        (99.9, (A, B), Phase.OPEN),
        (100.0, (A, B), Phase.AGGREGATING),
        (100.0, (A,), Phase.FAILED),
        (100.0, (), Phase.FAILED),
    ],
)
def test_the_deadline_and_the_quorum(now: float, counted: tuple[NodeId, ...], phase: Phase) -> None:
    round_, commands = after(replace(BASE, accepted=accepted(*counted)), RoundTick(), now=now)
    assert round_.phase is phase
    if phase is Phase.AGGREGATING:
        assert commands == [Announce(), Aggregate()]
    if phase is Phase.FAILED:
        late = 3 - len(counted)
        sent = f"{len(counted)} of 3 nodes sent a good update, the quorum is 2"
        assert commands == [Fail(f"{sent}; {late} of {late} nodes: no update in time")]


def test_who_is_missing_at_the_end_and_why() -> None:
    round_, _ = after(
        BASE, UpdateAccepted(A, GOOD), Left(B, "too hot", final=True), Left(C, "lost", final=False)
    )
    assert round_.missing == {B: "too hot", C: "lost", D: "no update in time"}


def test_the_way_to_closed() -> None:
    round_ = replace(BASE, phase=Phase.AGGREGATING)
    round_, commands = after(round_, Aggregated())
    assert (round_.phase, commands) == (Phase.EVALUATING, [Announce(), Evaluate()])
    round_, commands = after(round_, Evaluated())
    assert (round_.phase, commands) == (Phase.CLOSED, [Close()])


EVENTS: list[Any] = [
    UpdateAccepted(A, GOOD),
    UpdateRejected(A, "NaN"),
    Left(A, "lost", final=False),
    Left(A, "lost", final=True),
    Joined(NodeId("z")),
    RoundTick(),
    Aggregated(),
    Evaluated(),
]
MOVES = {(Phase.AGGREGATING, Aggregated()), (Phase.EVALUATING, Evaluated())}


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("phase", [Phase.AGGREGATING, Phase.EVALUATING, Phase.CLOSED, Phase.FAILED])
def test_after_collecting_nothing_else_has_an_effect(phase: Phase, event: Event) -> None:
    if (phase, event) in MOVES:
        return
    round_ = replace(BASE, phase=phase)
    assert handle(round_, event, 1e9) == (round_, [])


@pytest.mark.parametrize("event", [Aggregated(), Evaluated()])
@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.COLLECTING])
def test_what_belongs_to_a_later_phase_is_ignored(phase: Phase, event: Event) -> None:
    round_ = replace(BASE, phase=phase)
    assert handle(round_, event, 1.0) == (round_, [])
