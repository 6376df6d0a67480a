"""Which updates make a model worse, at both sides of what decides it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apiary.learn.metrics import Evaluation
from apiary.wire import NodeId
from apiary_coordinator.updates.leave_one_out import LeftOut, without_harmful

BEFORE = 1.0
GAIN = 0.25


def evaluation(loss: float) -> Evaluation:
    return Evaluation(0.5, loss, 100, ("a", "b"), {}, ((1, 0), (0, 1)))


def nodes(count: int) -> list[NodeId]:
    return [NodeId(f"pi-{i:02d}") for i in range(count)]


class Round:
    """Updates that each add their `harm` to a loss of .9; counts the evaluations."""

    def __init__(self, harm: dict[str, float], pulls: dict[str, float] | None = None, count: int = 5):
        self.harm = harm
        self.pulls = {node: (pulls or {}).get(node, 1.0) for node in nodes(count)}
        self.tried: list[frozenset[NodeId]] = []

    def loss(self, gone: frozenset[NodeId] = frozenset()) -> float:
        return 0.9 + sum(harm for node, harm in self.harm.items() if node not in gone)

    def judge(self, gain: float = GAIN) -> tuple[list[LeftOut], Evaluation]:
        def without(gone: frozenset[NodeId]) -> Evaluation:
            self.tried.append(gone)
            return evaluation(self.loss(gone))

        return without_harmful(self.pulls, evaluation(self.loss()), without, loss_before=BEFORE, gain=gain)


@pytest.mark.parametrize("harm", [0.0, 0.0999, 0.1])
def test_a_loss_that_does_not_rise_costs_no_evaluation(harm: float) -> None:
    round_ = Round({"pi-03": harm})
    assert round_.judge() == ([], evaluation(round_.loss()))
    assert round_.tried == []


def test_the_update_without_which_it_falls_is_left_out() -> None:
    round_ = Round({"pi-03": 0.471, "pi-01": 0.05})
    left_out, found = round_.judge()
    assert left_out == [LeftOut(NodeId("pi-03"), round_.loss(), found.loss, BEFORE)]
    assert found.loss == pytest.approx(0.95)
    assert len(round_.tried) == 5
    assert "is 1.421 with its update and 0.95 without it, 1 before (run.leave_out_gain)" in left_out[0].why


@pytest.mark.parametrize(("harm", "caught"), [(0.29, False), (0.31, True)])
def test_an_absence_lowers_the_loss_by_a_quarter(harm: float, caught: bool) -> None:
    left_out, _ = Round({"pi-04": harm}).judge()
    assert [one.node for one in left_out] == (["pi-04"] if caught else [])


@pytest.mark.parametrize(("without", "caught"), [(3.0, True), (3.001, False)])
def test_the_share_itself_is_enough(without: float, caught: bool) -> None:
    """Numbers that a quarter divides without rounding."""
    left_out, _ = without_harmful(
        dict.fromkeys(nodes(3), 1.0),
        evaluation(4.0),
        lambda gone: evaluation(without if "pi-01" in gone else 4.0),
        loss_before=BEFORE,
        gain=GAIN,
    )
    assert [one.node for one in left_out] == (["pi-01"] if caught else [])


def test_several_are_found_one_after_the_other() -> None:
    round_ = Round({"pi-03": 2.0, "pi-01": 1.0})
    left_out, found = round_.judge()
    assert [one.node for one in left_out] == ["pi-03", "pi-01"]
    assert found.loss == pytest.approx(0.9)
    assert [len(gone) for gone in round_.tried] == [1] * 5 + [2] * 4


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (9, 4), (30, 4)])
def test_a_minority_at_most(count: int, most: int) -> None:
    """Each absence takes away most of the loss: all would be left out."""
    harm = {str(node): 3.0 ** (20 - i) for i, node in enumerate(nodes(count))}
    left_out, _ = Round(harm, harm, count).judge()
    assert [one.node for one in left_out] == nodes(count)[:most]


def test_of_two_that_harm_alike_the_absence_of_both_cures() -> None:
    class Saturated(Round):
        def loss(self, gone: frozenset[NodeId] = frozenset()) -> float:
            return 0.9 if {"pi-03", "pi-01"} <= gone else 3.0 if gone & {"pi-03", "pi-01"} else 3.1

    left_out, found = Saturated({}).judge()
    assert ([one.node for one in left_out], found.loss) == (["pi-01", "pi-03"], 0.9)


def test_a_step_that_cures_little_is_taken_back() -> None:
    """What remains after the worst is above the loss before, and no one's in particular."""
    left_out, found = Round({"pi-03": 5.0, **{f"pi-0{i}": 0.15 for i in (0, 1, 2, 4)}}).judge()
    assert [one.node for one in left_out] == ["pi-03"]
    assert found.loss == pytest.approx(1.5)


def test_what_no_absence_cures_is_nobodys_fault() -> None:
    round_ = Round({str(node): 0.3 for node in nodes(5)})
    left_out, found = round_.judge()
    assert not left_out and found.loss == pytest.approx(2.4)


def test_of_many_those_that_pull_most_are_tried() -> None:
    """By samples times norm, and by id where that is the same."""
    round_ = Round({"pi-38": 2.0}, {"pi-38": 9.0}, count=40)
    left_out, _ = round_.judge()
    assert [one.node for one in left_out] == ["pi-38"]
    assert len(round_.tried) == 8
    assert frozenset.union(*round_.tried) == {NodeId("pi-38"), *nodes(7)}


@pytest.mark.parametrize(("loss", "caught"), [(0.0499, False), (0.0501, True)])
def test_of_a_small_loss_a_quarter_is_chance(loss: float, caught: bool) -> None:
    left_out, _ = without_harmful(
        dict.fromkeys(nodes(5), 1.0),
        evaluation(loss),
        lambda gone: evaluation(0.0 if "pi-02" in gone else loss),
        loss_before=0.0016,
        gain=GAIN,
    )
    assert [one.node for one in left_out] == (["pi-02"] if caught else [])


def _by_id(gone: frozenset[NodeId]) -> Evaluation:
    return evaluation(1.0)


@pytest.mark.parametrize("judge", [_by_id])
def test_ties_are_decided_by_id(judge: Callable[[frozenset[NodeId]], Evaluation]) -> None:
    for order in (nodes(5), nodes(5)[::-1]):
        left_out, _ = without_harmful(
            dict.fromkeys(order, 1.0), evaluation(3.0), judge, loss_before=BEFORE, gain=GAIN
        )
        assert [one.node for one in left_out] == ["pi-00"]
