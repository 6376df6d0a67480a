"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.metrics import cross_entropy, report

LABELS = ("cat", "dog", "fox")


def probabilities(*rows: tuple[float, float, float]) -> NDArray[Any]:
    return np.array(rows, np.float32)


def test_report_by_hand() -> None:
    p = probabilities((0.8, 0.1, 0.1), (0.3, 0.6, 0.1), (0.2, 0.7, 0.1), (0.9, 0.05, 0.05))
    got = report(p, np.array([0, 0, 1, 0]), LABELS)
    assert got.accuracy == 0.75
    assert got.count == 4
    assert got.confusion == ((2, 1, 0), (0, 1, 0), (0, 0, 0))
    assert got.loss == pytest.approx(-(math.log(0.8) + math.log(0.3) + math.log(0.7) + math.log(0.9)) / 4)
    cat, dog, fox = (got.classes[k] for k in LABELS)
    assert (cat.precision, cat.recall, cat.count) == pytest.approx((1.0, 2 / 3, 3))
    assert cat.f1 == pytest.approx(0.8)
    assert (dog.precision, dog.recall, dog.f1) == pytest.approx((0.5, 1.0, 2 / 3))
    assert (fox.precision, fox.recall, fox.f1, fox.count) == (0.0, 0.0, 0.0, 0)


def test_report_is_plain_json() -> None:
    got = report(probabilities((0.8, 0.1, 0.1)), np.array([0]), LABELS)
    assert json.loads(json.dumps(got.to_json()))["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_certain_mistake_costs_a_finite_loss() -> None:
    assert cross_entropy(probabilities((0.0, 1.0, 0.0)), np.array([0])) == pytest.approx(-math.log(1e-7))


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        report(np.empty((0, 3), np.float32), np.empty(0, np.int64), LABELS)
