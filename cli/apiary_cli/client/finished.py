"""A finished run's folder: which one is meant, its labels, its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.errors import DataError

if TYPE_CHECKING:
    from apiary.learn.classifier import Classifier

MODEL: Final = "model.tflite"
MODEL_INT8: Final = "model_int8.tflite"


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder of a run that has a model. Raises DataError naming the runs there are."""
    if name == "latest":
        found = sorted(_runs(runs_dir), key=lambda p: (p / MODEL).stat().st_mtime)
        if not found:
            raise DataError(f"{runs_dir} holds no finished run; `apiary demo` makes one")
        return found[-1]
    for folder in (Path(name), runs_dir / name):
        if (folder / MODEL).is_file():
            return folder
        if folder.is_dir():
            raise DataError(f"{folder} holds no {MODEL}: the run has not finished, or failed")
    known = ", ".join(p.name for p in _runs(runs_dir)) or "none"
    raise DataError(f"no run {name!r}: neither a folder nor in {runs_dir}. There are: {known}")


def read_labels(folder: Path) -> list[str]:
    """The run's labels in the model's order. Raises DataError."""
    path = folder / "labels.txt"
    try:
        labels = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    if len(labels) < 2 or not all(labels):
        raise DataError(f"{path} holds {len(labels)} lines, expected a label on each of two or more")
    return labels


def open_classifier(folder: Path, labels: list[str], *, int8: bool = False) -> Classifier:
    """The run's model. Raises DataError, ModelError."""
    from apiary.learn.classifier import Classifier
    from apiary.learn.manifest import read_input

    path = folder / (MODEL_INT8 if int8 else MODEL)
    if not path.is_file():
        raise DataError(f"{folder} holds no {path.name}: this run was not exported as int8")
    classifier = Classifier(path, read_as=read_input(folder))
    if classifier.classes != len(labels):
        raise DataError(
            f"{path} has {classifier.classes} classes, labels.txt {len(labels)}: they are of different runs"
        )
    return classifier


def _runs(runs_dir: Path) -> list[Path]:
    if not runs_dir.is_dir():
        return []
    return sorted(p for p in runs_dir.iterdir() if (p / MODEL).is_file() and (p / "labels.txt").is_file())
