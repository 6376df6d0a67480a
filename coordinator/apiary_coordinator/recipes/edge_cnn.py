"""The default: strided convolutions with GroupNormalization, small enough to train on a Pi from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from apiary.learn.manifest import PictureInput
from apiary_coordinator.recipes.base import Models, RecipeOptions

if TYPE_CHECKING:
    import keras

WIDTHS: Final = (24, 48, 72, 96, 120)
SMALL: Final = 48
"""Below this side the first block keeps the resolution: a small picture cannot lose half at once."""
SMALLEST: Final = 4
"""No block halves a map of this side or less."""

Width = Annotated[int, Field(ge=4, le=1024)]


LABEL_AXES: Final = {"classes/kernel": 1, "classes/bias": 0}


class Options(RecipeOptions):
    """`widths` are the channels of each block; unset: 24, 48, ... as many as the size can be halved."""

    size: Annotated[int, Field(ge=8, le=512)] = 96
    channels: Literal[1, 3] = 3
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=12)] | None = None


def strides(options: Options) -> list[int]:
    """The stride of each block."""
    side, out = options.size, []
    if side < SMALL:
        out.append(1)
    while side > SMALLEST and len(out) < len(options.widths or WIDTHS):
        out.append(2)
        side = -(-side // 2)
    return out + [1] * (len(options.widths or ()) - len(out))


def tensors(options: Options) -> tuple[str, ...]:
    """Of each block, and of the classes."""
    blocks = zip(options.widths or WIDTHS, strides(options), strict=False)
    names = [
        f"block{i}_{part}"
        for i, _ in enumerate(blocks, 1)
        for part in ("conv/kernel", "norm/gamma", "norm/beta")
    ]
    return (*names, *LABEL_AXES)


def build(options: Options, classes: int, *, base_weights: Path | None, seed: int) -> Models:
    """209 thousand weights at 96x96x3 and two classes. `base_weights` is not used."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    picture = keras.Input((options.size, options.size, options.channels), name="picture")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(picture)
    for i, (width, stride) in enumerate(zip(options.widths or WIDTHS, strides(options), strict=False), 1):
        x = _block(x, width, stride, f"block{i}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(classes, name="classes")(x)
    model = keras.Model(picture, layers.Activation("softmax", name="probabilities")(x), name="edge_cnn")
    return Models(PictureInput(height=options.size, width=options.size, channels=options.channels), model)


def _block(x: keras.KerasTensor, width: int, stride: int, name: str) -> keras.KerasTensor:
    from keras import layers

    # No bias: the normalization takes it away again, and Adam would amplify the noise of its zero gradient.
    x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    groups = next(g for g in (8, 6, 4, 3, 2, 1) if width % g == 0)
    # Not BatchNormalization: its moments are wrong for nodes with unlike data.
    x = layers.GroupNormalization(groups, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
