"""Short texts, such as names: a recurrent network reads them letter by letter.

The recurrent network of the PyTorch tutorial on names, which PySyft trained on two Raspberry Pis; gated
(Cho et al. 2014, arXiv:1406.1078) by default. Unrolled, because light runtimes have no loop to differentiate.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from apiary.learn.manifest import LETTERS, PictureInput
from apiary_coordinator.recipes.base import Models, RecipeOptions

LABEL_AXES: Final = {"classes/kernel": 1, "classes/bias": 0}


class Options(RecipeOptions):
    """`length`: letters read, the last ones of a longer text; `hidden`: width of the state."""

    length: Annotated[int, Field(ge=4, le=64)] = 16
    hidden: Annotated[int, Field(ge=8, le=512)] = 96
    cell: Literal["gru", "rnn"] = "gru"


def tensors(options: Options) -> tuple[str, ...]:
    """Of the state, and of the classes."""
    cell = "gru_cell" if options.cell == "gru" else "simple_rnn_cell"
    return (*(f"state/{cell}/{part}" for part in ("kernel", "recurrent_kernel", "bias")), *LABEL_AXES)


def build(options: Options, classes: int, *, base_weights: Path | None, seed: int) -> Models:
    """38 thousand weights with 18 classes. `base_weights` is not used."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    # As a grey picture of a row a letter, white where the letter is: every other part takes it as it is.
    text = keras.Input((options.length, len(LETTERS), 1), name="text")
    x = layers.Rescaling(1 / 255, name="rescale")(text)
    x = layers.Reshape((options.length, len(LETTERS)), name="letters")(x)
    cell = layers.GRU if options.cell == "gru" else layers.SimpleRNN
    x = cell(options.hidden, unroll=True, name="state")(x)
    x = layers.Dense(classes, name="classes")(x)
    model = keras.Model(text, layers.Activation("softmax", name="probabilities")(x), name="char_rnn")
    read_as = PictureInput(height=options.length, width=len(LETTERS), channels=1, letters=LETTERS)
    return Models(read_as, model)
