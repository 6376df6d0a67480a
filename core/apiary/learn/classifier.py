"""A finished `model.tflite` or `model_int8.tflite`: pictures to class probabilities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError, ModelError
from apiary.learn.images import Dataset
from apiary.learn.manifest import PictureInput
from apiary.learn.metrics import Evaluation, report
from apiary.learn.runtimes import litert
from apiary.tensors import Array


class Classifier:
    """Loads the file once; `input` is what samples must become, the file's own shape if not given.

    Raises ModelError.
    """

    def __init__(self, path: Path, *, threads: int = 1, read_as: PictureInput | None = None):
        self._model = litert.open_model(path, threads=threads)
        with litert.quiet():
            self._model.allocate_tensors()
        self._in = self._model.get_input_details()[0]
        self._out = self._model.get_output_details()[0]
        shape = [int(d) for d in self._in["shape"]]
        if len(shape) != 4 or shape[0] != 1 or shape[3] not in (1, 3):
            raise ModelError(f"{path} takes {shape}, expected one picture [1, height, width, 1 or 3]")
        own = PictureInput(height=shape[1], width=shape[2], channels=3 if shape[3] == 3 else 1)
        self.input = read_as or own
        if self.input.model_copy(update={"letters": ""}) != own:
            raise ModelError(f"{path} takes {shape}, expected {read_as}")
        self.classes = int(self._out["shape"][-1])

    def predict(self, pictures: NDArray[np.uint8]) -> Array:
        """float32[N, C] probabilities of uint8[N, H, W, C], or [C] of one [H, W, C]. Raises DataError."""
        if pictures.ndim == 3:
            return np.array(self.predict(pictures[None])[0], np.float32)
        want = (self.input.height, self.input.width, self.input.channels)
        if pictures.shape[1:] != want or pictures.dtype != np.uint8:
            raise DataError(
                f"pictures of {pictures.dtype}{list(pictures.shape[1:])}, the model takes uint8{list(want)}"
            )
        out = np.empty((len(pictures), self.classes), np.float32)
        for i, picture in enumerate(pictures):
            self._model.set_tensor(self._in["index"], _to(picture[None], self._in))
            self._model.invoke()
            out[i] = _from(self._model.get_tensor(self._out["index"]), self._out)[0]
        return out


def evaluate(classifier: Classifier, data: Dataset) -> Evaluation:
    """Judge a finished model on labelled pictures. Raises DataError."""
    if data.x.dtype != np.uint8:
        raise DataError("a finished model is judged on pictures, not on features")
    if len(data.labels) != classifier.classes:
        raise DataError(f"the model has {classifier.classes} classes, the data {len(data.labels)}")
    return report(classifier.predict(data.x.astype(np.uint8, copy=False)), data.y, data.labels)


def _to(x: NDArray[np.uint8], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Pixels as the model's input type; quantised inputs by their scale and zero point."""
    if detail["dtype"] == np.float32:
        return x.astype(np.float32)
    scale, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    quantised: NDArray[Any] = np.clip(np.rint(x / scale) + zero, limits.min, limits.max)
    return quantised.astype(detail["dtype"])


def _from(y: NDArray[Any], detail: Mapping[str, Any]) -> Array:
    if y.dtype == np.float32:
        return y.astype(np.float32)
    scale, zero = detail["quantization"]
    return np.array((y.astype(np.float32) - zero) * scale, np.float32)
