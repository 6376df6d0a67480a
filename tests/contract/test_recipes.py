"""Every recipe found: options without TensorFlow, and one build in the export child, checked from outside."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.builds import LABELS, SMALL, built_once
from tests.places import ROOT

from apiary.errors import ExportError, ModelError, SettingsError
from apiary.learn import features, images
from apiary.learn.classifier import Classifier, evaluate
from apiary.learn.fit import fit
from apiary.learn.images import Dataset, Scan
from apiary.learn.runtimes import litert
from apiary.plugins import names
from apiary.wire.blob import encode
from apiary.wire.messages import Plan
from apiary_coordinator.export.client import (
    Built,
    build_in_child,
    cache_key,
    finish_in_child,
    read_build,
    read_in_child,
)
from apiary_coordinator.export.job import BuildJob, FinishJob, ReadJob, sealed
from apiary_coordinator.recipes import edge_cnn
from apiary_coordinator.recipes.base import check_options, recipe

RECIPES = names("apiary_coordinator.recipes")
PLAN = Plan(batch_size=8, optimizer="adam", learning_rate=3e-3, epochs=6, validation_share=0.2)


def job(recipe: str, out: Path, **changes: Any) -> BuildJob:
    return BuildJob(
        recipe=recipe, options=SMALL.get(recipe, {}), labels=list(LABELS), plan=PLAN, out=out, **changes
    )


def pictures(built: Built, count: int = 40) -> Dataset:
    side = built.manifest.input
    rng = np.random.default_rng(0)
    y = np.arange(count) * 2 // count  # in the order of a scan: label by label
    x = rng.integers(0, 100, (count, side.height, side.width, side.channels)) + 120 * y[:, None, None, None]
    digests = tuple(hashlib.sha256(p.tobytes()).hexdigest() for p in x)
    return Dataset(x.astype(np.uint8), y, digests, LABELS)


def saved(seen: Dataset, folder: Path) -> Scan:
    """The pictures as files, in the order that they have in memory."""
    for i in range(len(seen)):
        path = folder / seen.labels[seen.y[i]] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(seen.x[i].squeeze()).save(path)
    return images.scan(folder, seen.labels)


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_once(job(request.param, tmp_path_factory.mktemp("build") / "out"), tmp_path_factory)


@pytest.mark.tensorflow
def test_a_build_trains_in_the_light_runtime_and_finishes(built: Built, tmp_path: Path) -> None:
    manifest = built.manifest
    assert manifest.labels == LABELS
    assert built.initial.shapes == manifest.shapes
    assert all("/" in t.name and "_1/" not in t.name for t in manifest.tensors)
    seen = pictures(built)
    data = seen
    if built.base is not None:
        assert manifest.features is not None
        base = built.base
        found = saved(seen, tmp_path / "pictures")
        data = features.load(
            found, manifest.input, lambda: litert.open_base(base), length=manifest.features, base_digest="b"
        )
        assert data.x.shape == (40, manifest.features)
    trainer = litert.open_trainer(manifest, built.trainer)
    got = fit(trainer, manifest, PLAN, data, built.initial, seed=1)
    again = fit(trainer, manifest, PLAN, data, built.initial, seed=1)
    assert got.accuracy is not None
    assert all(np.array_equal(t, again.weights[name]) for name, t in got.weights.items())

    (tmp_path / "weights.blob").write_bytes(encode(got.weights))
    np.save(tmp_path / "pictures.npy", seen.x)
    out = tmp_path / "model"
    finish_in_child(
        FinishJob(
            build=built.folder,
            weights=tmp_path / "weights.blob",
            pictures=tmp_path / "pictures.npy",
            out=out,
        )
    )
    assert (out / "labels.txt").read_text().split() == list(LABELS)
    # And it gives its weights back, to the bit, to a run that begins with it.
    tensors = list(manifest.shapes)
    given_back = read_in_child(ReadJob(file=out / "model.keras", names=tensors, out=tmp_path / "start"))
    assert encode(given_back) == encode(got.weights)
    with pytest.raises(
        ModelError, match=r"the start model has 0 tensors 'block9/kernel', expected one; it has "
    ):
        read_in_child(ReadJob(file=out / "model.keras", names=["block9/kernel"], out=tmp_path / "start"))
    # The finished file is the trained model: the same probabilities as the trainer gives.
    finished, shown = Classifier(out / "model.tflite"), seen.x.astype(np.uint8, copy=False)
    trainer.set_weights(got.weights)
    assert np.allclose(finished.predict(shown), trainer.infer(data.floats(slice(None))), atol=1e-4)
    small = Classifier(out / "model_int8.tflite")
    assert (out / "model_int8.tflite").stat().st_size < (out / "model.tflite").stat().st_size
    assert np.abs(small.predict(shown) - finished.predict(shown)).mean() < 0.1
    if built.base is None:  # a random base tells dark from light badly
        assert evaluate(finished, seen).accuracy > 0.9
        assert evaluate(small, seen).accuracy > 0.9


@pytest.mark.tensorflow
def test_the_same_job_gives_the_same_bytes_and_is_kept_found_and_checked(
    built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = build_in_child(job(built.manifest.recipe, tmp_path / "a"), cache=tmp_path / "cache")
    assert "differs from Keras by: gradient" in caplog.text
    assert sealed(first.folder) is not None
    for name in ("manifest.json", "trainer.tflite", "initial.blob"):
        assert (first.folder / name).read_bytes() == (built.folder / name).read_bytes(), name
    caplog.clear()
    second = build_in_child(job(built.manifest.recipe, tmp_path / "b"), cache=tmp_path / "cache")
    assert "export: " not in caplog.text
    assert second.trainer.read_bytes() == first.trainer.read_bytes()
    first.trainer.write_bytes(first.trainer.read_bytes()[:-1])
    with pytest.raises(ExportError, match="not a complete export"):
        read_build(first.folder)


@pytest.mark.tensorflow
def test_the_tensors_with_labels_are_those_that_each_declares() -> None:
    """Others must not hang on the number of labels: a run that goes on could not extend them."""
    command = [sys.executable, "-m", "tests.contract.recipe_shapes", json.dumps(SMALL), "2", "3"]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    shapes = json.loads(done.stdout.splitlines()[-1])
    assert tuple(shapes) == RECIPES
    for name, (two, three) in shapes.items():
        assert recipe(name).tensors(check_options(name, SMALL.get(name, {}))) == tuple(two)
        assert list(two) == list(three)
        differ = {
            tensor: [i for i, (a, b) in enumerate(zip(two[tensor], three[tensor], strict=True)) if a != b]
            for tensor in two
            if two[tensor] != three[tensor]
        }
        assert differ == {tensor: [axis] for tensor, axis in recipe(name).LABEL_AXES.items()}, name


@pytest.mark.tensorflow
def test_a_users_error_comes_back_as_it_was_raised(tmp_path: Path) -> None:
    wrong = job("edge_cnn", tmp_path / "out").model_copy(update={"options": {"size": 4}})
    with pytest.raises(SettingsError, match=r"size is 4: .*greater than or equal to 8"):
        build_in_child(wrong)


@pytest.mark.tensorflow
def test_an_export_past_its_time_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="was stopped after 0 s"):
        build_in_child(job("edge_cnn", tmp_path / "out"), timeout_s=0.3)
    assert sealed(tmp_path / "out") is None


@pytest.mark.tensorflow
def test_a_weights_file_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"not HDF5")
    options = {"size": 96, "alpha": 0.35}
    wrong = job("mobilenet_v2", tmp_path / "out", base_weights=tmp_path / "weights.h5")
    with pytest.raises(ModelError, match=r"weights\.h5 are not of MobileNetV2 without top, alpha 0\.35"):
        build_in_child(wrong.model_copy(update={"options": options}))
    gone = wrong.model_copy(update={"base_weights": tmp_path / "gone.h5"})
    with pytest.raises(ModelError, match=r"base_weights .*gone\.h5: No such file"):
        build_in_child(gone, cache=tmp_path / "cache")


def test_the_key_of_a_build_hangs_on_all_that_changes_it(tmp_path: Path) -> None:
    base = job("edge_cnn", tmp_path)
    changes: list[dict[str, Any]] = [
        {"seed": 8},
        {"labels": ["a", "b"]},
        {"options": {"size": 32}},
        {"recipe": "mobilenet_v2"},
        {"plan": PLAN.model_copy(update={"batch_size": 4})},
        {"plan": PLAN.model_copy(update={"optimizer": "sgd"})},
    ]
    keys = {cache_key(base.model_copy(update=c)) for c in changes} | {cache_key(base)}
    assert len(keys) == len(changes) + 1
    elsewhere = {"out": tmp_path / "b", "plan": PLAN.model_copy(update={"epochs": 99, "learning_rate": 1.0})}
    assert cache_key(base.model_copy(update=elsewhere)) == cache_key(base)


@pytest.mark.parametrize("recipe", RECIPES)
def test_options_have_defaults_and_refuse_what_they_do_not_know(recipe: str) -> None:
    check_options(recipe, {})
    with pytest.raises(SettingsError, match=f"recipe {recipe}: no option 'colour'.*There are:"):
        check_options(recipe, {"colour": 1})


def test_mobilenet_names_the_alphas_it_knows() -> None:
    with pytest.raises(SettingsError, match=r"alpha is 0\.4: .*0\.35, 0\.5"):
        check_options("mobilenet_v2", {"alpha": 0.4})


@pytest.mark.parametrize(
    ("size", "expected"),
    [(8, [1, 2]), (16, [1, 2, 2]), (28, [1, 2, 2, 2]), (32, [1, 2, 2, 2]), (48, [2, 2, 2, 2]), (96, [2] * 5)],
)
def test_small_pictures_are_not_halved_away(size: int, expected: list[int]) -> None:
    assert edge_cnn.strides(edge_cnn.Options(size=size)) == expected


def test_widths_past_the_last_halving_keep_the_resolution() -> None:
    assert edge_cnn.strides(edge_cnn.Options(size=16, widths=(8,) * 5)) == [1, 2, 2, 1, 1]


def test_choosing_and_evaluating_import_no_tensorflow() -> None:
    code = (
        "import sys, json; import apiary_coordinator.model.keras, apiary_coordinator.export.client; "
        "from apiary_coordinator.recipes.base import check_options; check_options('mobilenet_v2', {}); "
        "from apiary.learn import runtimes; runtimes.choose('litert'); runtimes.usable(); "
        "print(json.dumps([m for m in ('tensorflow', 'keras', 'matplotlib', 'rich') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_job_file_that_does_not_hold_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"job file .*gone\.json: No such file"):
        BuildJob.read(tmp_path / "gone.json")
    (tmp_path / "job.json").write_text('{"recipe": "edge_cnn", "labels": ["one"], "out": "x"}')
    with pytest.raises(ExportError, match="labels"):
        BuildJob.read(tmp_path / "job.json")
