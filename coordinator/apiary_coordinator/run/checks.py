"""Whether the names in a run's settings are those of plug-ins: checked before anything is journaled."""

from collections.abc import Callable
from typing import Final

from apiary.errors import SettingsError
from apiary.plugins import load
from apiary.settings import RunSettings, Settings
from apiary_coordinator import strategies
from apiary_coordinator.publishers.base import PACKAGE as PUBLISHERS
from apiary_coordinator.recipes.base import check_options

_KINDS: Final[dict[str, tuple[str, Callable[[RunSettings], str]]]] = {
    "run.recipe": ("apiary_coordinator.recipes", lambda run: run.recipe),
    "run.strategy": ("apiary_coordinator.strategies", lambda run: run.strategy),
    "run.plan.codec": ("apiary.wire.codecs", lambda run: run.plan.codec),
}


def check_settings(settings: Settings) -> None:
    """Check `[run]` and the publishers. Raises SettingsError as `check_run` does."""
    check_run(settings.run)
    if settings.edge.runtime != "auto":
        _check("edge.runtime", "apiary.learn.runtimes", settings.edge.runtime)
    for name in settings.publish.after_run:
        _check("publish.after_run", PUBLISHERS, name)


def check_run(run: RunSettings) -> None:
    """Check recipe, strategy and codec, and the options of the first two.

    Raises SettingsError naming the setting, and the names that there are.
    """
    for setting, (package, name_of) in _KINDS.items():
        _check(setting, package, name_of(run))
    try:
        check_options(run.recipe, run.recipe_options)
    except SettingsError as e:
        raise SettingsError(f"run.recipe_options: {e}") from None
    strategies.load(run).plan(run.plan, run.strategy_options)


def _check(setting: str, package: str, name: str) -> None:
    try:
        load(package, name)
    except SettingsError as e:
        raise SettingsError(f"{setting}: {e}") from None
