"""Recipe to exported model, exported model to finished ones. Imports TensorFlow: child processes only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError, ExportError, ModelError
from apiary.learn.manifest import Manifest, Tensor, controls_of
from apiary.learn.runtimes.keras import build_model, named_variables
from apiary.tensors import Weights, differs
from apiary.wire.blob import decode, encode
from apiary.wire.messages import Plan
from apiary_coordinator.export import convert, parity
from apiary_coordinator.export.job import DONE, FINISHED, READ, BuildJob, FinishJob, ReadJob, seal
from apiary_coordinator.export.trainer import TrainerModule
from apiary_coordinator.recipes.base import check_options, recipe


@dataclass(frozen=True, slots=True)
class Exported:
    """What a recipe becomes. `base_model` is the frozen base as a Keras model."""

    manifest: Manifest
    trainer: bytes
    base: bytes | None
    initial: Weights
    base_model: Any | None


def build(
    name: str,
    options: Mapping[str, Any],
    labels: Sequence[str],
    plan: Plan,
    *,
    base_weights: Path | None = None,
    seed: int = 0,
    train: Sequence[str] = (),
) -> Exported:
    """Export a recipe; `plan` gives what a trainer has built in, `train` its parts.

    Raises SettingsError, ModelError.
    """
    checked: Any = check_options(name, options)
    models = recipe(name).build(checked, len(labels), base_weights=base_weights, seed=seed)
    model = models.trained
    controls = controls_of(plan)
    module = TrainerModule(
        model,
        batch_size=plan.batch_size,
        optimizer=plan.optimizer,
        momentum=plan.momentum,
        controls=controls,
        train=train,
        fixed=models.fixed,
    )
    named = dict(named_variables(model))
    manifest = Manifest(
        recipe=name,
        options=checked.model_dump(mode="json"),
        input=models.input,
        labels=tuple(labels),
        tensors=tuple(
            Tensor(
                name=tensor,
                shape=tuple(named[tensor].shape),
                argument=argument,
                trainable=tensor in module.trainable_names,
                sent=tensor in module.sent_names,
            )
            for argument, tensor in module.arguments.items()
        ),
        features=model.input_shape[1] if models.base is not None else None,
        batch_size=plan.batch_size,
        optimizer=plan.optimizer,
        momentum=plan.momentum,
        keras=model.to_json(),
        activations=_activations(model),
        controls=controls,
        noise=module.noise,
    )
    half = getattr(checked, "base_precision", "float32") == "float16"
    return Exported(
        manifest=manifest,
        trainer=convert.trainer_file(module),
        base=convert.inference_file(models.base, half=half) if models.base is not None else None,
        initial=Weights({tensor: v.numpy() for tensor, v in named.items()}),
        base_model=models.base,
    )


def build_folder(job: BuildJob) -> dict[str, parity.Parity]:
    """Do a build job: export, pass the gate, write the files and seal the folder.

    Returns what the gate found in each light package. Raises ExportError where it refuses.
    """
    exported = build(
        job.recipe,
        job.options,
        job.labels,
        job.plan,
        base_weights=job.base_weights,
        seed=job.seed,
        train=job.train,
    )
    out = job.out
    out.mkdir(parents=True, exist_ok=True)
    (out / DONE).unlink(missing_ok=True)
    files = {
        "manifest.json": exported.manifest.encode(),
        "trainer.tflite": exported.trainer,
        "initial.blob": encode(exported.initial),
    }
    if exported.base is not None:
        files["base.tflite"] = exported.base
    for name, data in files.items():
        (out / name).write_bytes(data)
    names = list(files)
    if exported.base_model is not None:
        exported.base_model.save(out / "base.keras")
        names.append("base.keras")
    print(
        f"{job.recipe}: {exported.initial.count} weights, trainer {len(exported.trainer)} bytes", flush=True
    )
    found_in = parity.check(exported.manifest, out)
    for package, found in found_in.items():
        print(f"{package} differs from Keras by: {found}", flush=True)
    seal(out, names)
    return found_in


def finish(
    manifest: Manifest, weights: Weights, pictures: NDArray[np.uint8], out: Path, *, base: Any | None = None
) -> None:
    """Write `model.keras`, `model.tflite`, `model_int8.tflite` and `labels.txt`, pixels to probabilities.

    `model.tflite` takes float32[1, H, W, C] pixels 0..255; `model_int8.tflite` takes them as uint8 and gives
    uint8 probabilities in 1/256. `pictures` uint8[N, H, W, C] set its ranges. Raises ModelError, DataError.
    """
    model = build_model(manifest.keras)
    if why := differs(weights.shapes, manifest.shapes):
        raise ExportError(f"these weights are not those of {manifest.recipe}: {why}")
    for name, variable in named_variables(model):
        variable.assign(weights[name])
    if manifest.features is not None:
        model = _joined(base, model, manifest)
    side = manifest.input
    want = (side.height, side.width, side.channels)
    if pictures.dtype != np.uint8 or pictures.shape[1:] != want or not len(pictures):
        raise DataError(
            f"representative pictures are {pictures.dtype}{list(pictures.shape)}, expected {list(want)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / DONE).unlink(missing_ok=True)
    model.save(out / "model.keras")
    (out / "model.tflite").write_bytes(convert.inference_file(model))
    (out / "model_int8.tflite").write_bytes(convert.int8_file(model, pictures))
    (out / "labels.txt").write_text("".join(f"{label}\n" for label in manifest.labels), encoding="utf-8")


def finish_folder(job: FinishJob) -> None:
    """Do a finish job and seal the folder."""
    import keras

    manifest = Manifest.decode((job.build / "manifest.json").read_bytes())
    weights = decode(job.weights.read_bytes(), who=str(job.weights)).weights
    pictures = np.load(job.pictures, allow_pickle=False, mmap_mode="r")
    base = None
    if manifest.features is not None:
        base = keras.models.load_model(job.build / "base.keras", compile=False)
    finish(manifest, weights, pictures, job.out, base=base)
    seal(job.out, FINISHED)


def read_folder(job: ReadJob) -> None:
    """Do a read job and seal the folder. Raises ModelError where the file does not load or lacks a tensor."""
    import keras

    try:
        model = keras.models.load_model(job.file, compile=False, safe_mode=True)
    except Exception as e:  # Keras raises anything for a file that does not hold
        raise ModelError(f"{job.file} does not load: {type(e).__name__}: {str(e)[:200]}") from None
    found = dict(named_variables(model))
    weights = Weights({name: found[_place_of(name, found)].numpy() for name in job.names})
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / DONE).unlink(missing_ok=True)
    (job.out / READ).write_bytes(encode(weights))
    seal(job.out, [READ])


def _place_of(name: str, found: Mapping[str, Any]) -> str:
    """Where a file has a tensor: a finished transfer model has those of its head in a sub-model."""
    if name in found:
        return name
    places = [place for place in found if place.endswith(f"/{name}")]
    if len(places) != 1:
        shown = ", ".join(list(found)[:8])
        raise ModelError(f"the start model has {len(places)} tensors {name!r}, expected one; it has {shown}")
    return places[0]


def _joined(base: Any | None, head: Any, manifest: Manifest) -> Any:
    import keras

    if base is None:
        raise ExportError(f"{manifest.recipe} trains on features: its base is needed to finish it")
    side = manifest.input
    picture = keras.Input((side.height, side.width, side.channels), name="picture")
    return keras.Model(picture, head(base(picture, training=False), training=False), name=manifest.recipe)


def _activations(model: Any) -> int:
    """Numbers that the layers of a model give for one sample, those of models within it too."""
    return sum(
        _activations(layer) if hasattr(layer, "layers") else math.prod(layer.output.shape[1:])
        for layer in model.layers
    )
