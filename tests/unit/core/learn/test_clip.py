"""An update's norm is at most the bound, also once a codec has written it; what is within stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from apiary.learn.clip import clipped
from apiary.plugins import names
from apiary.tensors import Array, Weights
from apiary.wire import blob

CODECS = names("apiary.wire.codecs")
RAW = blob.codec("raw_f32")


def test_what_is_within_the_bound_is_the_very_same() -> None:
    update = Weights({"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])})
    assert clipped(update, 5.0, RAW) is update
    assert clipped(update, 6.0, RAW) is update


def test_what_exceeds_it_keeps_its_direction() -> None:
    update = Weights({"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])})
    got = clipped(update, 0.5, RAW)
    assert got.norm() == pytest.approx(0.5, rel=1e-5)
    assert got.norm() <= 0.5
    assert got["a"] == pytest.approx([0.3, 0.0], rel=1e-5) and got["b"][0, 0] == pytest.approx(0.4, rel=1e-5)
    assert update.norm() == 5.0


@pytest.mark.parametrize("name", CODECS)
@given(
    tensor=hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=2, max_side=40), elements=st.floats(-8, 8, width=16)
    ),
    max_norm=st.floats(0.01, 20),
)
@settings(max_examples=60)
def test_what_the_coordinator_decodes_is_within_the_bound(name: str, tensor: Array, max_norm: float) -> None:
    update = Weights({"a": tensor, "b": 0.01 * tensor})
    document = blob.encode(clipped(update, max_norm, blob.codec(name)), codec_name=name)
    assert blob.decode(document, who="n").weights.norm() <= max_norm * (1 + 1e-4)


def test_a_codec_that_rounds_upwards_is_reckoned_with() -> None:
    """Many numbers just above half a step of the largest: int8 nearly doubles their norm."""
    tensor = np.full(100_000, 0.51 / 127, np.float32)
    tensor[0] = 1.0
    update = Weights({"a": tensor})
    int8 = blob.codec("int8")
    bound = update.norm()
    decoded = blob.decode(blob.encode(update, codec_name="int8"), who="n").weights
    assert decoded.norm() > 1.5 * bound
    got = blob.decode(blob.encode(clipped(update, bound, int8), codec_name="int8"), who="n").weights
    assert got.norm() <= bound * (1 + 1e-5)
