"""Whether a run's settings name plug-ins that there are, and fit together: checked before it is journaled."""

import math
from collections.abc import Callable
from typing import Final

from apiary.errors import SettingsError
from apiary.learn.manifest import parts
from apiary.plugins import load
from apiary.settings import RunSettings, Settings
from apiary_coordinator import strategies
from apiary_coordinator.fleet.selection import quorum_of, smallest_goal
from apiary_coordinator.publishers.base import PACKAGE as PUBLISHERS
from apiary_coordinator.recipes.base import check_options, recipe
from apiary_coordinator.run.plan_schedule import check_schedule

_KINDS: Final[dict[str, tuple[str, Callable[[RunSettings], str]]]] = {
    "run.recipe": ("apiary_coordinator.recipes", lambda run: run.recipe),
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
    """Check recipe, parts, codec and the chain of stages, their options, and that rounds are large enough.

    Raises SettingsError naming the setting, and the names that there are.
    """
    for setting, (package, name_of) in _KINDS.items():
        _check(setting, package, name_of(run))
    try:
        options = check_options(run.recipe, run.recipe_options)
    except SettingsError as e:
        raise SettingsError(f"run.recipe_options: {e}") from None
    parts(run.train, recipe(run.recipe).tensors(options))
    _check_size(run, strategies.load(run))
    check_schedule(run)


def _check_size(run: RunSettings, chain: strategies.Chain) -> None:
    """Refuse a combiner that needs more updates than the smallest round of this run closes with."""
    least, goal = chain.least_updates, smallest_goal(run)
    closes_with = quorum_of(run, goal, 1)
    if closes_with >= least:
        return
    nodes = math.ceil(least / run.quorum - 1e-9)
    size = "" if run.cohort_size is None else f" and run.cohort_size {run.cohort_size}"
    at_least = "" if run.cohort_size is None else " and as large a run.cohort_size"
    raise SettingsError(
        f"run.combiner: {chain.names['combiner']} needs {least} updates or more, and with run.min_nodes "
        f"{run.min_nodes}{size} and run.quorum {run.quorum:g} a round may close with {closes_with}; "
        f"run.min_nodes {nodes}{at_least} would do, or {least} with run.quorum 1"
    )


def _check(setting: str, package: str, name: str) -> None:
    try:
        load(package, name)
    except SettingsError as e:
        raise SettingsError(f"{setting}: {e}") from None
