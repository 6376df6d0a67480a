"""The real builder where the disk refuses: said as such, so that the coordinator tries it again."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apiary.blobs import BlobStore
from apiary.errors import DataError, StoreError
from apiary.learn.images import Dataset
from apiary.learn.manifest import Manifest, PictureInput
from apiary.learn.metrics import report
from apiary.learn.partition import evenly
from apiary.learn.runtimes.base import StepControls
from apiary.settings import Settings
from apiary.tensors import Array, Weights
from apiary.wire import Digest
from apiary.wire.held_out import shared
from apiary_cli.datasets.partition import materialise
from apiary_coordinator.export.client import Built
from apiary_coordinator.model import keras
from apiary_coordinator.model.keras import KerasModelBuilder, evaluate, held_out_labels


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
    (tmp_path / "test" / "b").rmdir()
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

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
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


def test_an_empty_folder_names_a_label_as_data_partition_leaves_it(tmp_path: Path) -> None:
    share(tmp_path)
    settings = Settings.model_validate({"coordinator": {"test_data": tmp_path / "shares" / "server"}})
    assert held_out_labels(settings) == ["a", "b", "c"]


class Finished(Exception):  # noqa: N818 - it ends the test's way there
    """The final files would be made now."""


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    """What an export would leave, for 8x8 pictures of two labels."""
    manifest = Manifest(
        recipe="none",
        input=PictureInput(height=8, width=8, channels=1),
        labels=("dark", "light"),
        tensors=(),
        batch_size=4,
        optimizer="adam",
    )
    (tmp_path / "manifest.json").write_bytes(manifest.encode())
    (tmp_path / "trainer").write_bytes(b"a trainer")
    made = Built(tmp_path, manifest, tmp_path / "manifest.json", tmp_path / "trainer", None, level(1))

    def finish(job: Any) -> None:
        raise Finished

    monkeypatch.setattr(keras, "build_in_child", lambda job, cache: made)
    monkeypatch.setattr(keras, "finish_in_child", finish)
    return made


def test_int8_is_calibrated_evenly_and_nodes_get_the_digests(
    tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras, "REPRESENTATIVE", 10)
    for label, first, n in (("dark", 0, 30), ("light", 200, 11)):
        for i in range(n):
            (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), first + i).save(tmp_path / "test" / label / f"{i:02d}.png")
    coordinator = {"state_dir": tmp_path / "state", "test_data": tmp_path / "test"}
    blobs = BlobStore(tmp_path / "state" / "blobs")
    builder = KerasModelBuilder(Settings.model_validate({"coordinator": coordinator}), blobs)
    exported = builder.build()
    assert exported.held_out is not None and exported.held_out in exported.files
    files = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "test").rglob("*.png")]
    assert shared(blobs.read(Digest(exported.held_out.digest)), files) == 41
    with pytest.raises(Finished):
        builder.finish(exported, level(1), tmp_path / "run")
    shades = np.load(tmp_path / "state" / "representative.npy")[:, 0, 0, 0]
    assert (shades < 100).sum() == (shades >= 200).sum() == 5, "by order alone all were dark"


def share(tmp_path: Path) -> None:
    """A source with an empty label, shared out."""
    for label in ("a", "b"):
        for i in range(4):
            (tmp_path / "source" / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(tmp_path / "source" / label / f"{i}.png")
    (tmp_path / "source" / "c").mkdir()
    materialise(tmp_path / "source", tmp_path / "shares", nodes=2)


@pytest.mark.parametrize(("sizes", "wanted"), [((100, 99), 100), ((100, 50, 49), 100), ((5, 200, 1), 100)])
def test_representative_pictures_come_evenly_from_all_labels(sizes: tuple[int, ...], wanted: int) -> None:
    y = np.repeat(np.arange(len(sizes)), sizes)
    chosen = evenly(y, wanted)
    each = np.bincount(y[chosen])
    assert len(chosen) == wanted == len(set(chosen.tolist()))
    assert all(n == size or n >= each.max() - 1 for n, size in zip(each, sizes, strict=True))
    assert chosen[y[chosen] == 1].max() - chosen[y[chosen] == 1].min() > sizes[1] // 2, "spread over a label"


def test_of_more_labels_than_pictures_are_wanted_each_has_one() -> None:
    assert (
        np.bincount(np.repeat(np.arange(130), 3)[evenly(np.repeat(np.arange(130), 3), 100)]).tolist()
        == [1] * 130
    )
    assert evenly(np.array([], np.int64), 100).size == 0
