"""A described model, opened: frames of any size to probabilities, with what each part of it took."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError, ModelError
from apiary.learn.manifest import Manifest, PictureInput
from apiary_edge.predicting.model_files import ModelFile

if TYPE_CHECKING:
    from apiary.learn.classifier import Classifier
    from apiary.learn.runtimes.base import FeatureExtractor, Trainer
    from apiary_edge.eim.client import EimRunner

Bytes = NDArray[np.uint8]

EIM_CLASSIFY_S: Final = 5.0
"""A program that takes longer for one picture is of no use for live pictures."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Probability of each label, in the model's order, and milliseconds."""

    probabilities: Mapping[str, float]
    preprocess_ms: float
    inference_ms: float

    @property
    def label(self) -> str:
        """The most probable label; the first of equals."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """Of the most probable label."""
        return self.probabilities[self.label]

    def top(self, most: int) -> list[tuple[str, float]]:
        """The most probable labels, best first."""
        return sorted(self.probabilities.items(), key=lambda kv: -kv[1])[:most]


class OpenedModel(Protocol):
    """An opened model; one thread at a time."""

    input: PictureInput
    squashes: bool
    """Whether it takes a picture of its own size as training made it; else it resizes in its own way."""

    def predict(self, frame: Bytes) -> Answered:
        """Look at uint8[H, W, 3]. Raises ModelError for what the model does wrong."""

    def renew(self, found: ModelFile) -> bool:
        """Become another model of the same build by taking its weights; False where it is of another.

        Raises ModelError, and nothing has changed, where the weights cannot be used.
        """
        return False

    def close(self) -> None:
        """Let go of it."""


def open_model(found: ModelFile) -> OpenedModel:
    """Load it, after its bytes were compared with its digest. Raises ModelError, DataError, BlobError."""
    match found.kind:
        case "tflite":
            return _Tflite(found)
        case "eim":
            return _Eim(found)
        case "trainer":
            return _Trained(found)


def check(model: OpenedModel, labels: tuple[str, ...]) -> None:
    """Let it look at one grey picture. Raises ModelError where what comes is no distribution."""
    side = model.input
    answered = model.predict(np.full((side.height, side.width, 3), 127, np.uint8))
    values = list(answered.probabilities.values())
    if set(answered.probabilities) != set(labels) or not np.isfinite(values).all():
        raise ModelError(f"the model answers {str(dict(answered.top(5)))[:200]} to a grey picture")


class _Tflite(OpenedModel):
    squashes = True

    def __init__(self, found: ModelFile):
        from apiary.learn.classifier import Classifier

        _must_be(found.file, found.digest)
        self._model: Classifier = Classifier(found.file)
        self._labels = found.labels
        self.input = self._model.input
        _must_fit(self._model.classes, found)

    def predict(self, frame: Bytes) -> Answered:
        began = time.monotonic()
        picture = _squash(frame, self.input)
        squashed = time.monotonic()
        return _answered(self._labels, self._model.predict(picture), began, squashed)

    def close(self) -> None:
        pass


class _Trained(OpenedModel):
    """An exported training step: only its `infer` signature is used, so only that takes memory."""

    squashes = True

    def __init__(self, found: ModelFile):
        from apiary.learn.runtimes import litert

        if found.manifest is None or found.trainer is None:
            raise ModelError(f"{found.name}: its description names no manifest or no trainer")
        for path in (found.manifest, found.trainer, *([found.base] if found.base else [])):
            _must_be(path, path.name)  # blobs are named by their digests
        manifest = Manifest.decode(found.manifest.read_bytes())
        if manifest.input.letters:
            raise ModelError(f"{found.name}: the model reads texts, a camera has none")
        self.input = manifest.input
        self._labels = manifest.labels
        self._build = (found.manifest, found.trainer, found.base)
        self._model: Trainer = litert.open_trainer(manifest, found.trainer)
        self._base: FeatureExtractor | None = None
        if manifest.features is not None:
            if found.base is None:
                raise ModelError(f"{found.name}: the model needs a frozen base, and none is described")
            self._base = litert.open_base(found.base)
        self._take(found)

    def predict(self, frame: Bytes) -> Answered:
        began = time.monotonic()
        picture = _squash(frame, self.input).astype(np.float32)
        squashed = time.monotonic()
        x = self._base.features(picture) if self._base is not None else picture
        return _answered(self._labels, self._model.infer(x[None])[0], began, squashed)

    def renew(self, found: ModelFile) -> bool:
        if found.kind != "trainer" or (found.manifest, found.trainer, found.base) != self._build:
            return False
        self._take(found)
        return True

    def close(self) -> None:
        pass

    def _take(self, found: ModelFile) -> None:
        from apiary.wire import blob

        _must_be(found.file, found.digest)
        weights = blob.decode(_read(found.file), who=str(found.file)).weights
        if not weights.is_finite():
            raise ModelError(f"{found.name}: the weights hold NaN or infinity")
        self._model.set_weights(weights)


class _Eim(OpenedModel):
    squashes = False

    def __init__(self, found: ModelFile):
        from apiary_edge.eim.client import EimLimits, EimRunner

        _must_be(found.file, found.digest)
        limits = EimLimits(classify_s=EIM_CLASSIFY_S)
        self._program: EimRunner = EimRunner(found.file, labels=found.labels, limits=limits)
        model = self._program.start()
        self.input = PictureInput(
            height=model.height, width=model.width, channels=3 if model.channels == 3 else 1
        )

    def predict(self, frame: Bytes) -> Answered:
        began = time.monotonic()
        found = self._program.classify(frame)
        took = 1000 * (time.monotonic() - began)
        inference = min(took, found.classification_ms) or took
        return Answered(found.probabilities, took - inference, inference)

    def close(self) -> None:
        self._program.close()


def _squash(frame: Bytes, to: PictureInput) -> Bytes:
    """As training made its pictures of files."""
    from PIL import Image

    from apiary.learn.images import squash

    return squash(Image.fromarray(frame).convert("L") if to.channels == 1 else frame, to)


def _answered(
    labels: tuple[str, ...], values: NDArray[np.float32], began: float, squashed: float
) -> Answered:
    done = time.monotonic()
    return Answered(
        {label: float(p) for label, p in zip(labels, values, strict=True)},
        1000 * (squashed - began),
        1000 * (done - squashed),
    )


def _must_fit(classes: int, found: ModelFile) -> None:
    if classes != len(found.labels):
        raise ModelError(f"{found.name}: the file has {classes} classes, its description {len(found.labels)}")


def _must_be(path: Path, digest: str) -> None:
    """The interpreters crash on a torn file instead of raising, so its bytes are compared first."""
    try:
        with path.open("rb") as f:
            held = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise ModelError(f"model file {path} cannot be read: {e.strerror}") from None
    if held != digest:
        raise ModelError(f"model file {path} is damaged: its sha256 is {held[:12]}, expected {digest[:12]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"model file {path} cannot be read: {e.strerror}") from None
