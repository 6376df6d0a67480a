"""What nodes' reports amount to: honest ones give the mean, one liar moves it little, any order the same."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiary.wire import NodeId
from apiary_coordinator.model.judged import JudgedPictures, Judgement, judge
from apiary_coordinator.updates.limits import weight_cap

LABELS = 4


def _honest(nodes: int, accuracy: float, seed: int) -> dict[NodeId, JudgedPictures]:
    """Unlike mixtures, labels that differ in how hard they are, `accuracy` on average over labels."""
    chance = random.Random(seed)
    reports = {}
    for number in range(nodes):
        confusion = {}
        for label in range(LABELS):
            shift = 0.08 * (label - (LABELS - 1) / 2) * (1 - accuracy) / 0.4
            n = chance.choice([0, 20, 60, 120])
            right = sum(chance.random() < accuracy + shift for _ in range(n))
            row = [0] * LABELS
            row[label], row[(label + 1) % LABELS] = right, n - right
            if n:
                confusion[label] = row
        reports[NodeId(f"pi-{number}")] = JudgedPictures(confusion, loss=1 - accuracy)
    return reports


def _lie(right: bool, pictures: int) -> JudgedPictures:
    rows = {}
    for label in range(LABELS):
        row = [0] * LABELS
        row[label if right else (label + 1) % LABELS] = pictures
        rows[label] = row
    return JudgedPictures(rows, loss=1e9)


def _judge(reports: dict[NodeId, JudgedPictures], expected: list[int] | None = None) -> Judgement:
    pictures = expected if expected is not None else [r.pictures for r in reports.values()]
    found = judge(reports, LABELS, weight_cap(pictures, len(pictures), 3.0))
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("accuracy", "right"), [(0.6, True), (0.6, False), (0.9, False), (0.3, True)])
@pytest.mark.parametrize("pictures", [50, 10**9])
def test_one_liar_of_eight_moves_the_accuracy_by_less_than_a_point(
    seed: int, accuracy: float, right: bool, pictures: int
) -> None:
    honest = _honest(7, accuracy, seed)
    liar = NodeId("liar")
    expected = [*(r.pictures for r in honest.values()), 200]

    lied = _judge({**honest, liar: _lie(right, pictures)}, expected)

    assert liar in lied.left_out
    assert lied.accuracy == pytest.approx(_judge(honest, expected).accuracy, abs=0.01)
    assert lied.loss == pytest.approx(1 - accuracy)


@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.7, 0.95]), st.integers(1, 12))
def test_any_order_gives_the_same_and_fewer_than_half_are_left_out(
    seed: int, accuracy: float, nodes: int
) -> None:
    reports = _honest(nodes, accuracy, seed)
    found = judge(reports, LABELS, 200)

    assert judge(dict(reversed(reports.items())), LABELS, 200) == found
    if found is not None:
        assert 2 * len(found.left_out) < sum(r.pictures > 0 for r in reports.values())
        assert 0 <= found.worst_tenth <= max(found.recall.values()) + 1e-9
        assert 0 <= found.spread <= 0.5


@given(
    st.lists(
        st.dictionaries(
            st.integers(0, LABELS - 1),
            st.lists(st.integers(0, 10**9), min_size=LABELS, max_size=LABELS),
        ),
        max_size=8,
    ),
    st.integers(1, 1000),
)
def test_whatever_is_reported_there_is_a_share_or_nothing(rows: list[dict[int, list[int]]], cap: int) -> None:
    found = judge({NodeId(f"pi-{i}"): JudgedPictures(r) for i, r in enumerate(rows)}, LABELS, cap)

    if found is None:
        assert all(not any(map(any, r.values())) for r in rows)
    else:
        assert -1e-9 <= found.accuracy <= 1 + 1e-9
        assert sum(map(sum, found.confusion)) <= cap * len(rows) * (1 + 1e-9)


def test_alike_reports_give_their_mean_and_nobody_is_left_out() -> None:
    one = JudgedPictures({0: [8, 2, 0, 0], 1: [1, 9, 0, 0]}, loss=0.5)

    found = _judge({NodeId(f"pi-{i}"): one for i in range(5)})

    assert found.accuracy == pytest.approx(0.85)
    assert found.recall == pytest.approx({0: 0.8, 1: 0.9})
    assert found.loss == 0.5
    assert found.spread == pytest.approx(0)
    assert not found.left_out
    assert found.worst_tenth == pytest.approx(0.85)


def test_of_two_nodes_neither_is_left_out_and_a_report_weighs_the_cap_at_most() -> None:
    a, b = _lie(right=True, pictures=10), _lie(right=False, pictures=10**9)

    found = judge({NodeId("a"): a, NodeId("b"): b}, LABELS, 120)

    assert found is not None
    assert not found.left_out
    assert found.accuracy == pytest.approx(40 / 160)
    assert found.worst_tenth == 0


def test_a_node_with_labels_that_no_other_has_is_not_compared() -> None:
    common = JudgedPictures({0: [90, 10, 0, 0]})
    rare = JudgedPictures({3: [30, 0, 0, 10]})

    found = _judge({**{NodeId(f"pi-{i}"): common for i in range(4)}, NodeId("rare"): rare})

    assert not found.left_out
    assert found.recall[3] == pytest.approx(0.25)


def test_no_pictures_no_judgement() -> None:
    assert judge({}, LABELS, 10) is None
    assert judge({NodeId("pi"): replace(JudgedPictures({}), loss=1.0)}, LABELS, 10) is None
