"""Reasons not to train: who gave them, what changes, what is said."""

from __future__ import annotations

from apiary_edge.status.presence import PauseReasons


def test_it_trains_while_nobody_holds_it() -> None:
    assert PauseReasons().why is None


def test_all_reasons_are_said_and_each_is_taken_back_by_who_gave_it() -> None:
    holds = PauseReasons()
    assert holds.set("heat", "84 degrees")
    assert holds.set("operator", "paused by anna")
    assert holds.why == "84 degrees; paused by anna"
    assert holds.set("heat", None)
    assert holds.why == "paused by anna"


def test_saying_the_same_again_changes_nothing() -> None:
    holds = PauseReasons()
    holds.set("heat", "84 degrees")
    assert not holds.set("heat", "84 degrees")
    assert holds.set("heat", "85 degrees")
    assert not holds.set("operator", None)
