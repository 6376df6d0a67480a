"""Small exports that tests share: an export is ten seconds and more, nearly all of it TensorFlow's."""

from __future__ import annotations

import fcntl
import os
from typing import Any, Final

import pytest

from apiary.wire.messages import Plan
from apiary_coordinator.export.client import Built, build_in_child, cache_key
from apiary_coordinator.export.job import BuildJob

LABELS: Final = ("dark", "light")
SMALL: Final[dict[str, dict[str, Any]]] = {
    "char_rnn": {"length": 4, "hidden": 64},
    "edge_cnn": {"size": 16, "channels": 3, "widths": [8, 16]},
    "maths_cnn": {"size": 16, "widths": [8, 16], "hidden": 32, "dropout": 0.25},
    "mobilenet_v2": {"size": 96, "alpha": 0.35, "hidden": 16, "weights": "random"},
    "vgg_bn": {"size": 16, "widths": [8, 12], "convolutions": 1, "hidden": [24]},
}
"""Options that build in seconds; a recipe that is not here is built with its defaults."""


def small(recipe: str, factory: pytest.TempPathFactory, **changes: Any) -> BuildJob:
    """A job for Adam and batches of 8, in a folder of its own."""
    out = factory.mktemp("build") / "out"
    job = BuildJob(
        recipe=recipe, options=SMALL.get(recipe, {}), labels=list(LABELS), plan=Plan(batch_size=8), out=out
    )
    return job.model_copy(update=changes)


def built_once(job: BuildJob, factory: pytest.TempPathFactory) -> Built:
    """The job's build in its own folder, exported once in a run of the tests, whichever worker wants it.

    Tests that are about exporting call `build_in_child` itself.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / f"export-{cache_key(job)[:16]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_in_child(job, cache=shared / "exports")
