"""The mean weighted by samples, exact (McMahan et al. 2017, arXiv:1602.05629; docs/decisions/0002)."""

from typing import Final

from apiary.options import StageOptions
from apiary_coordinator.combiners.base import Combined, Updates

STREAMS: Final = True


class Options(StageOptions):
    """None."""


def least(options: Options) -> int:
    """One update is its own mean."""
    return 1


def combine(updates: Updates, options: Options) -> Combined:
    """Every update, by its samples."""
    return Combined(updates.mean())
