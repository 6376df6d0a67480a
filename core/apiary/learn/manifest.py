"""The manifest beside an exported model: everything a node must know to train it, as data."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary.errors import DataError, ModelError, SettingsError
from apiary.tensors import Shapes
from apiary.wire.messages import Plan


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Tensor(_Part):
    """One weight tensor: its stable name, its shape, and its argument in the `.tflite` signatures."""

    name: str
    shape: tuple[int, ...]
    argument: str
    trainable: bool = True
    sent: bool = Field(True, exclude_if=lambda sent: sent)
    """Whether updates hold it; if not, it stays what it was in the model that the run began with."""


INPUT: Final = "input.json"
"""The file of a run with its model's input: a `PictureInput`."""
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz '-.,"
"""What short texts are reduced to: accents dropped, in lower case."""


class PictureInput(_Part):
    """What a sample becomes: numbers 0 to 255 of [height, width, channels].

    A picture is squashed to height x width, grey (1) or RGB (3). Where `letters` are given a sample is a line
    of text: `height` letters, a row each, with 255 at the letter's place in `letters` (`apiary.learn.text`).
    """

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    channels: Literal[1, 3]
    letters: Annotated[str, Field(max_length=256)] = ""


def read_input(run: Path) -> PictureInput | None:
    """What a finished run's model reads, None where its folder does not say. Raises DataError."""
    try:
        return PictureInput.model_validate_json((run / INPUT).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as e:
        raise DataError(f"{run / INPUT} cannot be read: {e}") from None


MAX_NOISE: Final = 2**24
"""64 MB for a sample: of wider layers none trains on a Pi."""
Control = Literal["weight_decay", "gradient_clip"]


def controls_of(plan: Plan) -> tuple[Control, ...]:
    """The inputs that a training step needs for this plan beyond learning rate and mu."""
    used: dict[Control, float] = {"weight_decay": plan.weight_decay, "gradient_clip": plan.gradient_clip}
    return tuple(control for control, value in used.items() if value)


def parts(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The tensors among `names` that are named, or whose layer is, by one of the `patterns`; without any all.

    `*`, `?` and `[...]` stand for what they do in file names. Raises SettingsError for a pattern that names
    nothing. Example: `parts(["classes"], ["a/kernel", "classes/kernel"])` gives `["classes/kernel"]`.
    """

    def named(pattern: str, name: str) -> bool:
        return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[0], pattern)

    for pattern in patterns:
        if not any(named(pattern, name) for name in names):
            there = ", ".join(dict.fromkeys(name.rpartition("/")[0] or name for name in names))
            raise SettingsError(f"run.train: {pattern!r} names nothing of the model; its layers are: {there}")
    return [name for name in names if not patterns or any(named(p, name) for p in patterns)]


class Manifest(_Part):
    """An exported recipe.

    `features` is the length of the base's output where pictures first go through a frozen base (the trainer
    then takes float32[B, features]), None where the trainer takes float32[B, height, width, channels] with
    values 0 to 255. `keras` is the architecture as Keras' own JSON, for the keras runtime. `activations` are
    the numbers that all trained layers give for one picture: what a training step must keep.
    """

    v: Literal[1] = 1
    recipe: str
    options: dict[str, Any] = Field(default_factory=dict)
    input: PictureInput
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    tensors: tuple[Tensor, ...]
    features: int | None = None
    batch_size: Annotated[int, Field(ge=1)]
    optimizer: Literal["sgd", "adam"]
    momentum: float = 0.9
    keras: str = ""
    activations: Annotated[int, Field(ge=0)] = 0
    controls: tuple[Control, ...] = Field((), exclude_if=lambda controls: not controls)
    """Inputs of the training step beyond learning rate and FedProx's mu."""
    noise: Annotated[int, Field(ge=0, le=MAX_NOISE)] = Field(0, exclude_if=lambda noise: not noise)
    """Uniform numbers that the training step takes for each sample: those of dropout."""

    @property
    def shapes(self) -> Shapes:
        """Shape of every weight tensor by name, in order."""
        return {t.name: t.shape for t in self.tensors}

    @property
    def statistics(self) -> frozenset[str]:
        """The tensors that a step moves without a gradient: BatchNormalization's running moments."""
        return frozenset(t.name for t in self.tensors if t.sent and not t.trainable)

    @property
    def update_shapes(self) -> Shapes:
        """The same of the tensors that an update holds."""
        return {t.name: t.shape for t in self.tensors if t.sent}

    def encode(self) -> bytes:
        """Canonical JSON bytes; the same manifest gives the same digest."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read `encode`'s bytes. Raises ModelError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise ModelError(
                f"the model's manifest does not hold: {e.errors(include_url=False)[0]}"
            ) from None
