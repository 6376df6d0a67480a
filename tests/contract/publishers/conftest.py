"""A finished run, held-out pictures, and a stand-in of Edge Impulse's API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.contract.publishers.parts import (
    LABELS,
    sha256,
)
from tests.places import COLOURS
from tests.stand_ins.edge_impulse_api import KEY, EdgeImpulseApi


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path / "runs" / "autumn"
    folder.mkdir(parents=True)
    for name in ("model.tflite", "model_int8.tflite"):
        shutil.copy(COLOURS / name, folder / name)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    summary = {
        "run": "autumn",
        "best_round": 3,
        "contributors": {"1": ["a", "b"], "3": ["b", "c"]},
        "tflite_accuracy": 0.97,
        "int8_accuracy": 0.96,
        "files": {name: sha256(folder / name) for name in ("model.tflite", "model_int8.tflite")},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    for label, colour in LABELS.items():
        (tmp_path / "held-out" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20 + i, 10), colour).save(tmp_path / "held-out" / label / f"{i}.png")
    return tmp_path / "held-out"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[EdgeImpulseApi]:
    (tmp_path / "built").mkdir()
    with EdgeImpulseApi(tmp_path / "built") as api:
        yield api


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EI_API_KEY", KEY)
    return KEY
