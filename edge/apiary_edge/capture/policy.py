"""Which frames are kept for labelling. Pure: what a frame looks like and the time come as arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from apiary.errors import SettingsError
from apiary.settings import CaptureSettings
from apiary_edge import hours

if TYPE_CHECKING:
    from apiary_edge.capture.perceptual import Looks


class FrameVerdict(StrEnum):
    """Whether a frame is kept, or why not; the words are what an owner reads."""

    KEEP = "keep"
    TOO_DARK = "too dark"
    BURNT_OUT = "burnt out"
    BLURRED = "blurred"
    SEEN = "like a late one"


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the frame in shares of its width and height. Raises SettingsError where it lies outside."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0

    def __post_init__(self) -> None:
        if not (
            0 <= self.left < 1
            and 0 <= self.top < 1
            and 0 < self.width <= 1 - self.left + 1e-9
            and 0 < self.height <= 1 - self.top + 1e-9
        ):
            region = [self.left, self.top, self.width, self.height]
            raise SettingsError(
                f"edge.capture.region is {region}: expected [left, top, width, height] as shares of the "
                "frame, within it, such as [0.25, 0.0, 0.5, 1.0] for its middle"
            )

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels; never empty."""
        left, top = min(int(self.left * width), width - 1), min(int(self.top * height), height - 1)
        right = max(left + 1, min(width, round((self.left + self.width) * width)))
        bottom = max(top + 1, min(height, round((self.top + self.height) * height)))
        return left, top, right, bottom


class CapturePolicy:
    """Remembers when a frame was kept and what the late ones looked like; `late` is the newest first.

    Raises SettingsError for a region or hours that cannot be meant.
    """

    def __init__(self, settings: CaptureSettings, late: Iterable[int] = ()):
        self.region = Region(*settings.region) if settings.region is not None else Region()
        self.hours = hours.parse(settings.hours, "edge.capture.hours")
        self._settings = settings
        self._kept_at: float | None = None
        self._late: deque[int] = deque(
            list(late)[: settings.near_duplicate_window][::-1], settings.near_duplicate_window
        )

    def due(self, now: float, minute_of_day: int) -> bool:
        """Whether a frame is wanted now: the interval is over, and the hours are open."""
        if not self.hours.open_at(minute_of_day):
            return False
        return self._kept_at is None or now - self._kept_at >= self._settings.interval_s

    def judge(self, looks: Looks) -> FrameVerdict:
        """Whether a wanted frame is kept; the interval begins anew only with a kept one."""
        rules = self._settings
        if looks.brightness < rules.min_brightness:
            return FrameVerdict.TOO_DARK
        if looks.white > rules.max_white:
            return FrameVerdict.BURNT_OUT
        if looks.sharpness < rules.min_sharpness:
            return FrameVerdict.BLURRED
        if any((looks.likeness ^ late).bit_count() <= rules.near_duplicate_bits for late in self._late):
            return FrameVerdict.SEEN
        return FrameVerdict.KEEP

    def kept(self, looks: Looks, now: float) -> None:
        """A frame was stored."""
        self._kept_at = now
        self._late.append(looks.likeness)


@dataclass(slots=True)
class Backoff:
    """Pauses that double up to `most_s`, from 1 s on."""

    most_s: float
    tries: int = 0

    def pause(self) -> float:
        """The next pause."""
        self.tries += 1
        return min(self.most_s, 2.0 ** min(self.tries - 1, 16))

    def reset(self) -> None:
        """What was tried has worked."""
        self.tries = 0
