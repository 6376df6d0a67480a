"""`[schedule]`: when a coordinator that stays up begins a run by itself."""

import re
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from apiary.settings.section import Section

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")


class ScheduleSettings(Section):
    """Each of the three begins a run; without any, runs begin by hand alone."""

    at: list[str] = Field(
        default_factory=list, max_length=48, description="at these times, e.g. ['02:00', '14:30']"
    )
    days: list[Day] = Field(
        default_factory=list, max_length=7, description="on these days, e.g. ['mon', 'fri']; empty: every day"
    )
    timezone: str | None = Field(
        None, description="that the times are of, e.g. Europe/Berlin; unset: this machine's"
    )
    every_hours: float | None = Field(
        None,
        gt=0,
        le=24 * 366,
        description="this long after the last run began, or the first start",
    )
    new_samples: int | None = Field(
        None, ge=1, le=10**9, description="once nodes have so many labelled samples more than at the last run"
    )
    min_pause_s: float = Field(
        600.0, ge=0, le=30 * 86400, description="between the end of a run and one that begins by itself"
    )

    @field_validator("at")
    @classmethod
    def _are_times(cls, value: list[str]) -> list[str]:
        for text in value:
            if not _TIME.fullmatch(text):
                raise ValueError(f"{text[:40]!r} is no time of day: expected HH:MM, such as 02:00")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError(f"no time zone {value[:60]!r}; expected one such as Europe/Berlin") from None
        return value
