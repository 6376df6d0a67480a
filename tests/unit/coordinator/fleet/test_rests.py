"""How long a node that declined is not drawn."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary_coordinator.fleet.rests import FIRST_S, LONGEST_S, Rests

A = NodeId("a")


def status(**more: Any) -> NodeStatus:
    base = {"state": "ready", "samples": 10, "labels": {"cat": 10}, "session": "s1"}
    return NodeStatus.model_validate({**base, **more})


def test_the_pause_doubles_up_to_its_bound() -> None:
    rests, now, pauses = Rests(), 0.0, []
    for _ in range(9):
        rests.declined(A, status(), "too few", now)
        rest = rests.resting(A, status(), now)
        assert rest is not None and rest.why == "declined: too few"
        pauses.append(rest.until - now)
        assert rests.resting(A, status(), rest.until - 0.1) is rest
        assert rests.resting(A, status(), rest.until) is None
        now = rest.until
    assert pauses[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert pauses[-1] == LONGEST_S


@pytest.mark.parametrize(
    "change",
    [{"samples": 11}, {"labels": {"cat": 9, "dog": 1}}, {"session": "s2"}],
    ids=lambda c: next(iter(c)),
)
def test_other_samples_or_a_new_process_end_it(change: dict[str, Any]) -> None:
    rests = Rests()
    rests.declined(A, status(), "no", 0.0)
    rests.declined(A, status(), "no", 0.0)
    assert rests.resting(A, status(why="another word", state="training"), 1.0) is not None
    assert rests.resting(A, status(**change), 1.0) is None
    rests.declined(A, status(**change), "no", 2.0)
    rest = rests.resting(A, status(**change), 2.0)
    assert rest is not None and rest.until == 2.0 + FIRST_S


def test_a_node_that_says_little_of_itself_rests_as_well() -> None:
    rests, bare = Rests(), NodeStatus(state="ready")
    rests.declined(A, bare, "no", 0.0)
    assert rests.resting(A, bare, 1.0) is not None
    assert rests.resting(A, status(), 1.0) is None


def test_an_update_that_was_accepted_ends_it() -> None:
    rests = Rests()
    rests.declined(A, status(), "no", 0.0)
    rests.took_part(A)
    rests.took_part(NodeId("b"))
    assert rests.resting(A, status(), 0.0) is None


def test_a_second_miss_in_a_row_is_a_rest_that_doubles_and_ends_with_another_process() -> None:
    rests = Rests()
    rests.missed(A, 300.0, 0.0)
    assert rests.resting(A, status(), 1.0) is None
    rests.missed(A, 300.0, 300.0)
    rest = rests.resting(A, status(), 301.0)
    assert rest is not None and rest.why == "no update in time, 2 rounds in a row"
    assert rests.resting(A, status(), 599.9) is not None and rests.resting(A, status(), 600.0) is None
    rests.missed(A, 20.0, 900.0)
    assert rests.resting(A, status(), 900.0 + 2 * FIRST_S - 0.1) is not None
    assert rests.resting(A, status(session="s2"), 901.0) is None
    rests.took_part(A)
    rests.missed(A, 300.0, 2000.0)
    assert rests.resting(A, status(), 2000.0) is None
