"""The real builder where the disk refuses: said as such, so that the coordinator tries it again."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apiary.blobs import BlobStore
from apiary.errors import DataError, StoreError
from apiary.learn.images import Dataset
from apiary.learn.metrics import report
from apiary.settings import Settings
from apiary.tensors import Array, Weights
from apiary_coordinator.model import keras
from apiary_coordinator.model.keras import KerasModelBuilder, evaluate


@pytest.fixture
def builder(tmp_path: Path) -> KerasModelBuilder:
    for label in ("a", "b"):
        (tmp_path / "test" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "test" / label / "1.png")
    coordinator = {"state_dir": tmp_path / "state", "test_data": tmp_path / "test"}
    settings = Settings.model_validate({"coordinator": coordinator})
    return KerasModelBuilder(settings, BlobStore(tmp_path / "state" / "blobs"))


def test_a_full_disk_during_the_export(builder: KerasModelBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(job: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keras, "build_in_child", full)
    with pytest.raises(StoreError, match="cannot make the export: No space left on device: the disk is full"):
        builder.build()


def test_what_is_no_fault_of_the_disk_is_no_store_error(builder: KerasModelBuilder, tmp_path: Path) -> None:
    (tmp_path / "test" / "b" / "1.png").unlink()
    with pytest.raises(DataError, match="holds one class only"):
        builder.build()


DATA = Dataset(
    np.array([0, 255, 255, 0], np.uint8).reshape(4, 1, 1, 1),
    np.array([0, 1, 1, 1]),
    tuple(f"{i:064x}" for i in range(4)),
    ("dark", "light"),
)


class Threshold:
    """Says light where a pixel is above its one weight."""

    def set_weights(self, weights: Weights) -> None:
        self.level = float(weights["level"][0])

    def get_weights(self) -> Weights:
        return Weights({"level": np.array([self.level], np.float32)})

    def step(self, x: Array, y: Array, w: Array, *, learning_rate: float, mu: float) -> float:
        raise AssertionError("evaluation must not train")

    def infer(self, x: Array) -> Array:
        light = (x.reshape(-1) > self.level).astype(np.float32) * 0.8 + 0.1
        return np.stack([1 - light, light], 1)


def level(value: float) -> Weights:
    return Weights({"level": np.array([value], np.float32)})


def test_evaluation_is_of_the_weights_that_were_given() -> None:
    trainer = Threshold()
    assert evaluate(trainer, level(100), DATA, DATA.labels).confusion == ((1, 0), (1, 2))
    assert evaluate(trainer, level(300), DATA, DATA.labels).accuracy == 0.25
    assert trainer.get_weights()["level"][0] == 300


def test_other_labels_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"have the labels \['dark', 'light'\], the model \['light', 'dark'\]"
    ):
        evaluate(Threshold(), level(100), DATA, ("light", "dark"))


def test_a_model_that_ran_away_is_judged_all_the_same() -> None:
    """Its round is closed with a loss that a message can carry; the best model is another."""
    probabilities = np.array([[np.nan, np.nan], [0.25, 0.75]], np.float32)
    found = report(probabilities, np.array([1, 1]), ("a", "b"))
    assert (found.accuracy, round(found.loss, 3)) == (0.5, round((-np.log(1e-7) - np.log(0.75)) / 2, 3))
