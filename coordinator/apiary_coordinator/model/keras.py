"""Builds models with Keras: a child with TensorFlow exports recipes, the light runtime evaluates them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from apiary.blobs import BlobStore
from apiary.errors import DataError
from apiary.files import disk_errors, sha256_of, write_atomic
from apiary.learn import features as frozen
from apiary.learn import images
from apiary.learn.cache import ArrayCache
from apiary.learn.classifier import Classifier
from apiary.learn.classifier import evaluate as evaluate_classifier
from apiary.learn.fit import predict
from apiary.learn.folder import labels as naming
from apiary.learn.images import Dataset, Scan
from apiary.learn.manifest import INPUT, Manifest
from apiary.learn.metrics import Evaluation, report
from apiary.learn.partition import evenly
from apiary.learn.runtimes import choose
from apiary.learn.runtimes.base import Trainer
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import Digest, blob, held_out
from apiary.wire.messages import MAX_LABEL_CHARS, MAX_LABELS, BlobRef, fits_label
from apiary_coordinator import strategies
from apiary_coordinator.export.client import Built, build_in_child, finish_in_child, read_in_child
from apiary_coordinator.export.job import FINISHED, BuildJob, FinishJob, ReadJob
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor, carried_over
from apiary_coordinator.recipes.base import recipe
from apiary_coordinator.run.finished import MODELS

log = logging.getLogger(__name__)

_CACHE_MB = 1024
REPRESENTATIVE: Final = 100
"""Pictures that the converter finds the ranges of int8 with; of more labels than these one each."""


class KerasModelBuilder:
    """Builds, evaluates and finishes the model of one run."""

    def __init__(self, settings: Settings, blobs: BlobStore):
        self._settings = settings
        self._blobs = blobs
        self._state = settings.coordinator.state_dir
        self._held_out: Dataset | None = None
        self._trainer: Trainer | None = None

    def labels(self) -> tuple[str, ...]:
        """The labels of a run. Raises DataError where there are none."""
        return tuple(held_out_labels(self._settings))

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        """Export the recipe in a child and put its files into the blob store."""
        labels = held_out_labels(self._settings)
        with disk_errors("cannot make the export"):  # a full disk is no bug: the job is tried again
            built = self._export(labels)
            initial = built.initial
            if ancestor is not None:
                ancestor = ancestor.compared_with(labels)
                before = weights if weights is not None else self._read(ancestor, built.manifest)
                axes = recipe(self._settings.run.recipe).LABEL_AXES
                initial = carried_over(before, ancestor.labels, initial, labels, axes)
            return ExportedModel(
                labels=tuple(labels),
                manifest=self._keep(built.manifest_file.read_bytes()),
                trainer=self._keep(built.trainer.read_bytes()),
                base=self._keep(built.base.read_bytes()) if built.base else None,
                initial=self._keep(blob.encode(initial)),
                held_out=self._keep_digests(built.manifest),
                ancestor=ancestor,
            )

    def manifest(self, exported: ExportedModel) -> Manifest:
        """The manifest of what was built."""
        return Manifest.decode(self._blobs.read(Digest(exported.manifest.digest)))

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        """Evaluate weights on the held-out pictures."""
        manifest = self.manifest(exported)
        pictures = self._pictures(exported, manifest, features=True)
        if self._trainer is None:
            trainer = self._blobs.path(Digest(exported.trainer.digest)) if exported.trainer else None
            self._trainer = choose("auto").open_trainer(manifest, trainer, threads=1)
        return evaluate(self._trainer, weights, pictures, manifest.labels)

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        """Write the final files; the int8 model's accuracy on the same pictures."""
        with disk_errors("cannot make the final model"):
            manifest = self.manifest(exported)
            weights_file = self._state / "final.blob"
            write_atomic(weights_file, blob.encode(weights))
            pictures = self._pictures(exported, manifest, features=False)
            representative = self._state / "representative.npy"
            np.save(representative, pictures.x[evenly(pictures.y, REPRESENTATIVE)], allow_pickle=False)
            job = FinishJob(
                build=self._export(list(manifest.labels)).folder,
                weights=weights_file,
                pictures=representative,
                out=self._state / "final",
            )
            finish_in_child(job)
            for name in FINISHED:
                write_atomic(folder / name, (job.out / name).read_bytes())
            write_atomic(folder / INPUT, manifest.input.model_dump_json().encode() + b"\n")
            tflite, int8 = (job.out / name for name in MODELS.values())
            return {
                "tflite_accuracy": evaluate_classifier(Classifier(tflite), pictures).accuracy,
                "int8_accuracy": evaluate_classifier(Classifier(int8), pictures).accuracy,
                # What was evaluated: a publisher refuses a file that was changed since.
                "files": {path.name: sha256_of(path) for path in (tflite, int8)},
            }

    def _read(self, ancestor: Ancestor, manifest: Manifest) -> Weights:
        file = Path(str(ancestor.file))
        return read_in_child(ReadJob(file=file, names=list(manifest.shapes), out=self._state / "start"))

    def _export(self, labels: list[str]) -> Built:
        run = self._settings.run
        job = BuildJob(
            recipe=run.recipe,
            options=run.recipe_options,
            labels=labels,
            plan=strategies.load(run).plan(run.plan),
            train=run.train,
            base_weights=self._settings.coordinator.base_weights,
            seed=run.seed,
            out=self._state / "build",
        )
        cache = self._settings.coordinator.exports_dir or self._state / "exports"
        return build_in_child(job, cache=cache)

    def _pictures(self, exported: ExportedModel, manifest: Manifest, *, features: bool) -> Dataset:
        if self._held_out is not None and features:
            return self._held_out
        cache = ArrayCache(self._state / "cache", _CACHE_MB)
        found = self._scan(manifest)
        if features and exported.base is not None and manifest.features is not None:
            base = self._blobs.path(Digest(exported.base.digest))
            data = frozen.load(
                found,
                manifest.input,
                lambda: choose("auto").open_base(base),
                length=manifest.features,
                base_digest=exported.base.digest,
                cache=cache,
            )
        else:
            data = images.load(found, manifest.input, cache=cache)
        for line in found.understood:
            log.info("held-out pictures: %s", line)
        unread = data.skipped[len(found.skipped) :]
        for message in [
            *found.messages(),
            *(f"{naming.shown(str(s.path))}: left out: {s.why}" for s in unread),
        ]:
            log.warning("held-out pictures: %s", message)
        if features:
            self._held_out = data
        return data

    def _keep_digests(self, manifest: Manifest) -> BlobRef | None:
        """The held-out pictures by digest; of texts, short as they are, equal ones mean nothing."""
        if manifest.input.letters:
            return None
        return self._keep(held_out.encode(sha256_of(r.path) for r in self._scan(manifest).records))

    def _scan(self, manifest: Manifest) -> Scan:
        given = self._settings.coordinator
        if given.test_data is None:
            raise DataError("no held-out pictures are set (coordinator.test_data)")
        return images.scan(
            given.test_data, manifest.labels, manifest.input, use="test", join_labels=given.join_labels
        )

    def _keep(self, data: bytes) -> BlobRef:
        return BlobRef(digest=self._blobs.put(data), bytes=len(data))


def evaluate(trainer: Trainer, weights: Weights, dataset: Dataset, labels: Sequence[str]) -> Evaluation:
    """Evaluate `weights`, which `trainer` holds afterwards. Raises DataError where labels differ."""
    if tuple(labels) != dataset.labels:
        raise DataError(
            f"the held-out pictures have the labels {list(dataset.labels)}, the model {list(labels)}"
        )
    trainer.set_weights(weights)
    return report(predict(trainer, dataset), dataset.y, labels)


def held_out_labels(settings: Settings) -> list[str]:
    """The labels of the run, from the settings or the held-out pictures' folders. Raises DataError."""
    given = settings.coordinator
    if given.test_data is None:
        raise DataError(
            "no held-out pictures: give --test-data DIR (coordinator.test_data), a folder "
            "a label of pictures that no node trains on"
        )
    if given.labels is not None:
        labels = [naming.readable(label) for label in given.labels]
    else:
        labels = list(images.scan(given.test_data, use="test", join_labels=given.join_labels).known)
    if len(labels) < 2:
        raise DataError(
            f"{given.test_data} holds one class only ({', '.join(labels)}); a classifier needs two or more"
        )
    source = "coordinator.labels" if given.labels is not None else f"test pictures {given.test_data}"
    if len(labels) > MAX_LABELS:
        raise DataError(f"{source}: {len(labels)} labels, expected at most {MAX_LABELS}")
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise DataError(
            f"{source}: {', '.join(map(repr, repeated[:3]))} more than once, expected each label once"
        )
    if unfit := [label for label in labels if not fits_label(label)]:
        raise DataError(
            f"label {unfit[0][:80]!a} cannot be announced: "
            f"expected 1 to {MAX_LABEL_CHARS} characters of UTF-8; rename it"
        )
    return labels
