"""The smallest real model: softmax regression in numpy, as a runtime and as a coordinator's builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apiary.blobs import BlobStore
from apiary.learn import images
from apiary.learn.fit import predict
from apiary.learn.images import Dataset
from apiary.learn.manifest import Manifest, PictureInput, Tensor, parts
from apiary.learn.metrics import Evaluation, report
from apiary.learn.runtimes.base import FeatureExtractor, StepControls
from apiary.settings import Settings
from apiary.tensors import Array, Weights
from apiary.wire import blob
from apiary.wire.messages import BlobRef
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor

PLAN = {"epochs": 2, "batch_size": 8, "optimizer": "sgd", "learning_rate": 0.5}
"""`run.plan` that it can be trained by."""
TO = PictureInput(height=8, width=8, channels=1)


class RegressionTrainer:
    """Plain gradient descent."""

    def set_weights(self, weights: Weights) -> None:
        self.kernel, self.bias = weights["kernel"].copy(), weights["bias"].copy()

    def get_weights(self) -> Weights:
        return Weights({"kernel": self.kernel, "bias": self.bias})

    def infer(self, x: Array) -> Array:
        z = x.reshape(len(x), -1) / 255 @ self.kernel + self.bias
        e = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True), np.float32)

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
        p = self.infer(x)
        g = (p - y) * w[:, None]
        self.kernel -= np.float32(controls.learning_rate) * (x.reshape(len(x), -1) / 255).T @ g
        self.bias -= np.float32(controls.learning_rate) * g.sum(0)
        return float(-(w * np.log(np.maximum((p * y).sum(1), 1e-9))).sum())


class RegressionRuntime:
    """The runtime of that trainer."""

    def unavailable(self) -> str | None:
        return None

    def open_trainer(
        self, manifest: Manifest, trainer: Path | None, *, threads: int = 1
    ) -> RegressionTrainer:
        return RegressionTrainer()

    def open_base(self, base: Path) -> FeatureExtractor:
        raise AssertionError("it has no base")


class RegressionBuilder:
    """Builds without TensorFlow; evaluates on the pictures of `coordinator.test_data`."""

    def __init__(self, settings: Settings, blobs: BlobStore):
        self._settings = settings
        self._blobs = blobs
        self._held_out: Dataset | None = None

    def labels(self) -> tuple[str, ...]:
        return tuple(self._settings.coordinator.labels or ())

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        manifest = self._manifest()
        initial = Weights({name: np.zeros(shape, np.float32) for name, shape in manifest.shapes.items()})
        return ExportedModel(
            labels=self.labels(),
            manifest=self._keep(manifest.encode()),
            trainer=None,
            base=None,
            initial=self._keep(blob.encode(initial)),
        )

    def manifest(self, exported: ExportedModel) -> Manifest:
        return self._manifest()

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        if self._held_out is None:
            assert self._settings.coordinator.test_data is not None
            found = images.scan(self._settings.coordinator.test_data, self.labels(), TO, use="test")
            self._held_out = images.load(found, TO)
        trainer = RegressionTrainer()
        trainer.set_weights(weights)
        return report(predict(trainer, self._held_out), self._held_out.y, self.labels())

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        return {}

    def _manifest(self) -> Manifest:
        labels = self.labels()
        sent = parts(self._settings.run.train, ["kernel", "bias"])
        return Manifest(
            recipe="regression",
            input=TO,
            labels=labels,
            tensors=(
                Tensor(
                    name="kernel",
                    shape=(TO.height * TO.width, len(labels)),
                    argument="p000",
                    sent="kernel" in sent,
                ),
                Tensor(name="bias", shape=(len(labels),), argument="p001", sent="bias" in sent),
            ),
            batch_size=8,
            optimizer="sgd",
            momentum=0.9,
        )

    def _keep(self, data: bytes) -> BlobRef:
        return BlobRef(digest=self._blobs.put(data), bytes=len(data))
