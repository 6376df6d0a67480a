"""What an update must hold, each rule by its message and at both sides of its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apiary.tensors import Weights
from apiary.wire import NodeId, blob
from apiary.wire.chunks import digest_of
from apiary.wire.messages import BlobRef, Bounds, Offer, TrainMetrics
from apiary_coordinator.updates.screening import Rejection, screen_offer, screen_update

SHAPES = {"dense/kernel": (4, 3), "dense/bias": (3,)}
BOUNDS = Bounds(max_abs=2.0, max_norm=3.0, max_samples=100, max_bytes=10_000)
NODE = NodeId("pi-07")


def update(**tensors: Any) -> Weights:
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return Weights({**zeros, **{k.replace("_", "/"): np.asarray(v, np.float32) for k, v in tensors.items()}})


def document(weights: Weights, codec: str = "raw_f32", **about: Any) -> bytes:
    says = {"run": "r", "round": 2, "node": "pi-07", "samples": 40, **about}
    return blob.encode(weights, codec_name=codec, about=says)


def offer(**more: Any) -> Offer:
    ref = BlobRef(digest=digest_of(b""), bytes=100)
    fields = {"run": "r", "round": 2, "update": ref, "codec": "raw_f32", "samples": 40}
    return Offer.model_validate({**fields, "metrics": TrainMetrics(loss=1.0), **more})


def why(doc: bytes, **told: Any) -> str | None:
    found = screen_update(doc, offer(**told), NODE, BOUNDS, SHAPES)
    return found.why if found else None


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({"update": BlobRef(digest="0" * 64, bytes=10_000)}, None),
        (
            {"update": BlobRef(digest="0" * 64, bytes=10_001)},
            "the update has 10001 bytes, allowed are 10000",
        ),
        ({"samples": 100}, None),
        ({"samples": 2**24}, None),  # more than the cap counts as the cap
        ({"codec": "int8"}, "the update comes in the codec 'int8', the plan says 'raw_f32'"),
    ],
)
def test_the_offer_alone(told: dict[str, Any], expected: str | None) -> None:
    found = screen_offer(offer(**told), BOUNDS, "raw_f32")
    assert (found.why if found else None) == expected


def test_a_good_update_passes() -> None:
    assert why(document(update(dense_bias=[1, -1, 0.5]))) is None


def test_what_is_no_blob() -> None:
    assert why(b"{}") == "node pi-07: not a weights blob: it does not begin as a list of two"


def test_a_torn_blob() -> None:
    found = why(document(update())[:-1])
    assert found is not None and found.startswith("node pi-07: the weights blob does not hold:")


def test_another_codec_than_offered() -> None:
    assert (
        why(document(update(), codec="f16"))
        == "node pi-07: the blob's codec is 'f16', the offer said 'raw_f32'"
    )


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"node": "pi-08"}, "node pi-07: the blob says node 'pi-08', the offer said 'pi-07'"),
        ({"run": "q"}, "node pi-07: the blob says run 'q', the offer said 'r'"),
        ({"round": 3}, "node pi-07: the blob says round '3', the offer said 2"),
        ({"samples": 41}, "node pi-07: the blob says samples '41', the offer said 40"),
        ({"samples": None}, "node pi-07: the blob says samples 'None', the offer said 40"),
        ({"node": "x" * 500}, f"node pi-07: the blob says node '{'x' * 70}', the offer said 'pi-07'"),
    ],
)
def test_another_owner_than_the_topic_says(about: dict[str, Any], expected: str) -> None:
    assert why(document(update(), **about)) == expected


def test_a_wrong_shape_is_named() -> None:
    found = why(document(update(dense_kernel=np.zeros((4, 2)))))
    assert found == "node pi-07: tensor 'dense/kernel' has shape [4, 2], expected [4, 3]"


def test_a_missing_tensor_one_too_many_and_another_order() -> None:
    whole = update()
    missing = Weights({"dense/kernel": whole["dense/kernel"]})
    assert why(document(missing)) == "node pi-07: tensor 'dense/bias' is missing"
    more = Weights({**whole, "extra": np.zeros(1, np.float32)})
    assert why(document(more)) == "node pi-07: tensor 'extra' is not part of the model"
    turned = Weights(dict(reversed(list(whole.items()))))
    found = why(document(turned))
    assert found is not None and "tensors come in another order" in found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(value: float) -> None:
    found = why(document(update(dense_bias=[0, value, 0])))
    assert found == "node pi-07: tensor 'dense/bias' holds a number that is not finite"


@pytest.mark.parametrize("at", [0, 65535, 65536, 70000])
def test_a_nan_anywhere_is_found(at: int) -> None:
    big = np.zeros(70_001, np.float32)
    big[at] = np.nan
    doc = document(Weights({"w": big}))
    found = screen_update(doc, offer(), NODE, BOUNDS, {"w": (70_001,)})
    assert found == Rejection("node pi-07: tensor 'w' holds a number that is not finite")


@pytest.mark.parametrize(("value", "good"), [(2.0, True), (-2.0, True), (2.001, False), (-2.001, False)])
def test_the_bound_of_one_number(value: float, good: bool) -> None:
    found = why(document(update(dense_bias=[0, value, 0])))
    expected = "node pi-07: tensor 'dense/bias' holds 2.001, allowed are +-2"
    assert found == (None if good else expected)


def test_the_bound_of_the_norm() -> None:
    assert why(document(update(dense_bias=[2, 2, 1]))) is None
    found = why(document(update(dense_bias=[2, 2, 1], dense_kernel=np.full((4, 3), 0.1))))
    assert found == "node pi-07: the update's norm is 3.02, allowed is 3"


@pytest.mark.parametrize(("codec", "slack"), [("raw_f32", 1e-4), ("f16", 1.07e-3), ("int8", 7.9e-3)])
def test_a_norm_may_exceed_it_by_what_the_codec_explains(codec: str, slack: float) -> None:
    for factor, good in ((1 + 0.9 * slack, True), (1 + 1.1 * slack, False)):
        # Numbers that each of the codecs gives back as they are, but for the last bits.
        doc = document(update(dense_bias=np.array([1, 1, 1]) * factor * np.sqrt(3)), codec=codec)
        assert (why(doc, codec=codec) is None) == good


def test_no_view_of_the_document_is_kept() -> None:
    doc = memoryview(bytearray(document(update())))
    assert screen_update(doc, offer(), NODE, BOUNDS, SHAPES) is None
    doc.release()


def test_a_tensor_that_is_looked_at_in_pieces_has_its_own_norm() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (3, 50_000)}
    large = Weights({"a": np.full(shapes["a"], 2.9 / np.sqrt(150_000), np.float32)})
    doc = blob.encode(
        large, codec_name="raw_f32", about={"run": "r", "round": 2, "node": "pi-07", "samples": 40}
    )
    bounds = BOUNDS.model_copy(update={"max_bytes": 10**6})
    assert screen_update(doc, offer(), NODE, bounds, shapes) is None
    found = screen_update(doc, offer(), NODE, bounds.model_copy(update={"max_norm": 2.8}), shapes)
    assert found is not None and "the update's norm is 2.9, allowed is 2.8" in found.why
