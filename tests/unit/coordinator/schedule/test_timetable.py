"""When a run begins by itself, at each of its bounds, and over the two nights when the clock changes."""

from __future__ import annotations

import itertools
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from apiary.errors import SettingsError
from apiary.settings import ScheduleSettings, load_settings
from apiary_coordinator.schedule.timetable import LATE_S, NewSamples, Past, due, times, upcoming

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


NIGHTLY = ScheduleSettings(at=["02:00"], timezone="Europe/Berlin")
MIDNIGHT = at("2026-11-20T00:00")
TWO = at("2026-11-20T02:00")


def test_an_empty_table_never_begins_anything() -> None:
    assert due(ScheduleSettings(), Past(0.0), TWO, 10**6) is None
    assert upcoming(ScheduleSettings(), Past(0.0), TWO) is None


@pytest.mark.parametrize(("hours", "next_at"), [(1, TWO - 3 * 3600), (12, TWO)])
def test_of_a_time_of_day_and_a_pause_the_sooner_comes_next(hours: float, next_at: float) -> None:
    both = NIGHTLY.model_copy(update={"every_hours": hours})
    began = TWO - 4 * 3600
    assert upcoming(both, Past(began, began=began), began + 1) == next_at


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (TWO - 1, None),
        (TWO, "at 02:00"),
        (TWO + LATE_S - 1, "at 02:00"),
        (TWO + LATE_S, None),
        (TWO + 22 * 3600, None),
        (TWO + 24 * 3600, "at 02:00"),
    ],
)
def test_a_time_of_day_is_due_from_its_minute_on_for_an_hour(now: float, why: str | None) -> None:
    assert due(NIGHTLY, Past(MIDNIGHT), now, 0) == why


def test_a_clock_that_was_years_ahead_is_not_waited_for() -> None:
    """It was put right since, while the coordinator ran on."""
    ahead = TWO + 4 * 365 * 86400
    past = Past(ahead, ahead, ahead + 60)
    assert due(NIGHTLY, past, TWO + 60, 0) == "at 02:00"
    assert due(NIGHTLY, past, TWO - 60, 0) is None
    every = ScheduleSettings(every_hours=1, min_pause_s=600.0)
    assert due(every, past, TWO, 0) == "every 1 hours"  # what is made up for reaches back an hour
    assert due(ScheduleSettings(new_samples=5, min_pause_s=600.0), past, TWO, 5) == "5 new samples"
    assert upcoming(every, past, TWO) == TWO


def test_a_time_that_was_dealt_with_is_not_due_again() -> None:
    assert due(NIGHTLY, Past(TWO + 3), TWO + 60, 0) is None
    assert upcoming(NIGHTLY, Past(TWO + 3), TWO + 60) == TWO + 24 * 3600


def test_what_is_made_up_for_is_told_as_the_next() -> None:
    """It passed in a run, or in the pause after it: the next run is not tomorrow's."""
    table = ScheduleSettings(at=["02:00"], timezone="Europe/Berlin", min_pause_s=600.0)
    ended = TWO + 120
    past = Past(TWO - 300, TWO - 300, ended)
    assert due(table, past, ended + 30, 0) is None
    assert upcoming(table, past, ended + 30) == ended + 600
    assert due(table, past, ended + 600, 0) == "at 02:00"
    assert upcoming(table, past, TWO + LATE_S) == TWO + 24 * 3600


def test_days() -> None:
    # 2026-11-20 is a Friday.
    table = ScheduleSettings(at=["02:00", "14:30"], days=["sat", "mon"], timezone="Europe/Berlin")
    assert due(table, Past(MIDNIGHT), TWO, 0) is None
    week = [datetime.fromtimestamp(m, BERLIN).strftime("%a %H:%M") for m, _ in times(table, TWO, TWO + 5e5)]
    assert week == ["Sat 02:00", "Sat 14:30", "Mon 02:00", "Mon 14:30"]


def test_a_time_that_the_spring_skips_comes_an_hour_later_and_one_that_the_autumn_repeats_comes_once() -> (
    None
):
    table = ScheduleSettings(at=["02:30"], timezone="Europe/Berlin")
    spring = times(table, at("2026-03-29T00:00"), at("2026-03-30T00:00"))
    assert [datetime.fromtimestamp(m, BERLIN).strftime("%H:%M") for m, _ in spring] == ["03:30"]
    autumn = times(table, at("2026-10-25T00:00"), at("2026-10-26T00:00"))
    assert [m - at("2026-10-25T00:00") for m, _ in autumn] == [2.5 * 3600]


def test_after_the_change_the_time_is_again_that_of_the_wall_clock() -> None:
    moments = [m for m, _ in times(NIGHTLY, at("2026-10-24T12:00"), at("2026-10-27T12:00"))]
    assert [b - a for a, b in itertools.pairwise(moments)] == [25 * 3600, 24 * 3600]


def test_every_so_many_hours_counts_from_the_beginning_of_the_last_run() -> None:
    table = ScheduleSettings(every_hours=6)
    assert due(table, Past(0.0), 6 * 3600 - 1, 0) is None
    assert upcoming(table, Past(0.0), 100.0) == 6 * 3600
    assert due(table, Past(0.0), 6 * 3600, 0) == "every 6 hours"
    past = Past(0.0, began=100.0, ended=200.0)
    assert due(table, past, 100 + 6 * 3600 - 1, 0) is None
    assert due(table, past, 100 + 6 * 3600, 0) == "every 6 hours"
    assert upcoming(table, past, 300.0) == 100 + 6 * 3600


@pytest.mark.parametrize(
    ("samples", "why"), [(199, None), (200, "200 new samples"), (250, "250 new samples")]
)
def test_new_samples(samples: int, why: str | None) -> None:
    assert due(ScheduleSettings(new_samples=200), Past(0.0), 10.0, samples) == why


def test_nothing_begins_within_the_pause_after_a_run() -> None:
    table = ScheduleSettings(new_samples=1, min_pause_s=600)
    assert due(table, Past(0.0, began=1.0, ended=1000.0), 1599.0, 5) is None
    assert due(table, Past(0.0, began=1.0, ended=1000.0), 1600.0, 5) == "5 new samples"


def test_a_time_that_falls_into_the_pause_is_made_up_for() -> None:
    table = ScheduleSettings(at=["02:00"], timezone="Europe/Berlin", min_pause_s=600)
    past = Past(MIDNIGHT, began=MIDNIGHT, ended=TWO - 60)
    assert due(table, past, TWO + 500, 0) is None
    assert due(table, past, TWO + 541, 0) == "at 02:00"


def test_new_samples_are_counted_since_the_last_run() -> None:
    fresh = NewSamples()
    fresh.report("a", 30)
    fresh.report("b", 20)
    assert fresh.count == 50
    assert fresh.begin() == {"a": 30, "b": 20}
    assert fresh.count == 0
    fresh.report("a", 35)
    fresh.report("c", 4)
    assert fresh.count == 9


def test_a_node_that_deletes_samples_counts_again_above_what_it_had_or_from_the_next_run_on() -> None:
    fresh = NewSamples(before={"a": 30, "gone": 100})
    for samples, count in ((10, 0), (13, 0), (31, 1), (13, 0)):
        fresh.report("a", samples)
        assert fresh.count == count
    assert fresh.begin() == {"a": 13, "gone": 100}
    fresh.report("a", 15)
    assert fresh.count == 2


def test_one_that_reports_less_and_more_in_turn_brings_nothing_new() -> None:
    fresh = NewSamples(before={"a": 1_000_000})
    for samples in (0, 1_000_000) * 3:
        fresh.report("a", samples)
        assert fresh.count == 0


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("schedule.at", ["2:00"], "'2:00' is no time of day: expected HH:MM"),
        ("schedule.at", ["24:00"], "is no time of day"),
        ("schedule.days", ["monday"], "Input should be 'mon'"),
        ("schedule.timezone", "Mars/Olympus", "no time zone 'Mars/Olympus'"),
        ("schedule.timezone", "../etc/passwd", "no time zone"),
        ("schedule.every_hours", 0, "greater than 0"),
        ("schedule.new_samples", 0, "greater than or equal to 1"),
    ],
)
def test_settings_are_checked(key: str, value: object, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load_settings(None, {key: value})
