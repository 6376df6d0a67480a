"""The first weights of a run that goes on from a model."""

from __future__ import annotations

import numpy as np
import pytest

from apiary.errors import ModelError
from apiary.tensors import Weights
from apiary_coordinator.model.warm_start import Ancestor, carried_over

AXES = {"classes/kernel": 1, "classes/bias": 0}


def model(labels: int, seed: int, hidden: int = 4) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = {"conv/kernel": (3, 3, hidden), "classes/kernel": (hidden, labels), "classes/bias": (labels,)}
    return Weights({n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})


def bits(weights: Weights) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in weights.items()}


def test_with_the_same_labels_not_a_bit_changes() -> None:
    before = model(2, 1)
    assert bits(carried_over(before, "ab", model(2, 2), "ab", AXES)) == bits(before)


def test_each_known_label_keeps_its_weights_in_any_order_and_a_new_one_begins_fresh() -> None:
    before, fresh = model(3, 1), model(3, 2)
    made = carried_over(before, ("cat", "dog", "fox"), fresh, ("dog", "bird", "cat"), AXES)
    assert made["conv/kernel"].tobytes() == before["conv/kernel"].tobytes()
    for name, axis in AXES.items():
        got, was, new = made[name], before[name], fresh[name]
        assert np.array_equal(got.take(0, axis), was.take(1, axis))
        assert np.array_equal(got.take(1, axis), new.take(1, axis))
        assert np.array_equal(got.take(2, axis), was.take(0, axis))
    assert list(made.shapes.items()) == list(fresh.shapes.items())
    assert all(t.flags.c_contiguous for t in made.values())


def test_where_no_label_is_known_the_rest_of_the_model_is_kept() -> None:
    before, fresh = model(2, 1), model(3, 2)
    made = carried_over(before, "ab", fresh, "xyz", AXES)
    assert np.array_equal(made["conv/kernel"], before["conv/kernel"])
    assert np.array_equal(made["classes/bias"], fresh["classes/bias"])


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (
            Weights({"conv/kernel": model(2, 1)["conv/kernel"]}),
            "no tensor 'classes/kernel'; it has conv/kernel",
        ),
        (model(2, 1, hidden=5), r"'conv/kernel' has the shape \[3, 3, 5\], expected \[3, 3, 4\]"),
        (model(3, 1), r"'classes/kernel' has the shape \[4, 3\], expected \[4, 2\]"),
    ],
    ids=["missing", "another shape", "labels that its list does not say"],
)
def test_a_model_of_other_tensors_is_refused(before: Weights, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        carried_over(before, "ab", model(2, 2), "ab", AXES)


def test_an_ancestor_knows_what_is_new_and_what_is_gone() -> None:
    found = Ancestor(run="autumn", round=3, labels=("cat", "dog")).compared_with(("dog", "bird"))
    assert (found.name, found.added, found.dropped) == ("round 3 of run autumn", ("bird",), ("cat",))
    assert Ancestor(file="x.keras", labels=("a", "b")).name == "x.keras"
