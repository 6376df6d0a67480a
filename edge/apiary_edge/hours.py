"""Hours of the day, such as `08:00-18:00` or `22:00-06:00`. The time comes as an argument."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from apiary.errors import SettingsError

_SPAN = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Hours:
    """Spans of minutes since midnight, begin included, end not; none at all means always."""

    spans: tuple[tuple[int, int], ...] = ()

    def open_at(self, minute: int) -> bool:
        """Whether this minute of the day (0..1439) lies in a span; one may go over midnight."""
        return not self.spans or any(
            begin <= minute < end if begin < end else minute >= begin or minute < end
            for begin, end in self.spans
        )


def minute_of_day(wall: float) -> int:
    """The local time of day in minutes, 0 to 1439; `wall` in seconds since 1970."""
    local = time.localtime(wall)
    return local.tm_hour * 60 + local.tm_min


def parse(texts: Iterable[str], setting: str) -> Hours:
    """Read spans; `setting` names where they stand. Raises SettingsError."""
    spans = []
    for text in texts:
        match = _SPAN.fullmatch(text.strip())
        numbers = [int(n) for n in match.groups()] if match else []
        begin, end = (numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]) if match else (0, 0)
        if not match or max(numbers[1], numbers[3]) > 59 or begin >= 1440 or end > 1440 or begin == end:
            raise SettingsError(f"{setting}: {text!r} is no span, expected one such as '08:00-18:00'")
        spans.append((begin, end))
    return Hours(tuple(spans))
