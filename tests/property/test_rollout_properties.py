"""Whatever nodes report and operators ask, in whatever order: a roll-out keeps to its rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.coordinator.releases.rollouts import ONE, POLICY, fleet, holders, known, release, report

from apiary.settings import ReleaseSettings
from apiary_coordinator.releases import rollout as table
from apiary_coordinator.releases import rollout_events as words

NODES = [f"n{i}" for i in range(12)]
CHANCES = st.randoms(use_true_random=True)
"""Hypothesis chooses the seed alone: its lists are too short for a wave to become healthy."""
WAYS = {
    ("rolling", "PauseRollout", "paused"),
    ("paused", "ResumeRollout", "rolling"),
    ("rolling", "AbortRollout", "aborted"),
    ("paused", "AbortRollout", "aborted"),
    ("rolling", "RolloutTick", "halted"),
    ("paused", "RolloutTick", "halted"),
    ("rolling", "RolloutTick", "done"),
    ("halted", "ResumeRollout", "rolling"),
    ("aborted", "ResumeRollout", "rolling"),
}
"""Every way from one state into another."""
WAVES = {(0, 1), (1, 2), (2, 0), (1, 0)}
"""And from one wave into another: back where a release is tried again."""

Step = tuple[table.Rollout, words.Event, table.Rollout, list[words.Publish], float]


def any_policy(chance: Random) -> ReleaseSettings:
    canaries = chance.choice([[], [], ["n3"], ["n3", "n7", "absent"]])
    return POLICY.model_copy(update={"canaries": canaries, "max_failed": chance.choice([0.0, 0.2])})


def next_event(chance: Random, rollout: table.Rollout) -> words.Event:
    """Mostly what members of the wave report; now and then what operators ask."""
    if chance.random() < 0.05:
        asked: list[words.Event] = [words.PauseRollout(), words.ResumeRollout(), words.AbortRollout()]
        return chance.choices(asked, [2, 3, 1])[0]
    if chance.random() < 0.3:
        return words.RolloutTick()
    waiting = rollout.having("waiting", rollout.members)
    node = chance.choice(waiting if waiting and chance.random() < 0.8 else NODES)
    if chance.random() < 0.1:
        return known(rollout, node, here=chance.random() < 0.7)
    state = chance.choices(["healthy", "testing", "failed", "unfit"], [30, 2, 1, 1])[0]
    return known(rollout, node, report=report(rollout, state))


def walk(chance: Random) -> Iterator[Step]:
    """A roll-out through some eighty events: before, event, after, commands, now."""
    now = 0.0
    rollout, _ = table.begin(release(), ONE, any_policy(chance), now, fleet=fleet(NODES))
    for _ in range(chance.randint(30, 120)):
        now += chance.choice([0.0, 0.0, 2.0, 11.0, chance.uniform(0, 110)])
        event = next_event(chance, rollout)
        after, commands = table.handle(rollout, event, now)
        yield rollout, event, after, commands, now
        rollout = after


def check(before: table.Rollout, event: words.Event, after: table.Rollout, said: bool) -> None:
    policy, held, held_before = after.policy, holders(after, NODES), holders(before, NODES)
    match after.state:
        case "halted" | "aborted":
            assert held == set(), "everyone is told to go back"
        case "done":
            assert held == set(NODES)
        case _:
            assert set(after.members) <= held
    if held != held_before or after.state != before.state:
        assert said, "what changes for the fleet is said to it"
    if before.state == "rolling" and (after.wave > before.wave or after.state == "done"):
        healthy = before.having("healthy", before.members)
        judged = [n for n in before.members if before.verdict(n) != "unfit"]
        spared = 1 if len(judged) >= table.ENOUGH and policy.min_healthy < 1 else 0
        wanted = min(math.ceil(policy.min_healthy * len(judged)), len(judged) - spared)
        assert len(healthy) >= wanted > 0, "no wave goes on without enough healthy"
        assert after.wave > before.wave or before.wave == len(policy.waves) - 1
    if after.wave == 0 and after.state == "rolling" and policy.canaries:
        assert held <= set(policy.canaries), "named canaries are the first wave, and no others"
    if after.state == "rolling" and isinstance(event, words.RolloutTick):
        failed = after.having("failed", before.members)
        spared = 1 if len(before.members) >= table.ENOUGH and policy.max_failed else 0
        assert len(failed) <= max(policy.max_failed * len(before.members), spared), "too many failed"


def test_a_rollout_keeps_to_its_rules() -> None:
    """And comes into every state by every way, and through every wave."""
    ways: set[tuple[str, str, str]] = set()
    waves: set[tuple[int, int]] = set()

    @given(CHANCES)
    @settings(max_examples=250)
    def any_events(chance: Random) -> None:
        for before, event, after, commands, _ in walk(chance):
            check(before, event, after, bool(commands))
            if after.state != before.state:
                ways.add((before.state, type(event).__name__, after.state))
            if after.wave != before.wave:
                waves.add((before.wave, after.wave))

    any_events()
    assert ways == WAYS
    assert waves >= WAVES


@given(CHANCES)
@settings(max_examples=60)
def test_it_ends_once_every_node_answers_well(chance: Random) -> None:
    *_, (_, _, rollout, _, now) = walk(chance)
    for _ in range(2 + 3 * len(POLICY.waves)):
        rollout, _ = table.handle(rollout, words.ResumeRollout(), now)
        for node in NODES:
            heard = known(rollout, node, here=True, report=report(rollout))
            rollout, _ = table.handle(rollout, heard, now)
        rollout, _ = table.handle(rollout, words.RolloutTick(), now)
        now += POLICY.soak_s
        rollout, _ = table.handle(rollout, words.RolloutTick(), now)
    assert rollout.state == "done" and holders(rollout, NODES) == set(NODES)
