"""VGG with BatchNormalization and dropout, sized for 48x48 grey faces: expressions, seven classes.

Simonyan and Zisserman 2015 (arXiv:1409.1556): blocks of 3x3 convolutions and a pooling, then dense layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, model_validator

from apiary.learn.manifest import PictureInput
from apiary_coordinator.recipes.base import Models, RecipeOptions

if TYPE_CHECKING:
    import keras

Width = Annotated[int, Field(ge=4, le=1024)]
Share = Annotated[float, Field(ge=0, le=0.9)]

LABEL_AXES: Final = {"classes/kernel": 1, "classes/bias": 0}


class Options(RecipeOptions):
    """`widths`: channels of each block, of `convolutions` each; `hidden`: the dense layers.

    `dropout` is the share left out after a block, `hidden_dropout` after a dense layer. `momentum` is the
    share of BatchNormalization's running moments that a step keeps, and `statistics` what happens to them.
    averaged: nodes normalize by their batches and send their moments, the model has the mean (FedAvg over all
    tensors). frozen: nodes normalize by the moments of the model that the run began with (FixBN, Zhong et al.
    2023, arXiv:2303.06530).
    """

    size: Annotated[int, Field(ge=8, le=256)] = 48
    channels: Literal[1, 3] = 1
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=6)] = (32, 64, 128, 256)
    convolutions: Annotated[int, Field(ge=1, le=4)] = 2
    hidden: Annotated[tuple[Annotated[int, Field(ge=8, le=4096)], ...], Field(max_length=3)] = (1280, 768)
    dropout: Share = 0.25
    hidden_dropout: Share = 0.5
    statistics: Literal["averaged", "frozen"] = "averaged"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @model_validator(mode="after")
    def _pools(self) -> Options:
        if self.size >> len(self.widths) < 1:
            raise ValueError(f"{len(self.widths)} blocks halve {self.size} pixels away; name fewer widths")
        return self


def tensors(options: Options) -> tuple[str, ...]:
    """Of each block, the dense layers and the classes; the running moments last."""
    trained = [f"{name}/{part}" for layer, norm in _layers(options) for name, part in _parts(layer, norm)]
    moments = [
        f"{norm}/{part}" for _, norm in _layers(options) for part in ("moving_mean", "moving_variance")
    ]
    return (*trained, *LABEL_AXES, *moments)


def capabilities(options: Options) -> frozenset[str]:
    """Dropout is noise that a node makes; moments are those of samples that count."""
    needs = {"rule.batch_statistics" if options.statistics == "averaged" else "rule.parts"}
    dropped = options.dropout or (options.hidden and options.hidden_dropout)
    return frozenset(needs | ({"rule.dropout"} if dropped else set()))


def build(options: Options, classes: int, *, base_weights: Path | None, seed: int) -> Models:
    """5.1 million weights at 48x48 and seven classes. `base_weights` is not used."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    x = picture = keras.Input((options.size, options.size, options.channels), name="picture")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(x)
    for i, width in enumerate(options.widths, 1):
        for j in range(1, options.convolutions + 1):
            # No bias: the normalization takes it away again.
            name = f"block{i}_conv{j}"
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(x)
            x = _normalized(x, f"block{i}_norm{j}", options)
        x = layers.MaxPooling2D(2, name=f"block{i}_pool")(x)
        x = _dropped(x, options.dropout, f"block{i}_dropout")
    x = layers.Flatten(name="flatten")(x)
    for i, width in enumerate(options.hidden, 1):
        x = layers.Dense(width, use_bias=False, name=f"hidden{i}")(x)
        x = _normalized(x, f"hidden{i}_norm", options)
        x = _dropped(x, options.hidden_dropout, f"hidden{i}_dropout")
    x = layers.Dense(classes, name="classes")(x)
    model = keras.Model(picture, layers.Activation("softmax", name="probabilities")(x), name="vgg_bn")
    side = PictureInput(height=options.size, width=options.size, channels=options.channels)
    moments = {name for name in tensors(options) if "/moving_" in name}
    return Models(side, model, fixed=frozenset(moments if options.statistics == "frozen" else ()))


def _layers(options: Options) -> list[tuple[str, str]]:
    """Layers without a bias, each with its normalization."""
    blocks, each = range(1, len(options.widths) + 1), range(1, options.convolutions + 1)
    hidden = range(1, len(options.hidden) + 1)
    return [
        *((f"block{i}_conv{j}", f"block{i}_norm{j}") for i in blocks for j in each),
        *((f"hidden{i}", f"hidden{i}_norm") for i in hidden),
    ]


def _parts(layer: str, norm: str) -> tuple[tuple[str, str], ...]:
    return ((layer, "kernel"), (norm, "gamma"), (norm, "beta"))


def _normalized(x: keras.KerasTensor, name: str, options: Options) -> keras.KerasTensor:
    from keras import layers

    x = layers.BatchNormalization(momentum=options.momentum, name=name)(x)
    return layers.ReLU(name=name.replace("norm", "relu"))(x)


def _dropped(x: keras.KerasTensor, share: float, name: str) -> keras.KerasTensor:
    from keras import layers

    return layers.Dropout(share, name=name)(x) if share else x
