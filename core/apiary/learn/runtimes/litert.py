"""Training with `tflite-runtime` or `ai-edge-litert`, whichever is installed: no TensorFlow."""

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from apiary.errors import ModelError, RuntimeUnavailable
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes.base import FeatureExtractor, StepControls, Trainer
from apiary.tensors import Array, Weights, differs

_PACKAGES: Final = ("ai_edge_litert", "tflite_runtime")
"""The faster first, where both are installed: a step of MobileNetV2's head took 0.28 ms and 1.29."""
_INSTALL: Final = "pip install 'apiary-fl[edge]' installs the right one"


def unavailable() -> str | None:
    """Why no TFLite interpreter can be used here and how to mend it, or None."""
    try:
        interpreter_class()
    except RuntimeUnavailable as e:
        return str(e)
    return None


def interpreter_class(package: str | None = None) -> Any:
    """The `Interpreter` of that package, or of the first that works. Raises RuntimeUnavailable."""
    reasons = []
    for name in (package,) if package else _PACKAGES:
        if (why := _not_usable(name)) is not None:
            reasons.append(why)
        elif name == "tflite_runtime" and "tensorflow" in sys.modules:
            # Both carry TFLite's C++ symbols: loading a file then ends in bad_alloc, or worse.
            reasons.append("tflite_runtime does not work in a process that has imported tensorflow")
        else:
            try:
                return importlib.import_module(f"{name}.interpreter").Interpreter
            except (ImportError, OSError) as e:
                reasons.append(f"{name} does not load: {e}")
    raise RuntimeUnavailable(f"{', '.join(reasons)} ({_INSTALL})")


def packages() -> list[str]:
    """The packages that are installed and go with this machine's numpy; none is loaded."""
    return [name for name in _PACKAGES if _not_usable(name) is None]


def _not_usable(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    if name == "tflite_runtime" and int(np.__version__.split(".", maxsplit=1)[0]) >= 2:
        # Its metadata allows numpy 2, its compiled part raises SystemError with it.
        return f"tflite_runtime does not work with numpy {np.__version__}: pip install 'numpy<2'"
    return None


def open_model(path: Path, *, threads: int = 1, package: str | None = None) -> Any:
    """An interpreter on a `.tflite` file, nothing allocated yet. Raises ModelError, RuntimeUnavailable.

    Whoever received the file has checked its digest: the interpreters crash on a torn one instead of raising.
    """
    interpreter = interpreter_class(package)
    if not path.is_file():
        raise ModelError(f"model file {path} does not exist")
    with path.open("rb") as f:
        if f.read(8)[4:] != b"TFL3":
            raise ModelError(f"{path} is not a TFLite model")
    try:
        with quiet():
            return interpreter(model_path=str(path), num_threads=threads)
    except (ValueError, RuntimeError) as e:
        raise ModelError(f"model file {path} does not load: {str(e)[:300]}") from None


def open_trainer(
    manifest: Manifest, trainer: Path | None, *, threads: int = 1, package: str | None = None
) -> Trainer:
    """Load a trainer from its `.tflite` file. Raises ModelError, RuntimeUnavailable."""
    if trainer is None:
        raise ModelError(
            f"the model {manifest.recipe} has no exported trainer; the keras runtime may train it"
        )
    return _Trainer(manifest, open_model(trainer, threads=threads, package=package), trainer)


def open_base(base: Path, *, threads: int = 1, package: str | None = None) -> FeatureExtractor:
    """Load a frozen base from its `.tflite` file. Raises ModelError, RuntimeUnavailable."""
    return Base(open_model(base, threads=threads, package=package))


class _Trainer:
    def __init__(self, manifest: Manifest, interpreter: Any, path: Path):
        missing = {"train", "infer", "get_weights", "set_weights"} - set(interpreter.get_signature_list())
        if missing:
            raise ModelError(f"trainer {path} lacks the signatures {sorted(missing)}")
        self._manifest = manifest
        with quiet():
            self._train = interpreter.get_signature_runner("train")
            self._infer = interpreter.get_signature_runner("infer")
            self._get = interpreter.get_signature_runner("get_weights")
            self._set = interpreter.get_signature_runner("set_weights")
        self._infer_size = int(self._infer.get_input_details()["x"]["shape"][0])
        details = self._set.get_input_details()
        held = {
            t.name: tuple(int(d) for d in details[t.argument]["shape"])
            for t in manifest.tensors
            if t.argument in details
        }
        if why := differs(held, manifest.shapes):
            raise ModelError(f"trainer {path} is not the one of this manifest: {why}")

    def set_weights(self, weights: Weights) -> None:
        if why := differs(weights.shapes, self._manifest.shapes):
            raise ModelError(f"weights of another model: {why}")
        with quiet():
            self._set(**{t.argument: weights[t.name] for t in self._manifest.tensors})

    def get_weights(self) -> Weights:
        out = self._get()
        # Copied: the runtime hands out its own memory, which the next step writes to.
        return Weights({t.name: np.array(out[t.argument], np.float32) for t in self._manifest.tensors})

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
        given = {"lr": controls.learning_rate, "mu": controls.mu}
        further = {"weight_decay": controls.weight_decay, "gradient_clip": controls.clip}
        given |= {name: further[name] for name in self._manifest.controls}
        inputs = {k: np.array([v], np.float32) for k, v in given.items()}
        if self._manifest.noise:
            inputs["noise"] = controls.noise(self._manifest)
        out = self._train(x=x, y=y, w=w, **inputs)
        return float(out["loss"].reshape(-1)[0])

    def infer(self, x: Array) -> Array:
        size = self._infer_size
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            # The file's batch is fixed; a sample's result does not hang on its neighbours.
            full = part if len(part) == size else np.resize(part, (size, *part.shape[1:]))
            parts.append(np.array(self._infer(x=np.ascontiguousarray(full))["prob"][: len(part)]))
        return np.concatenate(parts) if parts else np.empty((0, len(self._manifest.labels)), np.float32)


class Base:
    """A frozen base in an interpreter, float32[1, H, W, C] to float32[1, F]."""

    def __init__(self, interpreter: Any):
        with quiet():
            interpreter.allocate_tensors()
        self._model = interpreter
        self._in = interpreter.get_input_details()[0]["index"]
        self._out = interpreter.get_output_details()[0]["index"]

    def features(self, picture: Array) -> Array:
        """Features float32[F] of one picture float32[H, W, C], 0..255."""
        self._model.set_tensor(self._in, np.ascontiguousarray(picture[None], np.float32))
        self._model.invoke()
        return np.array(self._model.get_tensor(self._out), np.float32).reshape(-1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the C++ side's notes ("Created TensorFlow Lite XNNPACK delegate") off stderr; show them on errors.

    It has no log level that Python can set. File descriptor 2 is the whole process's, so only loading and the
    first call of a signature are wrapped.
    """
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, AttributeError, ValueError):  # no stderr at all, as under some service managers
        yield
        return
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            notes.seek(0)
            os.write(2, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
