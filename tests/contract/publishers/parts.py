"""What the tests of publishers share."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from pathlib import Path
from typing import Any

import pytest
from tests.stand_ins.edge_impulse_api import EdgeImpulseApi

from apiary.settings import PublishSettings, Settings, load_settings
from apiary_coordinator.publishers._after_run import Outcome
from apiary_coordinator.publishers._job import (
    PublishJob,
)
from apiary_coordinator.publishers.base import PublishProgress

LABELS = {"red": (250, 20, 10), "green": (0, 220, 30), "blue": (10, 20, 240)}
COLOURS = Path(__file__).parents[2] / "stand_ins" / "colours"
HERE = "runner-linux-x86_64"
QUIET = PublishProgress(lambda _: None)
needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("edgeimpulse") is None,
    reason="the SDK is not installed: pip install 'apiary-fl[edge-impulse]'",
)
runs_here = pytest.mark.skipif(platform.machine() != "x86_64", reason="the built stand-in is for x86_64")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings(run: Path, api: EdgeImpulseApi | None = None, **publish_: Any) -> Settings:
    endpoints = {"api_endpoint": api.endpoint, "ingestion_endpoint": api.ingestion} if api else {}
    own = {
        "directory": run.parents[1] / "releases",
        "target": HERE,
        "retry_pause_s": 0.05,
        **endpoints,
        **publish_,
    }
    return load_settings(None, {f"publish.{k}": v for k, v in own.items()}).settings


def one(outcomes: tuple[Any, list[Outcome]]) -> Outcome:
    (outcome,) = outcomes[1]
    return outcome


def job(run: Path, api: EdgeImpulseApi, tmp_path: Path, **changes: Any) -> PublishJob:
    """A job; of `changes`, those of settings go into its `publish`."""
    chosen = {
        "target": HERE, "max_mb": 1, "request_s": 0.6,
        "api_endpoint": api.endpoint, "ingestion_endpoint": api.ingestion,
    }  # fmt: skip
    chosen |= {k: v for k, v in changes.items() if k in PublishSettings.model_fields}
    own = {
        "model": run / "model.tflite", "sha256": sha256(run / "model.tflite"), "labels": list(LABELS),
        "publish": chosen, "representative": None, "samples": [], "out": tmp_path / "out", "done": [],
    }  # fmt: skip
    return PublishJob.model_validate(own | {k: v for k, v in changes.items() if k not in chosen})
