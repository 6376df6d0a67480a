"""The model in a finished run's folder, opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apiary.errors import DataError
from apiary_coordinator.run.finished import MODELS

if TYPE_CHECKING:
    from apiary.learn.classifier import Classifier


def open_classifier(folder: Path, labels: list[str], *, int8: bool = False) -> Classifier:
    """The run's model. Raises DataError, ModelError."""
    from apiary.learn.classifier import Classifier
    from apiary.learn.manifest import read_input

    path = folder / MODELS["int8" if int8 else "float32"]
    if not path.is_file():
        raise DataError(f"{folder} holds no {path.name}: this run was not exported as int8")
    classifier = Classifier(path, read_as=read_input(folder))
    if classifier.classes != len(labels):
        raise DataError(
            f"{path} has {classifier.classes} classes, labels.txt {len(labels)}: they are of different runs"
        )
    return classifier
