"""What a simulated run is made of: its settings, its folders, how many processes train."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from apiary.errors import SettingsError
from apiary.settings import Settings, load_settings
from apiary_cli.demo.presets import PRESETS
from apiary_cli.simulation.fleet import FleetModel, FleetProfile, traits
from apiary_cli.simulation.shares import Shares
from apiary_cli.simulation.simulation import Scenario

_MAX_JOBS: Final = 256


def settings_for(config: Path | None, overrides: Mapping[str, Any], source: str) -> Settings:
    """The settings of a simulated run: those given, and where none are, what suits a data set of that name.

    Raises SettingsError.
    """
    loaded = load_settings(config, overrides)
    if (preset := PRESETS.get(source)) is None or loaded.origin.get("run.recipe"):
        return loaded.settings
    suits: dict[str, Any] = {
        **{f"run.{key}": value for key, value in preset.run.items()},
        **{f"run.plan.{key}": value for key, value in preset.plan.items()},
        "run.recipe_options": preset.recipe_options,
        "run.rounds": preset.rounds,
    }
    fresh = {key: value for key, value in suits.items() if key not in loaded.origin}
    return load_settings(config, {**fresh, **overrides}).settings


def scenario_of(
    shares: Shares, model: FleetModel, profile: FleetProfile | None, settings: Settings, jobs: int
) -> Scenario:
    """Shares, paces and links put together, all by the run's seed."""
    seed = settings.run.seed
    if profile is not None and profile.server_s is not None and "server_s" not in model.model_fields_set:
        model = model.model_copy(update={"server_s": profile.server_s})
    nodes = tuple(traits(shares.names, model, seed=seed, profile=profile))
    return Scenario(shares, nodes, model, seed, jobs)


def with_min_nodes(settings: Settings, nodes: int) -> Settings:
    """Without `run.min_nodes` a round waits for its cohort, or for all of the `nodes`."""
    run = settings.run
    if "min_nodes" in run.model_fields_set:
        return settings
    most = min(run.cohort_size or nodes, nodes)
    return settings.model_copy(update={"run": run.model_copy(update={"min_nodes": max(1, most)})})


def placed(settings: Settings, scenario: Scenario, folder: Path) -> Settings:
    """The settings with the folders of a simulation and its smallest cohort."""
    coordinator = settings.coordinator
    update: dict[str, Any] = {
        "test_data": scenario.shares.test_data,
        "labels": list(scenario.shares.labels),
        "state_dir": folder / "coordinator",
        "exports_dir": coordinator.exports_dir or coordinator.runs_dir.absolute() / ".exports",
    }
    at = settings.model_copy(update={"coordinator": coordinator.model_copy(update=update)})
    return with_min_nodes(at, len(scenario.nodes))


def jobs_of(given: int | None) -> int:
    """How many processes train. Raises SettingsError."""
    if given is None:
        return max(1, min(len(os.sched_getaffinity(0)), _MAX_JOBS))
    if not 1 <= given <= _MAX_JOBS:
        raise SettingsError(f"--jobs {given}: expected 1 to {_MAX_JOBS}")
    return given
