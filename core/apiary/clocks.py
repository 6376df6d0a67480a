"""The two clocks that services are handed, so that a test can move them."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds: `monotonic` for what lasts, `wall` (since 1970) for what has a date."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]
