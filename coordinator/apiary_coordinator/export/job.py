"""What the coordinator asks of its export child, as JSON, and what it then finds on disk. No TensorFlow.

`python -m apiary_coordinator.export build JOB.json` reads a `BuildJob` and fills its folder with

    manifest.json     apiary.learn.manifest.Manifest, canonical bytes
    trainer.tflite    train, infer, get_weights, set_weights
    base.tflite       the frozen base, for transfer recipes only
    base.keras        the same for Keras, needed to finish; never leaves the coordinator
    initial.blob      the weights to begin with, a raw_f32 weights blob
    done.json         file name -> sha256; written last, so a folder without it is torn

`python -m apiary_coordinator.export finish JOB.json` reads a `FinishJob` and fills its folder with

    model.keras  model.tflite  model_int8.tflite  labels.txt  done.json

`python -m apiary_coordinator.export read JOB.json` reads a `ReadJob` and fills its folder with

    weights.blob  done.json
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary.errors import ExportError
from apiary.files import sha256_of, write_json
from apiary.wire.messages import Label, Plan

DONE: Final = "done.json"
FINISHED: Final = ("model.keras", "model.tflite", "model_int8.tflite", "labels.txt")
READ: Final = "weights.blob"
REVISION: Final = 3
"""Goes into the key of cached builds: raise it when the same job gives other files."""


class _Job(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, path: Path) -> Any:
        """The job in a JSON file. Raises ExportError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as e:
            raise ExportError(f"job file {path}: {e.strerror}") from None
        except ValidationError as e:
            first = e.errors(include_url=False)[0]
            raise ExportError(
                f"job file {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from None


class BuildJob(_Job):
    """Export a recipe. Of the plan, batch size, optimizer, momentum and its controls are built in."""

    v: Literal[1] = 1
    recipe: str
    options: dict[str, Any] = Field(default_factory=dict)
    labels: list[Label] = Field(min_length=2, max_length=1000)
    plan: Plan = Field(default_factory=Plan)
    train: list[str] = Field(default_factory=list)
    base_weights: Path | None = None
    seed: int = Field(0, ge=0, lt=2**31)
    out: Path


class FinishJob(_Job):
    """Turn trained weights into finished models. `build` is the folder of the recipe's build.

    `weights` is a weights blob of any codec; `pictures` a `.npy` of uint8[N, H, W, C], N at least 1, that
    stand for what the model will see (they set the ranges of the int8 model).
    """

    v: Literal[1] = 1
    build: Path
    weights: Path
    pictures: Path
    out: Path


class ReadJob(_Job):
    """Take the tensors `names` out of a `.keras` file."""

    v: Literal[1] = 1
    file: Path
    names: list[str]
    out: Path


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write `done.json` over these files: the mark of a complete folder."""
    write_json(folder / DONE, {name: sha256_of(folder / name) for name in names})


def sealed(folder: Path) -> dict[str, str] | None:
    """File names and digests of a complete, untouched folder, or None."""
    try:
        listed: dict[str, str] = json.loads((folder / DONE).read_bytes())
        whole = all(sha256_of(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return listed if whole else None
