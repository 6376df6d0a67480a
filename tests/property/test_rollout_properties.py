"""Whatever nodes report and operators ask, in whatever order: a roll-out keeps to its rules."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.coordinator.releases.rollouts import ONE, POLICY, fleet, holders, known, release, report

from apiary_coordinator.releases import rollout as table
from apiary_coordinator.releases import rollout_events as words

NODES = [f"n{i}" for i in range(12)]
SETTINGS = settings(max_examples=150)


def steps() -> Any:
    nodes = st.sampled_from(NODES)
    return st.lists(
        st.one_of(
            st.tuples(st.just("report"), nodes, st.sampled_from(["healthy", "testing", "failed", "unfit"])),
            st.tuples(st.just("seen"), nodes, st.booleans()),
            st.tuples(st.just("pass"), st.floats(0, 150), st.none()),
            st.tuples(st.sampled_from(["pause", "resume", "abort"]), st.none(), st.none()),
        ),
        max_size=60,
    )


def event_of(rollout: table.Rollout, step: tuple[str, Any, Any]) -> words.Event:
    what, which, how = step
    match what:
        case "report":
            return known(rollout, which, report=report(rollout, how))
        case "seen":
            return known(rollout, which, here=how)
        case "pause":
            return words.PauseRollout()
        case "resume":
            return words.ResumeRollout()
        case "abort":
            return words.AbortRollout()
        case _:
            return words.RolloutTick()


@SETTINGS
@given(steps())
def test_a_rollout_keeps_to_its_rules(happenings: list[tuple[str, Any, Any]]) -> None:
    now = 0.0
    rollout, _ = table.begin(release(), ONE, POLICY, now, fleet=fleet(NODES))
    for step in happenings:
        now += step[1] if step[0] == "pass" else 0.0
        before = rollout
        rollout, commands = table.handle(rollout, event_of(rollout, step), now)
        held, held_before = holders(rollout, NODES), holders(before, NODES)
        match rollout.state:
            case "halted" | "aborted":
                assert held == set(), "everyone is told to go back"
            case "done":
                assert held == set(NODES)
            case _:
                assert set(rollout.members) <= held
        if held != held_before or rollout.state != before.state:
            assert commands, "what changes for the fleet is said to it"
        if len(held) > len(held_before) and before.state == "rolling" and rollout.wave > before.wave:
            healthy = before.having("healthy", before.members)
            judged = [n for n in before.members if before.verdict(n) != "unfit"]
            assert len(healthy) >= POLICY.min_healthy * len(judged), "no wave goes on without enough healthy"
        if rollout.state == "rolling" and isinstance(event_of(rollout, step), words.RolloutTick):
            failed = rollout.having("failed", before.members)
            assert len(failed) <= POLICY.max_failed * max(1, len(before.members)), (
                "too many failed, and it goes on"
            )


@SETTINGS
@given(steps())
def test_it_ends_once_every_node_answers_well(happenings: list[tuple[str, Any, Any]]) -> None:
    now = 0.0
    rollout, _ = table.begin(release(), ONE, POLICY, now, fleet=fleet(NODES))
    for step in happenings:
        now += step[1] if step[0] == "pass" else 0.0
        rollout, _ = table.handle(rollout, event_of(rollout, step), now)
    for _ in range(2 + 3 * len(POLICY.waves)):
        rollout, _ = table.handle(rollout, words.ResumeRollout(), now)
        for node in NODES:
            heard = known(rollout, node, here=True, report=report(rollout))
            rollout, _ = table.handle(rollout, heard, now)
        rollout, _ = table.handle(rollout, words.RolloutTick(), now)
        now += POLICY.soak_s
        rollout, _ = table.handle(rollout, words.RolloutTick(), now)
    assert rollout.state == "done" and holders(rollout, NODES) == set(NODES)
