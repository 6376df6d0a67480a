"""Handwritten mathematics: two convolutions, a dense layer and dropout, on 45x45 grey symbols.

The size of the CROHME symbols as published for classification; every other size and data set will do, too.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from apiary.learn.manifest import PictureInput
from apiary_coordinator.recipes.base import Models, RecipeOptions

LABEL_AXES: Final = {"classes/kernel": 1, "classes/bias": 0}


class Options(RecipeOptions):
    """`widths`: channels of both convolutions; `dropout`: share of the dense layer that a step leaves out."""

    size: Annotated[int, Field(ge=12, le=256)] = 45
    channels: Literal[1, 3] = 1
    widths: tuple[Annotated[int, Field(ge=4, le=512)], Annotated[int, Field(ge=4, le=512)]] = (32, 64)
    hidden: Annotated[int, Field(ge=8, le=4096)] = 128
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.5


def tensors(options: Options) -> tuple[str, ...]:
    """Of the convolutions, the dense layer and the classes."""
    layers = ("block1_conv", "block2_conv", "hidden")
    return (*(f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")), *LABEL_AXES)


def capabilities(options: Options) -> frozenset[str]:
    """Dropout is noise that a node makes."""
    return frozenset({"rule.dropout"} if options.dropout else ())


def build(options: Options, classes: int, *, base_weights: Path | None, seed: int) -> Models:
    """683 thousand weights at 45x45 and ten classes. `base_weights` is not used."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    x = symbol = keras.Input((options.size, options.size, options.channels), name="symbol")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(x)
    for i, width in enumerate(options.widths, 1):
        x = layers.Conv2D(width, 3, activation="relu", name=f"block{i}_conv")(x)
        x = layers.MaxPooling2D(2, name=f"block{i}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(options.hidden, activation="relu", name="hidden")(x)
    if options.dropout:
        x = layers.Dropout(options.dropout, name="hidden_dropout")(x)
    x = layers.Dense(classes, name="classes")(x)
    model = keras.Model(symbol, layers.Activation("softmax", name="probabilities")(x), name="maths_cnn")
    return Models(PictureInput(height=options.size, width=options.size, channels=options.channels), model)
