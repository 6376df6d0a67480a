"""A data set shared out among nodes in one process, and the recipe that they train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiary.learn import features, images
from apiary.learn.cache import ArrayCache
from apiary.learn.fit import Fit, fit, node_seed
from apiary.learn.images import Dataset
from apiary.learn.metrics import Evaluation
from apiary.learn.runtimes import choose
from apiary.learn.runtimes.base import Trainer
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary_cli.datasets.partition import materialise
from apiary_cli.demo.presets import PRESETS
from apiary_coordinator.export.client import Built, build_in_child
from apiary_coordinator.export.job import BuildJob
from apiary_coordinator.model.keras import evaluate


@dataclass(frozen=True, slots=True)
class Federation:
    """Who trains what."""

    run: RunSettings
    built: Built
    trainer: Trainer
    nodes: dict[str, Dataset]
    held_out: Dataset

    def train(self, node: str, model: Weights, number: int) -> Fit:
        """What this node makes of the model in round `number`, as its training child would."""
        plan = self.run.plan
        seed = node_seed(plan.seed, number, node)
        return fit(self.trainer, self.built.manifest, plan, self.nodes[node], model, seed=seed)

    def evaluate(self, model: Weights) -> Evaluation:
        """How good the model is on the held-out samples."""
        return evaluate(self.trainer, model, self.held_out, self.built.manifest.labels)


def federate(
    dataset: str,
    folder: Path,
    run: RunSettings,
    *,
    nodes: int,
    limit: int | None = None,
    data: Path | None = None,
    alpha: float | None = None,
) -> Federation:
    """Share a data set out as `apiary demo` does, or with another `alpha`, and export the recipe."""
    alpha = alpha or PRESETS[dataset].alpha
    layout = materialise(
        dataset,
        folder / "data",
        nodes=nodes,
        by="dirichlet",
        alpha=alpha,
        seed=run.seed,
        limit=limit,
        data_dir=data,
    )
    job = BuildJob(
        recipe=run.recipe,
        options=run.recipe_options,
        labels=layout.labels,
        plan=run.plan,
        seed=run.seed,
        out=folder / "build",
    )
    built = build_in_child(job)
    runtime = choose("auto")
    cache = ArrayCache(folder / "cache", 500)

    def load(path: Path) -> Dataset:
        manifest = built.manifest
        found = images.scan(path, manifest.labels, manifest.input)
        if built.base is None or manifest.features is None:
            return images.load(found, manifest.input)
        base = built.base
        return features.load(
            found,
            manifest.input,
            lambda: runtime.open_base(base),
            length=manifest.features,
            base_digest="base",
            cache=cache,
        )

    return Federation(
        run=run,
        built=built,
        trainer=runtime.open_trainer(built.manifest, built.trainer, threads=1),
        nodes={path.name: load(path) for path in layout.nodes},
        held_out=load(layout.server),
    )


def settings_of(dataset: str, seed: int = 0, **more: Any) -> RunSettings:
    """`[run]` as `apiary demo` sets it for a data set."""
    preset = PRESETS[dataset]
    return RunSettings.model_validate(
        {
            "recipe_options": preset.recipe_options,
            "plan": {**preset.plan, "seed": seed},
            "seed": seed,
            **preset.run,
            **more,
        }
    )
