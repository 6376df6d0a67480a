"""What a publisher is, and what it is given: one finished, evaluated model of a run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from apiary.errors import DataError, PublishError
from apiary.files import sha256_of
from apiary.learn.manifest import PictureInput, read_input
from apiary.settings import Settings
from apiary_coordinator.publishers._record import PublishRecord
from apiary_coordinator.run.finished import MODELS, read_labels

PACKAGE: Final = "apiary_coordinator.publishers"
Kind = Literal["float32", "int8"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run's finished model, verified: the file loads, has these labels, and is the one that was evaluated.

    `accuracy` is by kind, on the server's held-out pictures; `digests` by file name.
    """

    folder: Path
    run: str
    round: int | None
    labels: tuple[str, ...]
    input: PictureInput
    kind: Kind
    accuracy: Mapping[str, float]
    contributors: int
    digests: Mapping[str, str]

    @property
    def model(self) -> Path:
        """The file of this kind."""
        return self.folder / MODELS[self.kind]

    @property
    def sha256(self) -> str:
        """Of the file of this kind."""
        return self.digests[MODELS[self.kind]]


@dataclass(frozen=True, slots=True)
class PublishProgress:
    """Where a publisher reports its progress, and whether it is to stop."""

    say: Callable[[str], None]
    stop: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raises PublishError once it is to stop."""
        if self.stop():
            raise PublishError("publishing was stopped; the same command goes on with it")


class Publisher(Protocol):
    """A plug-in module of `apiary_coordinator.publishers` has these names."""

    REMOTE: bool
    """Whether it needs the network: those that do not go first."""

    def entry(self, candidate: Candidate, settings: Settings) -> str:
        """Its name in publish.json; another target is another entry."""

    def wanted(self, candidate: Candidate, settings: Settings) -> dict[str, Any]:
        """All that the result depends on, as JSON: a record of something else is begun anew."""

    def publish(
        self, candidate: Candidate, settings: Settings, record: PublishRecord, watch: PublishProgress
    ) -> dict[str, Any]:
        """Do what `record` has not done yet; the result as JSON.

        Its `files` are the sha256 by path, relative to the run's folder or absolute. Raises ApiaryError.
        """


def candidate(folder: Path, kind: Kind) -> Candidate:
    """The finished model in a run's folder. Raises DataError, ModelError, PublishError."""
    from apiary.learn.classifier import Classifier

    labels = tuple(read_labels(folder))
    summary = _summary(folder)
    digests = {
        name: file_sha256(folder / name) for name in MODELS.values() if (folder / name).is_file()
    }  # before it is opened: what is loaded is what was hashed, or the sha256 no longer fits
    name = MODELS[kind]
    if name not in digests:
        raise DataError(f"{folder} holds no {name}: the run has not finished, or was not exported as {kind}")
    recorded = summary.get("files")
    for other, digest in (recorded if isinstance(recorded, dict) else {}).items():
        if digests.get(other, digest) != digest:
            raise PublishError(
                f"{folder / other} is {digests[other][:12]}..., the run evaluated {digest[:12]}...: "
                "it was changed since; put the file back, or let the run finish again"
            )
    classifier = Classifier(folder / name, read_as=read_input(folder))
    if classifier.classes != len(labels):
        raise PublishError(f"{folder / name} has {classifier.classes} classes, labels.txt {len(labels)}")
    found = {k: summary.get(f"{t}_accuracy") for k, t in (("float32", "tflite"), ("int8", "int8"))}
    last = summary.get("contributors")
    rounds = last if isinstance(last, dict) else {}
    return Candidate(
        folder=folder,
        run=str(summary.get("run", folder.name)),
        round=summary.get("best_round"),
        labels=labels,
        input=classifier.input,
        kind=kind,
        accuracy={k: float(v) for k, v in found.items() if isinstance(v, int | float)},
        contributors=len({node for nodes in rounds.values() for node in nodes}),
        digests=digests,
    )


def below_its_start(folder: Path) -> bool:
    """Whether a finished run's best model is worse than the one that it began with. Raises DataError."""
    summary = _summary(folder)
    ancestor, best = summary.get("ancestor"), summary.get("best_accuracy")
    before = ancestor.get("accuracy_here") if isinstance(ancestor, dict) else None
    return isinstance(before, int | float) and isinstance(best, int | float) and best < before


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises DataError."""
    try:
        return sha256_of(path)
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}") from None


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    try:
        value = json.loads(path.read_bytes())
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}; has the run finished?") from None
    except ValueError:
        raise DataError(f"{path} is not JSON") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not the summary of a run")
    return value
