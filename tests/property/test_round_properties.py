"""Whatever happens in whatever order, a round keeps its promises."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
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

NODES = [NodeId(f"n{i}") for i in range(8)]
CHANCES = st.randoms(use_true_random=True)
"""Hypothesis chooses the seed alone: its lists are short, and seldom get a round beyond its first phase."""
ORDER = list(Phase)
OPEN, COLLECTING, AGGREGATING, EVALUATING, CLOSED, FAILED = Phase
TRANSITIONS = {
    *((OPEN, UpdateAccepted, to) for to in (COLLECTING, AGGREGATING, FAILED)),
    *((COLLECTING, kind, AGGREGATING) for kind in (UpdateAccepted, UpdateRejected, Left, RoundTick)),
    *((OPEN, kind, FAILED) for kind in (UpdateRejected, Left, RoundTick, Abandoned)),
    *((COLLECTING, kind, FAILED) for kind in (UpdateAccepted, UpdateRejected, Left, RoundTick, Abandoned)),
    (AGGREGATING, Aggregated, EVALUATING),
    (EVALUATING, Evaluated, CLOSED),
}
"""Every way from one phase into another."""


def any_round(chance: Random) -> Round:
    cohort = chance.randint(1, 4)
    goal = chance.randint(1, cohort)
    return Round(
        run="r",
        number=1,
        cohort=tuple(NODES[:cohort]),
        reserve=tuple(NODES[cohort : cohort + chance.randint(0, 2)]),
        goal=goal,
        quorum=chance.randint(1, goal),
        deadline_at=chance.choice([20.0, 90.0, 400.0]),
        lost_grace_s=chance.uniform(0, 25),
    )


def any_event(chance: Random, round_: Round) -> Event:
    node = chance.choice(chance.choice([NODES, round_.awaited or NODES, sorted(round_.gone) or NODES]))
    match chance.randrange(8):
        case 0 | 1:
            return UpdateAccepted(node, Contributor(samples=chance.randint(1, 9), bytes=1))
        case 2:
            return UpdateRejected(node, "bad")
        case 3:
            return Left(node, "left", final=chance.random() < 0.5)
        case 4:
            return Joined(chance.choice([node, *sorted(round_.away | round_.lost.keys())]))
        case 5:
            return AskedAgain(node)
        case _:
            return RoundTick()


def next_event(chance: Random, round_: Round) -> Event:
    """Mostly what fits the phase; one in ten that ends the round would let none of them come anywhere."""
    if chance.random() < 0.03:
        odd: list[Event] = [Abandoned("stopped"), Aggregated(), Evaluated()]
        return chance.choice(odd)
    if round_.phase is Phase.AGGREGATING and chance.random() < 0.5:
        return Aggregated()
    if round_.phase is Phase.EVALUATING and chance.random() < 0.5:
        return Evaluated()
    return any_event(chance, round_)


def walk(chance: Random) -> Iterator[tuple[Round, Event, Round, list[Any], float]]:
    """A round from its beginning through some forty events: before, event, after, commands, now."""
    round_, now = any_round(chance), 0.0
    for _ in range(chance.randint(20, 60)):
        now += chance.choice([0.0, 0.0, chance.uniform(0, 20)])
        event = next_event(chance, round_)
        after, commands = handle(round_, event, now)
        yield round_, event, after, commands, now
        round_ = after


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


def changes(before: Round, event: Event, after: Round, commands: list[Any]) -> set[str]:
    """What happened to a node, by name: each must have been tried."""
    invited = [c.node for c in commands if isinstance(c, Invite)]
    node = getattr(event, "node", None)
    return {
        name
        for name, so in {
            "a reserve takes a free place": any(n in before.reserve for n in invited),
            "a stranger takes a free place": isinstance(event, Joined) and node not in before.reserve
            and node in invited and node not in before.cohort,
            "one that was away joins again": isinstance(event, Joined) and node in before.away
            and node in invited,
            "a lost one is back within its grace": isinstance(event, Joined) and node in before.lost,
            "there is no place to join": isinstance(event, Joined)
            and before.collecting
            and node not in before.cohort
            and after == before,
            "a lost one is given up": isinstance(event, RoundTick) and len(after.away) > len(before.away),
            "a lost one is rejected": isinstance(event, UpdateRejected) and node in before.lost,
            "a lost one is accepted": isinstance(event, UpdateAccepted) and node in before.lost,
            "one given up is rejected": isinstance(event, UpdateRejected) and node in before.gone,
            "one given up is accepted": isinstance(event, UpdateAccepted) and node in before.away,
            "one that declined tries again": isinstance(event, AskedAgain) and node in before.gone,
            "the goal is met with others awaited": after.phase is Phase.AGGREGATING
            and before.collecting and bool(after.awaited),
        }.items()
        if so
    }  # fmt: skip


ALL_CHANGES = {
    "a reserve takes a free place",
    "a stranger takes a free place",
    "one that was away joins again",
    "a lost one is back within its grace",
    "there is no place to join",
    "a lost one is given up",
    "a lost one is rejected",
    "a lost one is accepted",
    "one given up is rejected",
    "one given up is accepted",
    "one that declined tries again",
    "the goal is met with others awaited",
}


def test_any_events() -> None:
    """And they come into every phase by every way, and do to nodes all that can be done."""
    ways: set[tuple[Phase, type[Event], Phase]] = set()
    seen: set[str] = set()

    @given(CHANCES)
    @settings(max_examples=1000)
    def any_events(chance: Random) -> None:
        for before, event, after, commands, _ in walk(chance):
            check(before, event, after, commands)
            seen.update(changes(before, event, after, commands))
            if after.phase is not before.phase:
                ways.add((before.phase, type(event), after.phase))

    any_events()
    assert ways == TRANSITIONS
    assert seen == ALL_CHANGES


@given(CHANCES)
@settings(max_examples=200)
def test_no_round_lasts_past_its_deadline(chance: Random) -> None:
    *_, (_, _, round_, _, now) = walk(chance)
    round_, _ = handle(round_, RoundTick(), max(now, round_.deadline_at))
    assert not round_.collecting


@given(CHANCES)
@settings(max_examples=200)
def test_time_that_stands_still_says_nothing_twice(chance: Random) -> None:
    *_, (_, _, round_, _, now) = walk(chance)
    round_, _ = handle(round_, RoundTick(), now)
    assert handle(round_, RoundTick(), now) == (round_, [])
