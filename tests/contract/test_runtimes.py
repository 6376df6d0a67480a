"""Every runtime found gives the same tensors for the same batches, each tried in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.builds import SMALL, small
from tests.places import ROOT

from apiary.errors import ModelError, RuntimeUnavailable, SettingsError
from apiary.learn import runtimes
from apiary.learn.runtimes import keras, litert
from apiary.learn.runtimes.base import StepControls
from apiary.plugins import names
from apiary.tensors import Weights
from apiary.wire.messages import Plan
from apiary_coordinator.export import parity
from apiary_coordinator.export.client import Built, build_in_child
from apiary_coordinator.export.job import BuildJob
from apiary_coordinator.export.probe import Probe, batch

RUNTIMES = names("apiary.learn.runtimes")
OF_SGD = ("moments not reset", "filler counted", "proximal term times 1.02", "each tensor clipped by itself")


CONTROLS = {"weight_decay": 0.01, "gradient_clip": 1.0}


@pytest.fixture(scope="module", params=["adam", "sgd"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """With all controls; test_recipes has trainers without."""
    plan = Plan.model_validate({"batch_size": 8, "optimizer": request.param, **CONTROLS})
    job = small("edge_cnn", tmp_path_factory, labels=["a", "b", "c"], plan=plan)
    return build_in_child(job)  # through the gate in both light packages


@pytest.fixture(scope="module")
def probes(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Probe]:
    """What each runtime answers, and each light package by itself."""
    names = ["keras", *(f"litert:{package}" for package in litert.packages())]
    out = tmp_path_factory.mktemp("probes")
    return {name: parity.ask(built.folder, built.manifest, name, out / name) for name in names}


def compared(built: Built, folders: list[Path]) -> list[dict[str, Any]]:
    """The gate's differences from Keras, in a process that may import TensorFlow."""
    command = [
        sys.executable,
        "-m",
        "apiary_coordinator.export.parity",
        str(built.folder),
        *map(str, folders),
    ]
    done = subprocess.run(command, capture_output=True, timeout=300, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.tensorflow
def test_all_runtimes_give_the_same_tensors(built: Built, probes: dict[str, Probe]) -> None:
    assert set(RUNTIMES) == {name.partition(":")[0] for name in probes}
    for name, found in zip(probes, compared(built, [p.folder for p in probes.values()]), strict=True):
        assert found["gradient"] < 1e-4, (name, found)
        assert found["optimizer"] < 1e-4 and found["prox"] < 1e-4, (name, found)
        assert found["loss"] < 1e-5 and found["probability"] < 1e-5, (name, found)


@pytest.mark.tensorflow
@pytest.mark.parametrize("built", ["adam"], indirect=True)
def test_the_gate_refuses_what_differs(built: Built, probes: dict[str, Probe], tmp_path: Path) -> None:
    good = probes["keras"].folder
    argument = next(t.argument for t in built.manifest.tensors if t.name == "block1_conv/kernel")

    def changed(name: str, file: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        copy = shutil.copytree(good, tmp_path / name)
        with np.load(copy / f"{file}.npz") as kept:
            arrays = dict(kept)
        np.savez(copy / f"{file}.npz", **(arrays | change(arrays)))
        return copy

    def not_a_number(kept: dict[str, Any]) -> dict[str, Any]:
        return {argument: kept[argument] * np.nan}

    wrong = {
        "in the gradient, most in block1_conv/kernel": ("gradient-1-3", not_a_number),
        "in the gradient of one batch, most in": (
            "gradient-0-0",
            lambda kept: {argument: kept[argument] / 2},
        ),
        "'s steps, most in block1_conv/kernel": ("path-2", not_a_number),
        "the proximal term, most in block1_conv/kernel": ("prox-1", not_a_number),
        "in the loss": ("numbers", lambda kept: {"losses": kept["losses"] * 1.01}),
        "in the probabilities": ("numbers", lambda kept: {"probabilities": kept["probabilities"] + 0.01}),
        "does not keep the weights": ("numbers", lambda kept: {"kept": np.array(False)}),
        "set_weights must reset the optimizer": ("numbers", lambda kept: {"repeats": np.array(False)}),
        "what samples of weight 0 change": ("numbers", lambda kept: {"filler": np.array(0.01)}),
    }
    folders = [changed(str(i), *how) for i, how in enumerate(wrong.values())]
    for message, found in zip(wrong, compared(built, folders), strict=True):
        assert message in found.get("error", ""), (message, found)


@pytest.mark.tensorflow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_gate_refuses_wrong_trainers(optimizer: str) -> None:
    """Most wrong trainers with one optimizer; `make gate` tries all with both, and in a larger model."""
    options = json.dumps({"size": 8, "channels": 3, "widths": [8]})
    names = [] if optimizer == "adam" else ["right", *OF_SGD]
    left_out = [] if optimizer == "sgd" else [f"!{name}" for name in (*OF_SGD, "biases decay", "no decay")]
    verdicts = verdicts_on("edge_cnn", optimizer, options, *names, *left_out)
    assert verdicts.pop("right") is None
    assert len(verdicts) == {"adam": 11, "sgd": 4}[optimizer]
    assert all(verdicts.values()), [name for name, why in verdicts.items() if why is None]


@pytest.mark.tensorflow
def test_the_gate_refuses_wrong_dropout_and_moments() -> None:
    """And the right ones pass in a light package and in the keras runtime."""
    options = {"size": 8, "channels": 3, "widths": [6], "convolutions": 1, "hidden": []}
    names = ("right", "dropout not scaled", "filler in the moments", "statistics 2 % slow")
    verdicts = verdicts_on("vgg_bn", "sgd", json.dumps(options), *names)
    assert verdicts.pop("right") is None
    assert "in the gradient" in (verdicts["dropout not scaled"] or "")
    assert verdicts["filler in the moments"]
    assert "running moments, most in block1_norm1/moving_" in (verdicts["statistics 2 % slow"] or "")


def verdicts_on(*arguments: str) -> dict[str, str | None]:
    """What `wrong_exports` prints: why each trainer is refused, None where it is let through."""
    command = [sys.executable, "-m", "tests.gate.wrong_exports", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=600, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.tensorflow
def test_a_light_trainer_keeps_weights_and_its_filler_does_not_count(built: Built) -> None:
    trainer = litert.open_trainer(built.manifest, built.trainer)
    trainer.set_weights(built.initial)
    assert all(np.array_equal(t, built.initial[n]) for n, t in trainer.get_weights().items())
    x, y, w = batch(built.manifest, 0)

    def after(x: Any) -> Weights:
        trainer.set_weights(built.initial)
        trainer.step(x, y, w, StepControls(0.01))
        return trainer.get_weights()

    noise = x.copy()
    noise[-1] = 255 - noise[-1]  # the filler, of weight 0
    first, second = after(x), after(noise)
    assert all(np.allclose(t, second[n], atol=1e-6) for n, t in first.items())
    rows = trainer.infer(x)
    assert rows.shape == (8, 3)
    assert np.allclose(rows.sum(1), 1, atol=1e-5)
    assert np.array_equal(trainer.infer(x[2:5]), rows[2:5])
    assert trainer.infer(x[:0]).shape == (0, 3)


@pytest.mark.tensorflow
def test_a_trainer_of_another_manifest_is_refused(built: Built, tmp_path: Path) -> None:
    first = built.manifest.tensors[0]
    other = built.manifest.model_copy(
        update={"tensors": (first.model_copy(update={"shape": (3, 3, 3, 9)}), *built.manifest.tensors[1:])}
    )
    with pytest.raises(ModelError, match=re.escape("'block1_conv/kernel' has shape [3, 3, 3, 8], expected")):
        litert.open_trainer(other, built.trainer)
    (tmp_path / "other.tflite").write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"other\.tflite is not a TFLite model"):
        litert.open_trainer(built.manifest, tmp_path / "other.tflite")
    with pytest.raises(ModelError, match=r"gone\.tflite does not exist"):
        litert.open_trainer(built.manifest, tmp_path / "gone.tflite")
    trainer = litert.open_trainer(built.manifest, built.trainer)
    with pytest.raises(ModelError, match="weights of another model: tensor 'block1_conv/kernel' is missing"):
        trainer.set_weights(Weights({}))


@pytest.mark.tensorflow
@pytest.mark.parametrize("package", ["tflite_runtime", "ai_edge_litert"])
def test_each_light_package_trains_quietly_and_alike_twice(
    built: Built, package: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here")
    runs = []
    for _ in range(2):
        trainer = litert.open_trainer(built.manifest, built.trainer, package=package)
        trainer.set_weights(built.initial)
        for seed in range(3):
            trainer.step(*batch(built.manifest, seed), StepControls(1e-3, 0.1))
        runs.append(trainer.get_weights())
    assert all(np.array_equal(t, runs[1][n]) for n, t in runs[0].items())
    assert capfd.readouterr().err == ""


def test_choosing() -> None:
    assert runtimes.choose("auto").unavailable() is None
    assert runtimes.usable()[0] == "litert"
    with pytest.raises(SettingsError, match="no 'litertt'; did you mean 'litert'"):
        runtimes.choose("litertt")


def test_numpy_2_with_tflite_runtime_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.1.0")
    monkeypatch.setattr(litert, "_PACKAGES", ("tflite_runtime",))
    if importlib.util.find_spec("tflite_runtime") is None:
        pytest.skip("tflite_runtime is not installed here")
    with pytest.raises(RuntimeUnavailable, match=r"does not work with numpy 2\.1\.0: pip install 'numpy<2'"):
        runtimes.choose("litert")


def architecture(**change: Any) -> str:
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}, "registered_name": None}
    return json.dumps({"class_name": "Functional", "config": {"layers": [layer | change]}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (architecture(class_name="Lambda"), "holds 'Lambda', which this node does not build"),
        (architecture(class_name="TFSMLayer"), "holds 'TFSMLayer'"),
        (architecture(module="os.path"), r"names the module 'os\.path', expected Keras' own"),
        (architecture(registered_name="evil>Dense"), "custom class 'evil>Dense'"),
        (architecture(config={"units": 2**40}), "holds the number 1099511627776"),
        (architecture(config={"activation": {"class_name": "function", "config": "system"}}), "'function'"),
        ("{", "is not JSON"),
        ("", "holds no Keras architecture"),
        ("[" * 100_000, "is not JSON|nested deeper"),
        (" " * (2**20 + 1), "at most 1048576 are read"),
    ],
)
def test_an_architecture_from_the_wire_brings_no_code(text: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        keras.build_model(text)
    assert "tensorflow" not in sys.modules


@pytest.mark.tensorflow
def test_builtin_gradients_are_tensorflows_own() -> None:
    check = Path(__file__).with_name("gradient_check.py")
    done = subprocess.run([sys.executable, str(check)], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 18
    assert all(difference < 1e-5 for difference in found.values()), found


@pytest.mark.tensorflow
def test_decay_and_clipping_are_those_of_keras_optimizers(built: Built, probes: dict[str, Probe]) -> None:
    # The gate has compared both light packages with the formulas.
    assert built.manifest.controls == ("weight_decay", "gradient_clip")
    (found,) = compared(built, [probes["keras"].folder])
    assert "error" not in found and found["controls"] < 1e-4, found
    check = Path(__file__).with_name("controls_check.py")
    command = [sys.executable, str(check), str(built.folder)]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    apart = json.loads(done.stdout.splitlines()[-1])
    assert apart.pop("both") < 1e-3
    # Adam's step hides the size of a gradient, but not how it changes from step to step.
    assert all(value > 1e-2 for value in apart.values()), apart


@pytest.mark.tensorflow
@pytest.mark.parametrize("built", ["adam"], indirect=True)
def test_a_part_of_a_model_is_trained_by_itself(built: Built, tmp_path: Path) -> None:
    plan = Plan.model_validate({"batch_size": 8, "optimizer": built.manifest.optimizer, **CONTROLS})
    job = BuildJob(
        recipe="edge_cnn",
        options=SMALL["edge_cnn"],
        labels=["a", "b", "c"],
        plan=plan,
        train=["classes"],
        out=tmp_path / "out",
    )
    head = build_in_child(job)  # through the gate in both light packages
    assert set(head.manifest.update_shapes) == {"classes/kernel", "classes/bias"}
    assert head.manifest.shapes == built.manifest.shapes
    # Without the gradients of the other layers.
    assert head.trainer.stat().st_size < 0.7 * built.trainer.stat().st_size
    trainer = litert.open_trainer(head.manifest, head.trainer)
    trainer.set_weights(head.initial)
    for seed in range(3):
        trainer.step(*batch(head.manifest, seed), StepControls(0.01))
    for name, tensor in trainer.get_weights().items():
        changed = tensor.tobytes() != head.initial[name].tobytes()
        assert changed == name.startswith("classes/"), name
    probed = parity.ask(head.folder, head.manifest, "keras", tmp_path / "keras")
    (found,) = compared(head, [probed.folder])
    assert "error" not in found, found


@pytest.mark.tensorflow
def test_a_part_that_the_model_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    job = BuildJob(
        recipe="edge_cnn",
        options=SMALL["edge_cnn"],
        labels=["a", "b"],
        train=["clases"],
        out=tmp_path / "out",
    )
    with pytest.raises(SettingsError, match="'clases' names nothing of the model; its layers are: "):
        build_in_child(job)
