"""When the next run begins by itself: at times of day, after a pause, or on enough new samples. Pure.

Times of day are those of the wall clock. Where it is put forward, a time that does not exist that day is
the same span after midnight, so 02:30 comes at 03:30; where it is put back, a time that comes twice counts
the first time. A time that passes while a run is under way, or while the coordinator is down, is made up for
within `LATE_S`, once; after that the next one is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from apiary.settings import ScheduleSettings

LATE_S: Final = 3600.0
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Past:
    """What has been. Seconds since 1970; None: never."""

    since: float
    """Times of day up to here were dealt with."""
    began: float | None = None
    ended: float | None = None

    def as_of(self, now: float) -> Past:
        """Without what lies ahead of the clock: that was wrong then, and must not be waited for."""
        began = self.began if self.began is not None and self.began <= now else None
        ended = self.ended if self.ended is not None and self.ended <= now else None
        return Past(self.since if self.since <= now else now - LATE_S, began, ended)


def due(schedule: ScheduleSettings, past: Past, now: float, samples: int) -> str | None:
    """Why a run begins now, or None. `samples`: labelled since the last run."""
    past = past.as_of(now)
    if past.ended is not None and now - past.ended < schedule.min_pause_s:
        return None
    for moment, text in times(schedule, max(past.since, now - LATE_S), now):
        if moment <= now:
            return f"at {text}"
    if schedule.every_hours is not None and now >= _after_hours(schedule.every_hours, past):
        return f"every {schedule.every_hours:g} hours"
    if schedule.new_samples is not None and samples >= schedule.new_samples:
        return f"{samples} new samples"
    return None


def upcoming(schedule: ScheduleSettings, past: Past, now: float) -> float | None:
    """When the clock begins the next run, seconds since 1970; None where it does not."""
    past = past.as_of(now)
    # One that passed and is still to be made up for comes before the next.
    moments = [moment for moment, _ in times(schedule, max(past.since, now - LATE_S), now + 8 * 86400)][:1]
    if schedule.every_hours is not None:
        moments.append(_after_hours(schedule.every_hours, past))
    if not moments:
        return None
    free = past.ended + schedule.min_pause_s if past.ended is not None else now
    return max(min(moments), free, now)


def _after_hours(hours: float, past: Past) -> float:
    """When that many hours have passed since the last run began; before any run, since the first start."""
    return (past.since if past.began is None else past.began) + hours * 3600


def times(schedule: ScheduleSettings, after: float, until: float) -> list[tuple[float, str]]:
    """Times of day later than `after`, up to `until`, each with its `HH:MM`; in order."""
    found: list[tuple[float, str]] = []
    zone = ZoneInfo(schedule.timezone) if schedule.timezone else None  # None: that of this machine
    day = datetime.fromtimestamp(after, zone).date()
    last = datetime.fromtimestamp(until, zone).date()
    while day <= last and schedule.at:
        if not schedule.days or DAYS[day.weekday()] in schedule.days:
            for text in schedule.at:
                hour, minute = (int(part) for part in text.split(":"))
                # fold=0: the first of two; of none, what the clock would have said without the change.
                moment = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).timestamp()
                if after < moment <= until:
                    found.append((moment, text))
        day += timedelta(days=1)
    return sorted(found)


@dataclass(slots=True)
class NewSamples:
    """Labelled samples of the fleet, counted since the last run from what nodes report.

    A node that deletes samples counts again once it has more than it had, or from the next run on: one that
    reports less and more in turn brings nothing new. A node that is not there counts as it was.
    """

    before: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)

    def report(self, node: str, samples: int) -> None:
        """A node reports how many it has."""
        self.now[node] = samples

    @property
    def count(self) -> int:
        """How many are new."""
        return sum(max(0, samples - self.before.get(node, 0)) for node, samples in self.now.items())

    def begin(self) -> Mapping[str, int]:
        """A run begins: nothing is new any more. What to remember for a restart."""
        self.before = {**self.before, **self.now}
        return self.before
