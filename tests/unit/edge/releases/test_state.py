"""A node's state table for releases: told, fetched, tested, swapped, refused, rolled back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.coordinator.releases.rollouts import release

from apiary.settings import SlotSettings
from apiary_edge.releases import state
from apiary_edge.releases.slot import Findings
from apiary_edge.releases.state import Held, ReleaseState, handle, judge

ONE, TWO = release("one"), release("two")
GOOD = Findings(pictures=20, right=19, right_before=18, inference_ms=5.0)


def held(name: str, **more: Any) -> Held:
    return Held(name, release(name).file.digest, 1, GOOD, **more)


def names(commands: list[state.Command]) -> list[str]:
    return [type(c).__name__ for c in commands]


def after(node: ReleaseState, *events: state.Event) -> tuple[ReleaseState, list[str]]:
    commands: list[state.Command] = []
    for event in events:
        node, commands = handle(node, event)
    return node, names(commands)


HAS_ONE = ReleaseState(state="healthy", wanted=ONE, current=held("one"), tested=GOOD)


def test_a_new_release_is_fetched_tested_and_swapped_in_and_the_old_one_kept() -> None:
    node, did = after(HAS_ONE, state.ReleaseAssigned(TWO))
    assert (node.state, did) == ("fetching", ["FetchRelease", "Report"])
    node, did = after(node, state.ReleaseFetched(TWO.file.digest))
    assert (node.state, did) == ("testing", ["StartTest", "Report"])
    node, did = after(node, state.TrialDone(GOOD))
    assert (node.state, did) == ("healthy", ["Swap", "Report"])
    assert node.current is not None and node.current.release == "two"
    assert node.previous == held("one")


def test_a_release_that_fails_its_test_never_becomes_current() -> None:
    for event, why in (
        (state.TrialDone(GOOD, failed="it has other labels"), "it has other labels"),
        (state.TrialDone(None), "its test gave no reason"),
        (state.TrialDone(replace(GOOD, right=10, right_before=19)), "10 of 20 held-out pictures here right"),
    ):
        node, did = after(HAS_ONE, state.ReleaseAssigned(TWO), state.ReleaseFetched(TWO.file.digest), event)
        assert (node.state, did) == ("failed", ["Refuse", "Report"])
        assert node.why is not None and why in node.why
        assert node.current == held("one")


def test_a_crash_is_tried_again_as_often_as_allowed() -> None:
    node, _ = after(HAS_ONE, state.ReleaseAssigned(TWO), state.ReleaseFetched(TWO.file.digest))
    node, did = after(node, state.TrialCrashed("signal 11"))
    assert (node.state, node.crashes, did) == ("testing", 1, ["StartTest"])
    node, did = after(node, state.TrialCrashed("signal 11"))
    assert (node.state, node.crashes, did) == ("failed", 2, ["Refuse", "Report"])


def test_the_one_before_needs_no_test_when_the_fleet_goes_back() -> None:
    node = ReleaseState(state="healthy", wanted=TWO, current=held("two"), previous=held("one"), tested=GOOD)
    node, did = after(node, state.ReleaseAssigned(ONE))
    assert (node.state, did) == ("healthy", ["Restore", "Report"])
    assert node.current == held("one") and node.previous is None


def test_going_back_while_the_new_one_is_on_its_way_stops_it() -> None:
    node, did = after(HAS_ONE, state.ReleaseAssigned(TWO), state.ReleaseAssigned(ONE))
    assert (node.state, did) == ("healthy", ["StopRelease", "Report"])
    node, did = after(
        HAS_ONE,
        state.ReleaseAssigned(TWO),
        state.ReleaseFetched(TWO.file.digest),
        state.ReleaseAssigned(None),
    )
    assert (node.state, did) == ("none", ["StopRelease", "Clear", "Report"])
    assert node.current is None
    assert after(node, state.TrialDone(GOOD)) == (node, [])


def test_what_is_heard_again_changes_nothing() -> None:
    for node in (HAS_ONE, after(HAS_ONE, state.ReleaseAssigned(TWO))[0]):
        assert node.wanted is not None
        assert after(node, state.ReleaseAssigned(node.wanted)) == (node, [])
    assert after(ReleaseState(), state.ReleaseAssigned(None)) == (ReleaseState(), [])


def test_what_was_refused_or_is_not_for_this_node_is_said_and_left() -> None:
    node, did = after(HAS_ONE, state.ReleaseAssigned(TWO, refused="it crashed"))
    assert (node.state, node.why, did) == ("failed", "it crashed", ["Report"])
    node, did = after(HAS_ONE, state.ReleaseAssigned(TWO, unfit="for armv7"))
    assert (node.state, node.why, did) == ("unfit", "for armv7", ["Report"])
    assert node.current == held("one")
    node, did = after(node, state.ReleaseAssigned(TWO))
    assert node.state == "fetching", "upgraded meanwhile"


def test_another_attempt_is_tried_though_the_one_before_was_refused() -> None:
    node, _ = after(HAS_ONE, state.ReleaseAssigned(TWO, refused="it crashed"))
    again = TWO.model_copy(update={"attempt": 2})
    assert after(node, state.ReleaseAssigned(again))[0].state == "fetching"


def test_a_release_that_fails_in_use_is_rolled_back_and_refused() -> None:
    node = ReleaseState(state="healthy", wanted=TWO, current=held("two"), previous=held("one"), tested=GOOD)
    node, did = after(node, state.InUse(TWO.file.digest, "crashed 6 times in a row"))
    assert (node.state, did) == ("failed", ["Refuse", "Restore", "Report"])
    assert node.current == held("one")
    assert after(node, state.InUse(TWO.file.digest, "late")) == (node, [])


def test_a_full_disk_is_said_once_and_is_no_verdict() -> None:
    node, did = after(HAS_ONE, state.ReleaseAssigned(TWO), state.FetchFailed("the disk is full"))
    assert (node.state, node.why, did) == ("fetching", "the disk is full", ["Report"])
    assert after(node, state.FetchFailed("the disk is full")) == (node, [])
    assert after(node, state.ReleaseFetched(TWO.file.digest))[0].why is None


def test_a_file_that_is_another_is_refused() -> None:
    node, did = after(HAS_ONE, state.ReleaseAssigned(TWO), state.Spoiled("sha256 differs"))
    assert (node.state, did) == ("failed", ["Refuse", "Report"])


@pytest.mark.parametrize(
    ("right", "before", "good"),
    [(95, 100, True), (94, 100, False), (99, 100, True), (100, 94, True), (0, None, True)],
)
def test_a_drop_is_allowed_up_to_the_limit(right: int, before: int | None, *, good: bool) -> None:
    assert (judge(Findings(100, right, before, 1.0), SlotSettings(max_accuracy_drop=0.05)) is None) == good


def test_with_few_pictures_one_more_that_is_wrong_is_no_difference() -> None:
    limits = SlotSettings(max_accuracy_drop=0.0, min_pictures=10)
    assert judge(Findings(10, 9, 10, 1.0), limits) is None
    assert judge(Findings(10, 8, 10, 1.0), limits) is not None
    assert judge(Findings(9, 0, 9, 1.0), limits) is None, "fewer than min_pictures decide nothing"


def test_the_other_limits() -> None:
    assert judge(Findings(0, 0, None, 51.0), SlotSettings(max_inference_ms=50.0)) == (
        "51 ms a picture, expected at most 50 (edge.slots.max_inference_ms)"
    )
    assert judge(Findings(20, 11, None, 1.0), SlotSettings(min_accuracy=0.6)) is not None
    assert judge(Findings(20, 12, None, 1.0), SlotSettings(min_accuracy=0.6)) is None


def test_a_new_release_begins_without_the_crashes_and_the_reason_of_the_one_before() -> None:
    before = replace(HAS_ONE, why="its test ended by signal 11", crashes=1)
    node, _ = after(before, state.ReleaseAssigned(TWO))
    assert (node.wanted, node.tested, node.crashes, node.why) == (TWO, None, 0, None)


def test_what_is_just_within_a_limit_is_good() -> None:
    tested = Findings(pictures=20, right=10, right_before=None, inference_ms=5.0)
    at_limits = SlotSettings(max_inference_ms=5.0, min_accuracy=0.5, min_pictures=20)
    assert judge(tested, at_limits) is None
    assert judge(replace(tested, inference_ms=5.01), at_limits) is not None
    assert judge(replace(tested, right=9), at_limits) is not None
    few = at_limits.model_copy(update={"min_pictures": 21})
    assert judge(replace(tested, right=0), few) is None, "too few pictures decide nothing"


def test_what_fails_in_use_is_not_the_one_that_is_on_its_way() -> None:
    fetching, _ = after(HAS_ONE, state.ReleaseAssigned(TWO))
    before = replace(fetching, previous=held("zero"))
    node, did = after(before, state.InUse(ONE.file.digest, "it crashes"))
    assert (node.state, node.why) == ("fetching", None) and did == ["Refuse", "Restore", "Report"]
    assert node.current == held("zero") and node.previous is None
    same, did = after(before, state.InUse("0" * 64, "another model"))
    assert same == before and did == []


def test_no_release_any_more_clears_all_of_it_once() -> None:
    node, did = after(
        replace(HAS_ONE, previous=held("zero"), why="x", crashes=2), state.ReleaseAssigned(None)
    )
    assert node == ReleaseState() and did == ["StopRelease", "Clear", "Report"]
    assert after(node, state.ReleaseAssigned(None)) == (node, [])


# -- what each event leaves alone, and what its commands carry


FETCHING = after(HAS_ONE, state.ReleaseAssigned(TWO))[0]
TESTING = after(FETCHING, state.ReleaseFetched(TWO.file.digest))[0]
FAILED = after(TESTING, state.TrialDone(None))[0]
UNFIT = after(HAS_ONE, state.ReleaseAssigned(TWO, unfit="for armv7"))[0]
NOTHING = ReleaseState()
STATES = {n.state: n for n in (NOTHING, FETCHING, TESTING, HAS_ONE, FAILED, UNFIT)}


@pytest.mark.parametrize(
    ("event", "fits"),
    [
        (state.ReleaseFetched(TWO.file.digest), {"fetching"}),
        (state.ReleaseFetched(ONE.file.digest), set()),
        (state.FetchFailed("the disk is full"), {"fetching", "testing"}),
        (state.Spoiled("sha256 differs"), {"fetching", "testing"}),
        (state.TrialDone(GOOD), {"testing"}),
        (state.TrialCrashed("signal 11"), {"testing"}),
        (state.InUse(ONE.file.digest, "it crashes"), {"fetching", "testing", "healthy", "failed", "unfit"}),
        (state.InUse(TWO.file.digest, "it crashes"), set()),
    ],
)
def test_what_does_not_fit_the_state_changes_nothing(event: state.Event, fits: set[str]) -> None:
    for name, node in STATES.items():
        changed, did = after(node, event)
        assert (changed != node) == (name in fits) and bool(did) == (name in fits), name


def test_commands_carry_the_release_its_attempt_and_what_was_found() -> None:
    third = TWO.model_copy(update={"attempt": 3})
    node, commands = handle(HAS_ONE, state.ReleaseAssigned(third))
    assert commands == [state.FetchRelease(third), state.Report()]
    node, commands = handle(node, state.ReleaseFetched(third.file.digest))
    assert commands == [state.StartTest(third), state.Report()]
    node, commands = handle(node, state.TrialCrashed("signal 11"))
    assert commands == [state.StartTest(third)]
    refused, commands = handle(node, state.TrialCrashed("signal 6"))
    assert commands == [state.Refuse("two", 3, "signal 6"), state.Report()] and refused.why == "signal 6"
    healthy, commands = handle(node, state.TrialDone(GOOD))
    assert commands == [state.Swap(third, GOOD), state.Report()]
    assert healthy.current == Held("two", third.file.digest, 3, GOOD)
    assert (healthy.tested, healthy.why) == (GOOD, None)
    failed, commands = handle(node, state.TrialDone(GOOD, failed="other labels"))
    assert commands == [state.Refuse("two", 3, "other labels"), state.Report()] and failed.tested == GOOD
    back, commands = handle(healthy, state.InUse(third.file.digest, "it crashes"))
    assert commands == [state.Refuse("two", 3, "it crashes"), state.Restore(None), state.Report()]
    assert (back.state, back.why) == ("failed", "it crashes")
    assert back.crashes == healthy.crashes + 1


def test_another_attempt_at_the_release_that_is_here_needs_no_test() -> None:
    again = ONE.model_copy(update={"attempt": 2})
    for node in (replace(HAS_ONE, tested=None), replace(FAILED, previous=held("zero")), UNFIT):
        found, did = after(node, state.ReleaseAssigned(again, unfit="for armv7"))
        assert (found.state, found.wanted, found.why, did) == ("healthy", again, None, ["Report"])
        assert found.current == replace(held("one"), attempt=2) and found.tested == GOOD
        assert found.previous == node.previous


def test_going_back_names_the_attempt_that_is_asked_for_and_stops_what_is_on_its_way() -> None:
    again = ONE.model_copy(update={"attempt": 2})
    has_two = ReleaseState(state="healthy", wanted=TWO, current=held("two"), previous=held("one"))
    for node, stop in ((has_two, []), (replace(FETCHING, previous=held("one"), current=held("two")), [1])):
        found, commands = handle(node, state.ReleaseAssigned(again))
        assert commands == [*(state.StopRelease() for _ in stop), state.Restore(again), state.Report()]
        assert (found.state, found.wanted, found.tested) == ("healthy", again, GOOD)
        assert (found.current, found.previous) == (replace(held("one"), attempt=2), None)


@pytest.mark.parametrize("more", [{"refused": "it crashed"}, {"unfit": "for armv7"}, {}])
def test_another_assignment_stops_what_is_on_its_way_and_only_that(more: dict[str, Any]) -> None:
    three = release("three")
    for name, node in STATES.items():
        if name != "none":
            _, did = after(node, state.ReleaseAssigned(three, **more))
            assert ("StopRelease" in did) == (name in ("fetching", "testing")), name


def test_who_holds_nothing_of_the_kind_fetches_it() -> None:
    node, did = after(NOTHING, state.ReleaseAssigned(ONE))
    assert (node.state, node.current, did) == ("fetching", None, ["FetchRelease", "Report"])
    node, _ = after(node, state.ReleaseFetched(ONE.file.digest), state.TrialDone(GOOD))
    assert (node.state, node.current, node.previous) == ("healthy", held("one"), None)


def test_a_release_that_failed_is_tried_again_where_it_is_no_longer_refused() -> None:
    node, did = after(FAILED, state.ReleaseAssigned(TWO))
    assert (node.state, node.why, did) == ("fetching", None, ["FetchRelease", "Report"])


def test_the_same_file_under_another_name_keeps_the_one_before() -> None:
    copy = TWO.model_copy(update={"name": "copy"})
    node = ReleaseState(state="healthy", wanted=TWO, current=held("two"), previous=held("one"))
    node, _ = after(
        node, state.ReleaseAssigned(copy), state.ReleaseFetched(copy.file.digest), state.TrialDone(GOOD)
    )
    assert node.current is not None and node.current.release == "copy"
    assert node.previous == held("one"), "not itself"


def test_a_node_that_was_never_assigned_anything_gives_up_what_it_has() -> None:
    """So it stands after a start: what the store holds, and no assignment yet."""
    started = ReleaseState(current=held("one"))
    assert after(started, state.ReleaseAssigned(None)) == (NOTHING, ["StopRelease", "Clear", "Report"])
    node, did = after(started, state.InUse(ONE.file.digest, "it crashes"))
    assert (node.state, node.current, node.why) == ("none", None, None)
    assert did == ["Refuse", "Restore", "Report"]
    for node in (FETCHING, replace(FETCHING, current=None), UNFIT):
        assert after(node, state.ReleaseAssigned(None)) == (NOTHING, ["StopRelease", "Clear", "Report"])


def test_what_fails_in_use_leaves_the_reason_of_what_is_assigned() -> None:
    full, _ = after(FETCHING, state.FetchFailed("the disk is full"))
    node, _ = after(full, state.InUse(ONE.file.digest, "it crashes"))
    assert (node.state, node.why) == ("fetching", "the disk is full")


def test_a_full_disk_is_said_during_a_test_too() -> None:
    node, did = after(TESTING, state.FetchFailed("the disk is full"))
    assert (node.state, node.why, did) == ("testing", "the disk is full", ["Report"])
    assert after(node, state.FetchFailed("read-only"))[1] == ["Report"]
    assert after(node, state.TrialDone(GOOD))[0].why is None


def test_what_a_verdict_says() -> None:
    limits = SlotSettings(min_accuracy=0.6, max_accuracy_drop=0.05)
    assert judge(Findings(20, 11, 12, 1.0), limits) == (
        "11 of 20 held-out pictures here right, expected 60% (edge.slots.min_accuracy)"
    )
    assert judge(Findings(20, 13, 15, 1.0), limits) == (
        "13 of 20 held-out pictures here right, 15 by the present release: worse than "
        "edge.slots.max_accuracy_drop = 0.05 allows"
    )
    assert judge(Findings(20, 20, None, 9e9), SlotSettings(max_inference_ms=None)) is None
    assert judge(Findings(0, 0, None, 1.0), SlotSettings(min_accuracy=0.6, min_pictures=1)) is None
