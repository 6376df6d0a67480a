"""Whatever happens in whatever order, a round keeps its promises."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from apiary.wire import NodeId
from apiary.wire.messages import Contributor
from apiary_coordinator.round.state import (
    Abandoned,
    Aggregate,
    Aggregated,
    Announce,
    AskedAgain,
    Close,
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

NODES = [NodeId(f"n{i}") for i in range(9)]
NODE = st.sampled_from(NODES)
EVENT = st.one_of(
    st.builds(UpdateAccepted, NODE, st.builds(Contributor, samples=st.integers(1, 9), bytes=st.just(1))),
    st.builds(UpdateRejected, NODE, st.just("bad")),
    st.builds(Left, NODE, st.just("left"), st.booleans()),
    st.builds(Joined, NODE),
    st.just(RoundTick()),
    st.builds(AskedAgain, NODE),
    st.builds(Abandoned, st.just("stopped")),
    st.just(Aggregated()),
    st.just(Evaluated()),
)
STEPS = st.lists(st.tuples(EVENT, st.floats(0, 30)), max_size=60)
ORDER = list(Phase)


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    cohort = draw(st.integers(1, 6))
    goal = draw(st.integers(1, cohort))
    return Round(
        run="r",
        number=1,
        cohort=tuple(NODES[:cohort]),
        reserve=tuple(NODES[cohort : cohort + draw(st.integers(0, 3))]),
        goal=goal,
        quorum=draw(st.integers(1, goal)),
        deadline_at=draw(st.floats(1, 500)),
        lost_grace_s=draw(st.floats(0, 60)),
    )


def check(before: Round, event: Event, after: Round, commands: list[Any]) -> None:
    sets = [set(s) for s in (after.accepted, after.rejected, after.gone, after.lost)]
    everyone = set().union(*sets)
    assert sum(map(len, sets)) == len(everyone), "a node is in two states at once"
    assert everyone <= set(after.cohort), "a stranger has a state"
    assert len(set(after.cohort)) == len(after.cohort)
    assert not set(after.cohort) & set(after.reserve)
    assert after.open_places == len(after.awaited)
    assert not set(after.missing) & set(after.accepted)
    assert set(after.missing) | set(after.accepted) | set(after.rejected) == set(after.cohort)
    # Never backwards, never past the goal, never a word more once it is over.
    assert ORDER.index(after.phase) >= ORDER.index(before.phase)
    assert len(after.accepted) <= after.goal
    assert set(before.accepted.items()) <= set(after.accepted.items()), "a counted update changed"
    if not before.collecting:
        assert (after.accepted, after.cohort) == (before.accepted, before.cohort)
    if before.phase in (Phase.CLOSED, Phase.FAILED):
        assert (after, commands) == (before, [])
    # Each new member is invited, and of the others only those that had been given up.
    invited = [c.node for c in commands if isinstance(c, Invite)]
    assert [*before.cohort, *(n for n in invited if n not in before.cohort)] == list(after.cohort)
    assert all(n in before.gone and after.awaits(n) for n in invited if n in before.cohort)
    # A phase is entered with its command, and a command comes with its phase.
    entered = after.phase if after.phase is not before.phase else None
    kinds = [type(c) for c in commands]
    assert kinds.count(Aggregate) == (entered is Phase.AGGREGATING)
    assert kinds.count(Evaluate) == (entered is Phase.EVALUATING)
    assert kinds.count(Close) == (entered is Phase.CLOSED)
    assert kinds.count(Fail) == (entered is Phase.FAILED)
    assert kinds.count(Announce) <= 1
    if entered is Phase.AGGREGATING:
        assert len(after.accepted) >= after.quorum
    if entered is Phase.FAILED and not isinstance(event, Abandoned):
        assert len(after.accepted) < after.quorum
    assert (after.phase is Phase.OPEN) <= (not after.accepted)


@given(rounds(), STEPS)
@settings(max_examples=400)
def test_any_events(round_: Round, steps: list[tuple[Event, float]]) -> None:
    now = 0.0
    for event, passed in steps:
        now += passed
        after, commands = handle(round_, event, now)
        check(round_, event, after, commands)
        round_ = after


@given(rounds(), STEPS)
@settings(max_examples=200)
def test_no_round_lasts_past_its_deadline(round_: Round, steps: list[tuple[Event, float]]) -> None:
    now = 0.0
    for event, passed in steps:
        now += passed
        round_, _ = handle(round_, event, now)
    round_, _ = handle(round_, RoundTick(), max(now, round_.deadline_at))
    assert not round_.collecting


@given(rounds(), STEPS)
@settings(max_examples=200)
def test_time_that_stands_still_says_nothing_twice(round_: Round, steps: list[tuple[Event, float]]) -> None:
    now = 0.0
    for event, passed in steps:
        now += passed
        round_, _ = handle(round_, event, now)
    round_, _ = handle(round_, RoundTick(), now)
    assert handle(round_, RoundTick(), now) == (round_, [])
