"""What the nodes' own held-out pictures say of a model, where one of the nodes may lie. Pure.

Docs: docs/decisions/0030-judged-on-the-nodes.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Final

from apiary.wire import NodeId

MIN_PICTURES: Final = 5
"""A label of which a node holds out fewer is not in its report: it would say what single pictures show."""

MAX_DEVIATION: Final = 3.0
"""In standard deviations: an honest report is further off in 3 of 1,000 cases."""

_MAD_TO_SD: Final = 1.4826
"""Of a normal distribution: standard deviation / median absolute deviation (Rousseeuw and Croux 1993)."""


_NOTHING: Final = 1e-6
"""Pictures that are left of a difference of sums that should be 0: weighted counts are rounded."""


@dataclass(frozen=True, slots=True)
class JudgedPictures:
    """What one node found: for each true label (its index) the pictures that were predicted as each label.

    `loss` is the mean over its pictures. Labels below `MIN_PICTURES` are not listed.
    """

    confusion: Mapping[int, Sequence[int]]
    loss: float = 0.0

    @property
    def pictures(self) -> int:
        """How many pictures the report rests on."""
        return sum(map(sum, self.confusion.values()))

    @property
    def right(self) -> int:
        """How many of them were predicted as what they are."""
        return sum(row[label] for label, row in self.confusion.items())


@dataclass(frozen=True, slots=True)
class Judgement:
    """All reports together. Shares are 0 to 1."""

    accuracy: float
    loss: float
    """The lower weighted median of the nodes' losses: a mean has no bound."""
    confusion: tuple[tuple[float, ...], ...]
    """Weighted pictures, true labels down, predicted ones across."""
    spread: float
    """Standard deviation of the nodes' accuracies, each node alike."""
    worst_tenth: float
    """Mean accuracy of the tenth of the nodes, at least one, where it is lowest."""
    left_out: Mapping[NodeId, float] = field(default_factory=dict)
    """Nodes whose report counts for nothing, and by how many standard deviations it is off."""

    @property
    def recall(self) -> dict[int, float]:
        """Of each label that was judged the share that was right."""
        return {label: row[label] / sum(row) for label, row in enumerate(self.confusion) if sum(row)}


def judge(reports: Mapping[NodeId, JudgedPictures], labels: int, cap: int) -> Judgement | None:
    """The judgement over `labels` labels, the same in any order of the reports; None without a picture.

    A report weighs its pictures, at most `cap` (`updates.limits.weight_cap`, fixed when the phase opens). Of
    three or more, a report that is further than `MAX_DEVIATION` from what the others let expect of its
    mixture of labels is left out, the furthest first, as long as fewer than half of the nodes are. Spread
    and worst tenth rest on the reports that count.
    """
    rows = {n: _weighted(reports[n], labels, cap) for n in sorted(reports) if reports[n].pictures}
    if not rows:
        return None
    most_left_out = (len(rows) - 1) // 2
    left_out: dict[NodeId, float] = {}
    while len(left_out) < most_left_out:
        node, deviation = _furthest(rows, labels)
        if deviation <= MAX_DEVIATION:
            break
        left_out[node] = deviation
        del rows[node]
    confusion = _sum(list(rows.values()), labels)
    accuracies = sorted(_accuracy(r) for r in rows.values())
    mean = sum(accuracies) / len(accuracies)
    worst = accuracies[: ceil(len(accuracies) / 10)]
    return Judgement(
        accuracy=_accuracy(confusion),
        loss=_weighted_median([(reports[n].loss, _pictures(r)) for n, r in rows.items()]),
        confusion=tuple(map(tuple, confusion)),
        spread=sqrt(sum((a - mean) ** 2 for a in accuracies) / len(accuracies)),
        worst_tenth=sum(worst) / len(worst),
        left_out=left_out,
    )


_Rows = list[list[float]]


def _weighted(report: JudgedPictures, labels: int, cap: int) -> _Rows:
    scale = min(1.0, cap / report.pictures)
    return [[scale * n for n in report.confusion.get(label, [0] * labels)] for label in range(labels)]


def _sum(reports: Sequence[_Rows], labels: int) -> _Rows:
    return [[sum(r[i][j] for r in reports) for j in range(labels)] for i in range(labels)]


def _pictures(rows: _Rows) -> float:
    return sum(map(sum, rows))


def _accuracy(rows: _Rows) -> float:
    return sum(row[i] for i, row in enumerate(rows)) / _pictures(rows)


def _furthest(rows: Mapping[NodeId, _Rows], labels: int) -> tuple[NodeId, float]:
    """The node whose accuracy is furthest from what the others let expect, in standard deviations.

    A standard deviation is that of the pictures' chance or, where that is more, of what the nodes other than
    this one really differ by: their median absolute residual, which a minority of liars does not move far.
    """
    found = _residuals(rows, labels)
    node = max(found, key=lambda n: abs(found[n][0]) / _floor(found[n][1]))
    residual, variance = found[node]
    rest = _residuals({n: r for n, r in rows.items() if n != node}, labels)
    sizes = sorted(abs(r) for r, _ in rest.values())
    width = _MAD_TO_SD * sizes[(len(sizes) - 1) // 2] if len(sizes) > 2 else 0.0
    return node, abs(residual) / max(_floor(variance), width)


def _floor(variance: float) -> float:
    return sqrt(variance) or 1.0  # 0 where nothing is compared: the residual is 0 as well


def _residuals(rows: Mapping[NodeId, _Rows], labels: int) -> dict[NodeId, tuple[float, float]]:
    """Of each node accuracy less what is expected, and the variance of that.

    Expected is each label's share of right ones among the others, one right and one wrong picture added
    (Laplace), so that no variance is 0. Labels that no other has are not compared.
    """
    total = _sum(list(rows.values()), labels)
    return {n: _residual(own, total) for n, own in rows.items()}


def _residual(own: _Rows, total: _Rows) -> tuple[float, float]:
    pictures = difference = variance = 0.0
    for label, row in enumerate(own):
        n = sum(row)
        m = sum(total[label]) - n
        if n <= 0 or m <= _NOTHING:
            continue
        expected = max(0.0, total[label][label] - row[label] + 1) / (m + 2)
        pictures += n
        difference += row[label] - n * expected
        variance += max(0.0, expected * (1 - expected)) * n * (1 + n / m)
    return (difference / pictures, variance / pictures**2) if pictures else (0.0, 0.0)


def _weighted_median(values: Sequence[tuple[float, float]]) -> float:
    """The lower one of (value, weight)."""
    ordered, passed = sorted(values), 0.0
    half = sum(weight for _, weight in ordered) / 2
    for value, weight in ordered:
        passed += weight
        if passed >= half:
            return value
    return ordered[-1][0]
