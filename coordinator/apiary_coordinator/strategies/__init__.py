"""How accepted updates become the next model: one strategy a file."""

from typing import cast

from apiary import plugins
from apiary.settings import RunSettings
from apiary_coordinator.strategies.base import Strategy


def load(run: RunSettings) -> Strategy:
    """The strategy that `run.strategy` names. Raises SettingsError where there is none."""
    return cast("Strategy", plugins.load(__name__, run.strategy))
