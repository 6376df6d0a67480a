"""What every codec promises, run over each one found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from apiary.errors import BlobError
from apiary.plugins import names
from apiary.tensors import Array, Shapes, Weights
from apiary.wire import blob
from apiary.wire.codecs.base import Codec, Encoded

CODECS = names("apiary.wire.codecs")


@pytest.fixture(params=CODECS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def codec(name: str) -> Codec:
    return blob.codec(name)


def test_there_are_codecs() -> None:
    assert {"raw_f32", "f16", "int8"} <= set(CODECS)


def assert_close(codec: Codec, tensor: Array, got: Array) -> None:
    assert got.dtype == np.float32
    assert got.shape == (tensor.size,)
    if codec.relative_error == 0:
        assert got.tobytes() == tensor.tobytes()
    elif tensor.size:
        # A little over the promise: the product with the scale is rounded to float32 once more.
        allowed = codec.relative_error * float(np.max(np.abs(tensor))) * (1 + 2**-10)
        worst = float(np.max(np.abs(got.astype(np.float64) - tensor.reshape(-1))))
        assert worst <= allowed + float(np.finfo(np.float32).smallest_subnormal)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0],
        [-0.0, 0.0],
        [1.0],
        [-1e-30, 1e-30],
        [1e-42, -3e-44],
        [3e38, -3e38, 1.0],
        [1e30, 1e-30],
        list(np.linspace(-3, 3, 1001)),
    ],
    ids=range(9),
)
def test_numbers_come_back_within_the_promised_error(codec: Codec, values: list[float]) -> None:
    tensor = np.array(values, np.float32)
    with np.errstate(over="raise", invalid="raise"):
        assert_close(codec, tensor, codec.decode(codec.encode(tensor)))


@settings(max_examples=60)
@given(
    tensor=hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=4, max_side=6),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
@pytest.mark.parametrize("each", CODECS)
def test_any_finite_tensor_comes_back_within_the_promised_error(each: str, tensor: Array) -> None:
    coder = blob.codec(each)
    assert_close(coder, tensor, coder.decode(coder.encode(tensor)))


@settings(max_examples=30)
@given(
    tensor=hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=st.floats(-9, 9, width=32)
    )
)
@pytest.mark.parametrize("each", CODECS)
def test_no_encoding_is_larger_than_promised(each: str, tensor: Array) -> None:
    """The room that an update may take on the server's disk follows from it."""
    coder = blob.codec(each)
    assert len(coder.encode(tensor).data) <= coder.most_bytes(tensor.size)


def test_an_honest_update_fits_and_not_much_more(name: str) -> None:
    shapes: Shapes = {f"layer-{i}/kernel": (30, 7 * i + 1) for i in range(40)}
    rng = np.random.default_rng(3)
    weights = Weights({n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})
    about = {"run": "r" * 64, "round": 10**6, "node": "n" * 64, "samples": 2**24}
    size = len(blob.encode(weights, codec_name=name, about=about))
    assert size <= blob.most_bytes(shapes, name) <= size + 3_000


def test_encoding_has_no_state_and_no_chance(codec: Codec) -> None:
    tensor = np.linspace(-1, 1, 50, dtype=np.float32).reshape(5, 10)
    before = tensor.copy()
    first = codec.encode(tensor)
    codec.encode(tensor * 7)
    second = codec.encode(tensor)
    assert (first.dtype, first.parameters, bytes(first.data)) == (
        second.dtype,
        second.parameters,
        bytes(second.data),
    )
    assert np.array_equal(tensor, before)


def test_order_in_memory_does_not_matter(codec: Codec) -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert bytes(codec.encode(np.asfortranarray(tensor)).data) == bytes(codec.encode(tensor).data)


def test_what_another_codec_made_is_refused(codec: Codec) -> None:
    own = codec.encode(np.ones(4, np.float32))
    for wrong in (
        Encoded("u1", own.parameters, bytes(4)),
        Encoded(own.dtype, (*own.parameters, 1.0), own.data),
    ):
        with pytest.raises(ValueError, match="expected"):
            codec.decode(wrong)


def test_document_carries_it(name: str, codec: Codec) -> None:
    weights = Weights({"a": np.linspace(-2, 2, 33, dtype=np.float32).reshape(3, 11), "b": np.zeros(0, "f4")})
    got = blob.decode(blob.encode(weights, codec_name=name), who="n")
    assert got.codec == name
    assert got.weights.shapes == weights.shapes
    assert_close(codec, weights["a"], got.weights["a"].reshape(-1))


def test_torn_document_is_refused(name: str) -> None:
    whole = blob.encode(Weights({"a": np.ones((3, 3), np.float32)}), codec_name=name)
    for end in range(len(whole)):
        with pytest.raises(BlobError):
            blob.decode(whole[:end], who="n")


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_document_in_parts_is_the_same_numbers(name: str, parts: int) -> None:
    """Combiners read updates in blocks of coordinates; also of a codec that decodes whole tensors alone."""
    rng = np.random.default_rng(1)
    made = blob.encode(Weights({n: rng.normal(size=s) for n, s in PARTED.items()}), codec_name=name)
    whole = np.concatenate([t.reshape(-1) for t in blob.decode(made, who="test").weights.values()])
    numbers, found = blob.Numbers(made, who="test"), np.empty_like(whole)
    for start in range(0, whole.size, parts):
        numbers.part(lambda at, size: made[at : at + size], start, found[start : start + parts])
    assert found.tobytes() == whole.tobytes()


PARTED: Shapes = {"a": (3, 5), "b": (), "c": (0, 4), "d": (11,)}
