"""Transfer learning: MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), frozen, and a small dense head."""

import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from apiary.errors import ModelError
from apiary.learn.manifest import PictureInput
from apiary_coordinator.recipes.base import Models, RecipeOptions

DOWNLOAD_TIMEOUT_S: Final = 30.0

ALPHAS: Final = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)

LABEL_AXES: Final = {"classes/kernel": 1, "classes/bias": 0}


def _known(alpha: float) -> float:
    if alpha not in ALPHAS:
        raise ValueError(f"expected one of {', '.join(map(str, ALPHAS))}")
    return alpha


Alpha = Annotated[float, AfterValidator(_known)]


class Options(RecipeOptions):
    """`alpha` and `size` as Keras has ImageNet weights for; `weights` random is for trying out only."""

    size: Literal[96, 128, 160, 192, 224] = 160
    alpha: Alpha = 1.0
    hidden: Annotated[int, Field(ge=8, le=4096)] = 128
    weights: Literal["imagenet", "random"] = "imagenet"
    base_precision: Literal["float32", "float16"] = "float32"


def tensors(options: Options) -> tuple[str, ...]:
    """Of the head: the base is never trained."""
    return ("hidden/kernel", "hidden/bias", *LABEL_AXES)


def build(options: Options, classes: int, *, base_weights: Path | None, seed: int) -> Models:
    """The frozen base, its maps averaged, and Dense(hidden, relu), Dense(classes), softmax on these."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    size = options.size
    picture = keras.Input((size, size, 3), name="picture")
    net = _mobilenet(options, base_weights)
    net.trainable = False
    # The weights were trained on -1..1; ours are pixels, 0..255.
    features = net(layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(picture), training=False)
    base = keras.Model(picture, features, name="mobilenet_v2_base")
    base.trainable = False

    # Seeded again: the head does not hang on what the base drew.
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((features.shape[-1],), name="features")
    x = layers.Dense(options.hidden, activation="relu", name="hidden")(x)
    x = layers.Dense(classes, name="classes")(x)
    head = keras.Model(
        inputs, layers.Activation("softmax", name="probabilities")(x), name="mobilenet_v2_head"
    )
    return Models(PictureInput(height=size, width=size, channels=3), head, base)


def _mobilenet(options: Options, base_weights: Path | None) -> Any:
    import keras

    def make(weights: str | None) -> Any:
        return keras.applications.MobileNetV2(
            (options.size, options.size, 3),
            alpha=options.alpha,
            include_top=False,
            weights=weights,
            pooling="avg",
        )

    if options.weights == "random":
        return make(None)
    if base_weights is not None:
        net = make(None)
        try:
            net.load_weights(base_weights)
        except (OSError, ValueError, KeyError) as e:
            raise ModelError(
                f"base_weights {base_weights} are not of MobileNetV2 without top, alpha {options.alpha}: "
                f"{str(e)[:200]}"
            ) from None
        return net
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # the export is a process of its own; Keras sets none
    try:
        return make("imagenet")
    except Exception as e:  # Keras raises bare Exceptions for downloads
        alpha, size = options.alpha, options.size
        name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5"
        raise ModelError(
            f"the ImageNet weights of MobileNetV2 could not be downloaded ({str(e)[:120]}): get {name} from "
            "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/ on a machine with "
            "access and name the file in coordinator.base_weights (APIARY_COORDINATOR__BASE_WEIGHTS)"
        ) from None
