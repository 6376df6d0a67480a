"""When a guest rests, when it goes on, and what it does not begin: frozen readings, a clock that is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apiary.settings import GuestSettings
from apiary.wire.messages import Announcement, BlobRef, Bounds, Needs, Plan
from apiary_edge import hours
from apiary_edge.guest.round_needs import RoundNeeds, room_for, too_small
from apiary_edge.guest.rules import Reason, TrainingPause, advance, in_vain, judge, opens_in_s
from apiary_edge.health.readings import MB, Heat, Readings
from apiary_edge.hours import Hours

WELL = Readings(
    heat=Heat("cpu-thermal", 60.0),
    throttled=0,
    memory_available=400 * MB,
    disk_free=4000 * MB,
)
GUEST = GuestSettings()
NIGHT = hours.parse(["22:00-06:00"], "test")


def why(found: Readings, *held: Reason, wanted: int = 0, **settings: Any) -> dict[Reason, str]:
    guest = GUEST.model_copy(update=settings)
    return judge(found, guest, Hours(), 0, held=dict.fromkeys(held, "x"), wanted_memory=wanted)


def hot(celsius: float) -> Readings:
    return replace(WELL, heat=Heat("cpu-thermal", celsius))


def test_a_machine_that_is_well_trains_and_so_does_one_that_says_nothing() -> None:
    assert why(WELL) == {} and why(Readings()) == {}
    assert why(Readings(), *Reason) == {}


@pytest.mark.parametrize(
    ("celsius", "held", "rests"),
    [(80.0, False, False), (80.1, False, True), (75.1, True, True), (75.0, True, False)],
)
def test_heat_rests_above_and_goes_on_well_below(celsius: float, held: bool, rests: bool) -> None:
    found = why(hot(celsius), *([Reason.HEAT] if held else []))
    assert (Reason.HEAT in found) is rests


def test_what_the_reasons_say() -> None:
    found = replace(hot(81.2), throttled=0x10001, memory_available=20 * MB, disk_free=50 * MB)
    assert judge(found, GUEST.model_copy(update={"hours": ["22:00-06:00"]}), NIGHT, 720, held={}) == {
        Reason.HEAT: "81 degrees Celsius, more than 80 (edge.guest.max_temperature_c); goes on at 75",
        Reason.POWER: "under-voltage: the power supply or its cable is too weak",
        Reason.HOURS: "outside edge.guest.hours (22:00-06:00)",
        Reason.MEMORY: "20 MB of memory available, less than 48 (edge.guest.min_memory_mb)",
        Reason.DISK: "50 MB left on the disk, less than 100 (edge.guest.min_disk_mb)",
    }


def test_only_an_under_voltage_of_now_counts_and_it_can_be_switched_off() -> None:
    assert why(replace(WELL, throttled=0x10000)) == {}
    assert set(why(replace(WELL, throttled=0x1))) == {Reason.POWER}
    assert why(replace(WELL, throttled=0x1), pause_on_under_voltage=False) == {}


def test_the_heat_of_a_pc_is_not_judged() -> None:
    assert why(replace(WELL, heat=Heat("x86_pkg_temp", 97.0))) == {}


@pytest.mark.parametrize(("megabytes", "rests"), [(59, True), (60, False)])
def test_memory_that_was_short_must_be_there_again_with_something_to_spare(
    megabytes: int, rests: bool
) -> None:
    found = replace(WELL, memory_available=megabytes * MB)
    assert (Reason.MEMORY in why(found, Reason.MEMORY)) is rests
    assert why(found) == {}


def test_what_was_ended_for_its_memory_waits_until_all_of_it_would_fit() -> None:
    found = replace(WELL, memory_available=150 * MB)
    assert why(found, Reason.MEMORY, wanted=100 * MB)
    assert not why(replace(WELL, memory_available=160 * MB), Reason.MEMORY, wanted=100 * MB)


@pytest.mark.parametrize(
    ("megabytes", "held", "rests"), [(99, False, True), (100, False, False), (124, True, True)]
)
def test_a_full_disk(megabytes: int, held: bool, rests: bool) -> None:
    found = why(replace(WELL, disk_free=megabytes * MB), *([Reason.DISK] if held else []))
    assert (Reason.DISK in found) is rests


@pytest.mark.parametrize(
    ("minute", "rests"), [(719, True), (1319, True), (1320, False), (0, False), (360, True)]
)
def test_hours(minute: int, rests: bool) -> None:
    assert (Reason.HOURS in judge(WELL, GUEST, NIGHT, minute, held={})) is rests


@pytest.mark.parametrize(("minute", "seconds"), [(1320, 0), (1319, 60), (360, 57_600), (0, 0)])
def test_when_the_hours_begin_again(minute: int, seconds: float) -> None:
    assert opens_in_s(NIGHT, minute) == seconds
    assert opens_in_s(Hours(), minute) == 0


def test_the_hours_of_tomorrow_come_after_midnight() -> None:
    assert opens_in_s(hours.parse(["08:00-18:00"], "test"), 18 * 60 + 20) == (24 - 18 + 8) * 3600 - 20 * 60


def test_a_pause_ends_once_all_was_well_for_a_while_and_not_in_between() -> None:
    heat = {Reason.HEAT: "81"}
    pause = advance(TrainingPause(), heat, 100.0, settle_s=30.0)
    assert (pause.why, pause.since) == (heat, 100.0)
    pause = advance(pause, {Reason.HEAT: "82"}, 105.0, settle_s=30.0)
    assert (pause.text, pause.since) == ("81", 100.0)
    pause = advance(pause, {}, 110.0, settle_s=30.0)
    assert pause.text == "81"
    pause = advance(pause, {Reason.POWER: "weak"}, 120.0, settle_s=30.0)
    assert pause.text == "weak" and pause.since == 100.0
    pause = advance(pause, {}, 130.0, settle_s=30.0)
    assert advance(pause, {}, 159.9, settle_s=30.0)
    assert not advance(pause, {}, 160.0, settle_s=30.0)


def test_the_end_of_the_hours_is_not_waited_out() -> None:
    pause = advance(TrainingPause(), {Reason.HOURS: "day"}, 0.0, settle_s=30.0)
    assert not advance(pause, {}, 1.0, settle_s=30.0)


def test_the_well_stay_well() -> None:
    assert advance(TrainingPause(), {}, 5.0, settle_s=30.0) == TrainingPause()


@pytest.mark.parametrize("reason", list(Reason))
def test_what_frees_memory_and_what_only_rests(reason: Reason) -> None:
    pause = advance(TrainingPause(), {reason: "x"}, 0.0, settle_s=30.0)
    assert pause.frees_memory(0.0, GUEST) is (reason in (Reason.HOURS, Reason.MEMORY, Reason.DISK))
    assert pause.frees_memory(GUEST.freeze_s, GUEST)
    assert not TrainingPause().frees_memory(1e9, GUEST)


def test_a_reason_that_does_not_pass_soon_frees_memory_whatever_else_applies() -> None:
    pause = advance(TrainingPause(), {Reason.HEAT: "hot", Reason.HOURS: "day"}, 0.0, settle_s=30.0)
    assert pause.frees_memory(0.0, GUEST)
    assert pause.text == "hot; day"


@pytest.mark.parametrize(
    ("reason", "left_s", "opens_s", "vain"),
    [
        (Reason.HEAT, None, 0.0, False),
        (Reason.HEAT, 399.0, 0.0, False),
        (Reason.HEAT, 400.0, 0.0, True),
        (Reason.HOURS, None, 399.0, False),
        (Reason.HOURS, None, 400.0, True),
        (Reason.HOURS, 200.0, 200.0, True),
        (Reason.HEAT, 200.0, 1e6, False),
    ],
)
def test_a_pause_that_cannot_end_in_time_is_given_up(
    reason: Reason, left_s: float | None, opens_s: float, vain: bool
) -> None:
    pause = TrainingPause({reason: "the reason"}, since=0.0)
    said = in_vain(pause, now=100.0, ends_at=500.0, left_s=left_s, opens_s=opens_s)
    assert said == ("paused beyond the round's deadline: the reason" if vain else None)
    assert in_vain(TrainingPause(), now=1e9, ends_at=0.0, left_s=1e9, opens_s=1e9) is None


# -- room


def announcement(**changed: Any) -> Announcement:
    ref = BlobRef(digest="a" * 64, bytes=840_000)
    told: dict[str, Any] = {
        "run": "r", "round": 1, "state": "open", "rounds": 2, "epoch": "e", "labels": ["a", "b"],
        "model": ref, "manifest": ref, "trainer": ref, "plan": Plan(batch_size=16), "bounds": Bounds(),
        "deadline_s": 100.0, "needs": Needs(picture_bytes=27_648, activations=293_544),
    }  # fmt: skip
    return Announcement.model_validate({**told, **changed})


def room(told: Announcement, **changed: Any) -> RoundNeeds:
    return room_for(told, **{"samples": 100, "runtime": "litert", "missing": 3 * MB, **changed})


def test_more_of_anything_takes_more_room() -> None:
    least = room(announcement())
    bigger = [
        room(announcement(), samples=2000),
        room(announcement(), runtime="keras"),
        room(announcement(plan=Plan(batch_size=64))),
        room(announcement(model=BlobRef(digest="a" * 64, bytes=5 * MB))),
        room(announcement(base=BlobRef(digest="b" * 64, bytes=9 * MB))),
        room(announcement(needs=Needs(picture_bytes=76_800, activations=293_544))),
        room(announcement(needs=Needs(picture_bytes=27_648, activations=900_000))),
    ]
    assert all(more.memory > least.memory and more.address > least.address for more in bigger)
    assert room(announcement(), missing=9 * MB).disk == least.disk + 6 * MB


def test_the_room_of_a_round_is_what_the_manual_says() -> None:
    """docs/appliance.md: 80 MB + 20 W + 8 B A + base + 1.1 N P, and twice the first terms on keras."""
    steps, pictures = 8 * 16 * 293_544, int(1.1 * 100 * 27_648) + 27_648
    told = announcement(base=BlobRef(digest="b" * 64, bytes=9 * MB))
    memory = 80 * MB + 20 * 840_000 + steps + 9 * MB + pictures
    assert room(told) == RoundNeeds(memory, memory + 100 * MB, 3 * MB + 2 * 840_000)
    memory = 620 * MB + 2 * (20 * 840_000 + steps + 9 * MB) + pictures
    assert room(told, runtime="keras") == RoundNeeds(memory, memory + 2500 * MB, 3 * MB + 2 * 840_000)
    assert room(told, runtime="another") == room(told)
    weights = 80 * MB + 20 * 840_000
    features = announcement(needs=Needs(picture_bytes=27_648, features=1280))
    assert room(features).memory == weights + int(1.1 * 100 * 4 * 1280) + 27_648
    assert room(announcement(needs=None)).memory == weights


def test_features_stand_for_their_pictures() -> None:
    features = announcement(needs=Needs(picture_bytes=76_800, features=1280))
    assert room(features, samples=1000).memory < room(announcement(), samples=1000).memory


def test_a_coordinator_that_does_not_tell_what_its_model_needs_is_judged_by_its_files() -> None:
    assert 90 * MB < room(announcement(needs=None)).memory < room(announcement()).memory


@pytest.mark.parametrize(
    ("found", "settings", "expected"),
    [
        (Readings(), {}, None),
        (Readings(memory_available=124 * MB), {}, None),
        (
            Readings(memory_available=123 * MB),
            {},
            "the round needs about 100 MB of memory, 123 MB are available and 24 MB are kept for others",
        ),
        (Readings(), {"max_memory_mb": 100}, None),
        (
            Readings(),
            {"max_memory_mb": 99},
            "the round needs about 100 MB of memory, this node gives 99 MB (edge.guest.max_memory_mb)",
        ),
        (Readings(address_limit=200 * MB), {}, None),
        (
            Readings(address_limit=199 * MB),
            {},
            "the round needs about 200 MB of address space, this node is limited to 199 MB "
            "(RLIMIT_AS, ulimit -v)",
        ),
        (Readings(disk_free=110 * MB), {}, None),
        (
            Readings(disk_free=109 * MB),
            {},
            "the round needs about 11 MB of disk, 109 MB are free and 100 MB are kept for others "
            "(edge.guest.min_disk_mb)",
        ),
    ],
)
def test_a_machine_that_is_too_small_says_of_what(
    found: Readings, settings: dict[str, Any], expected: str | None
) -> None:
    needed = RoundNeeds(memory=100 * MB, address=200 * MB, disk=10 * MB)
    assert too_small(needed, found, GUEST.model_copy(update=settings)) == expected
