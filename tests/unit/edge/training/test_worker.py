"""What the training child sends: new weights minus old ones, as a blob that names its round and node."""

from __future__ import annotations

import numpy as np
import pytest

from apiary.errors import ModelError
from apiary.tensors import Weights
from apiary.wire import blob


def weights(value: float, name: str = "w") -> Weights:
    return Weights({name: np.full((2, 3), value, np.float32)})


def encoded(before: Weights, after: Weights) -> bytes:
    about = {"run": "r", "round": 4, "node": "pi-1", "samples": 9}
    return blob.encode(after - before, codec_name="raw_f32", about=about)


def test_an_update_is_new_minus_old_and_says_whose_it_is() -> None:
    found = blob.decode(encoded(weights(1.0), weights(1.25)), who="test")
    assert np.array_equal(found.weights["w"], np.full((2, 3), 0.25, np.float32))
    assert dict(found.about) == {"run": "r", "round": 4, "node": "pi-1", "samples": 9}
    assert found.codec == "raw_f32"


def test_the_same_training_gives_the_same_bytes() -> None:
    assert encoded(weights(1.0), weights(3.0)) == encoded(weights(1.0), weights(3.0))


def test_weights_of_another_model_are_our_bug() -> None:
    with pytest.raises(ModelError, match="do not fit together: tensor 'v' is missing"):
        encoded(weights(1.0), weights(1.0, "v"))
