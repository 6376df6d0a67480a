"""What a recipe is: options, and a function from them to Keras models. Importing one is light."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from apiary.errors import SettingsError
from apiary.learn.manifest import PictureInput
from apiary.options import no_option
from apiary.plugins import load


@dataclass(frozen=True, slots=True)
class Models:
    """A recipe's Keras models, freshly initialised by seed.

    `trained` takes pixels 0..255 float32[B, H, W, C] (or, where there is a `base`, its features) and ends in
    a layer `Activation("softmax")` over the classes. `base` is frozen and takes the pixels. Layers are named
    by hand: a tensor's name is its layer's, and must be the same in every process. The tensors `fixed` stay
    what they were in the model that a run began with: they are not sent.
    """

    input: PictureInput
    trained: Any
    base: Any | None = None
    fixed: frozenset[str] = frozenset()


class Recipe(Protocol):
    """A plug-in module of `apiary_coordinator.recipes` has these.

    It may also have `capabilities(options) -> frozenset[str]`: what a node must be able to do to train it
    (`apiary.wire.capabilities`), beyond what the plan asks.
    """

    class Options(BaseModel):
        """The recipe's options with defaults and bounds, unknown ones forbidden."""

    LABEL_AXES: Mapping[str, int]
    """The axis of labels of each tensor that has one: a run that goes on from a model extends it there."""

    def tensors(self, options: Any) -> tuple[str, ...]:
        """The names of the trained model's tensors, known without building it: what `run.train` may name."""

    def build(self, options: Any, classes: int, *, base_weights: Path | None, seed: int) -> Models:
        """The models for checked options. Raises ModelError."""


class RecipeOptions(BaseModel):
    """Base of every recipe's `Options`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises SettingsError."""
    return cast("Recipe", load(__package__ or "", name))


def capabilities(name: str, options: Mapping[str, Any]) -> frozenset[str]:
    """What a node must be able to do to train this recipe. Raises SettingsError."""
    needs: Callable[[Any], frozenset[str]] | None = getattr(recipe(name), "capabilities", None)
    return frozenset() if needs is None else needs(check_options(name, options))


def check_options(name: str, given: Mapping[str, Any]) -> BaseModel:
    """The recipe's options, defaults filled in. Raises SettingsError naming the option."""
    kind = recipe(name).Options
    try:
        return kind.model_validate(dict(given))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join(str(p) for p in first["loc"]) or "options"
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"recipe {name}: {no_option(key, kind.model_fields)}") from None
        raise SettingsError(f"recipe {name}: {key} is {first.get('input')!r}: {first['msg']}") from None
