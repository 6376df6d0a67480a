"""Which model this node predicts with: small JSON files that say where it lies, read by other processes."""

from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary import files
from apiary.wire.messages import MAX_LABELS, Hex, Label
from apiary_edge.releases.store import current as installed_release
from apiary_edge.releases.store import current_file

_MAX_BYTES: Final = 2**20
_T = TypeVar("_T", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


Share = Annotated[float, Field(ge=0, le=1)]
Labels = Annotated[tuple[Label, ...], Field(min_length=2, max_length=MAX_LABELS)]


class ModelFile(_Part):
    """A model that can be run.

    `tflite` and `eim` are one file; `trainer` is the weights' file of an exported training step, whose
    `infer` signature predicts. `digest` is that of `file`. `accuracy` rests on `tested_on` held-out pictures:
    the server's, or this node's own for a release and a tuned model.
    """

    kind: Literal["tflite", "eim", "trainer"]
    name: str = ""
    digest: Hex
    file: Path
    labels: Labels
    accuracy: Share | None = None
    tested_on: Annotated[int, Field(ge=0)] | None = None
    manifest: Path | None = None
    trainer: Path | None = None
    base: Path | None = None
    base_digest: str | None = None
    personal: bool = False


class Personal(_Part):
    """What tuning the head to this node's pictures gave: weights in `file`, made of the model `of`.

    Both accuracies are on the same `held_out` pictures; None, with `why`, where they could not be compared.
    `counted` are the node's labelled pictures as the service counted them then.
    """

    of: str
    file: Path | None = None
    digest: Hex | None = None
    counted: int = 0
    samples: int = 0
    held_out: int = 0
    accuracy_global: Share | None = None
    accuracy_personal: Share | None = None
    why: str = ""

    @property
    def better(self) -> bool:
        """Whether this node should predict with it."""
        return (
            self.file is not None
            and self.digest is not None
            and self.accuracy_global is not None
            and self.accuracy_personal is not None
            and self.accuracy_personal > self.accuracy_global
        )


GROWTH: Final = 1.5
"""With so many times the labelled pictures, the head of the same model is tuned once more."""


def stale(tuned: Personal | None, newest: ModelFile, counted: int) -> bool:
    """Whether the newest model's head should be tuned, `counted` labelled pictures being there now."""
    if tuned is None or tuned.of != newest.digest:
        return True
    return counted > tuned.counted and counted >= GROWTH * tuned.counted


class _Labels(_Part):
    labels: Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS)]


def folder(state_dir: Path) -> Path:
    """Where a node keeps what it knows of the model it predicts with."""
    return state_dir / "predicting"


def newest_file(state_dir: Path) -> Path:
    """Describes the federation's newest model, once it is here whole."""
    return folder(state_dir) / "newest.json"


def personal_file(state_dir: Path) -> Path:
    """Says what tuning it gave."""
    return folder(state_dir) / "personal.json"


def labels_file(state_dir: Path) -> Path:
    """The labels that the federation's model tells apart, known before there is a model."""
    return folder(state_dir) / "labels.json"


def newest(state_dir: Path) -> ModelFile | None:
    """The federation's newest model that lies here."""
    found = _read(ModelFile, newest_file(state_dir))
    if found is None:
        return None
    named = {name: getattr(found, name) for name in ("file", "manifest", "trainer", "base")}
    return found.model_copy(update={name: _here(state_dir, path) for name, path in named.items()})


def personal(state_dir: Path) -> Personal | None:
    """What tuning the newest model gave; None until that was done."""
    found = _read(Personal, personal_file(state_dir))
    return found and found.model_copy(update={"file": _here(state_dir, found.file)})


def _here(state_dir: Path, path: Path | None) -> Path | None:
    """Where a described file lies now: the state folder may have moved since it was described."""
    if path is None or path.is_relative_to(state_dir.absolute()):
        return path
    moved = state_dir.absolute() / path.parent.name / path.name
    return moved if moved.is_file() else path


def chosen(state_dir: Path) -> ModelFile | None:
    """The model to predict with: the installed release, else the newest one, tuned where that is better."""
    slot = installed_release(state_dir)
    if slot is not None:
        return ModelFile(
            kind=slot.kind,
            name=f"release {slot.release}",
            digest=slot.digest,
            file=slot.path,
            labels=slot.labels,
            accuracy=slot.accuracy,
            tested_on=slot.tested.pictures,
        )
    found = newest(state_dir)
    tuned = personal(state_dir)
    if found is None or tuned is None or tuned.of != found.digest or not tuned.better:
        return found
    change = {
        "file": tuned.file,
        "digest": tuned.digest,
        "accuracy": tuned.accuracy_personal,
        "tested_on": tuned.held_out,
        "personal": True,
    }
    return found.model_copy(update=change)


def told_labels(state_dir: Path) -> tuple[str, ...]:
    """The labels that the coordinator named last."""
    described = _read(_Labels, labels_file(state_dir))
    return described.labels if described is not None else ()


def known_labels(state_dir: Path) -> tuple[str, ...]:
    """The labels that the federation's model tells apart; none where this node has not heard of any."""
    if described := told_labels(state_dir):
        return described
    found = chosen(state_dir)
    return found.labels if found is not None else ()


def stamp(state_dir: Path) -> tuple[object, ...]:
    """Changes whenever `chosen` may give something else."""
    described = current_file(state_dir), newest_file(state_dir), personal_file(state_dir)
    return tuple(files.stamp(path) for path in described)


def _read(model: type[_T], path: Path) -> _T | None:
    """A file as it was written whole, or None: a file that does not hold is as good as none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
