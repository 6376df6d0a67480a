"""Share labelled samples out among nodes the way a real fleet would hold them. Pure and seeded.

    iid         every node the same mixture: the easy case, and the base line
    shards      k runs of label-sorted samples each (McMahan et al. 2017, arXiv:1602.05629, section 3)
    dirichlet   equal sizes, class mixtures drawn from Dirichlet(alpha * prior) (Hsu et al. 2019,
                arXiv:1909.06335): alpha 100 is near IID, .1 leaves a class or two a node. The prior is
                scaled to a mean of 1, so that alpha is each class's concentration where classes are
                equally common, as most published experiments count it
    quantity    equal mixtures, sizes drawn from a log-normal law, as in the FedProx paper's synthetic data

Every result is a partition: each sample on exactly one node, no node below `min_samples`.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError

Kind = Literal["iid", "shards", "dirichlet", "quantity"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
Indices = NDArray[np.int64]
Counts = NDArray[np.int64]
_WIDE = 12  # more classes than this do not fit as columns on an 100-character line


def partition(
    labels: NDArray[Any],
    nodes: int,
    *,
    by: str = "iid",
    alpha: float = 0.5,
    shards: int = 2,
    sigma: float = 1.0,
    seed: int = 0,
    min_samples: int = 1,
) -> list[Indices]:
    """Ascending sample indices of each node, for integer `labels[N]`. The same seed gives the same shares.

    `alpha` belongs to dirichlet, `shards` (per node) to shards, `sigma` to quantity. Raises DataError.
    """
    y = np.asarray(labels)
    if y.ndim != 1 or (y.size and not np.issubdtype(y.dtype, np.integer)):
        raise DataError(f"labels are {y.dtype}{list(y.shape)}, expected one row of integers")
    if by not in KINDS:
        raise DataError(f"no partition {by!r}. There are: {', '.join(KINDS)}")
    for what, number, least in (("nodes", nodes, 1), ("samples a node", min_samples, 1), ("seed", seed, 0)):
        if number < least:
            raise DataError(f"{what}: {number}, expected {least} or more")
    for name, value, used in (("alpha", alpha, by == "dirichlet"), ("sigma", sigma, by == "quantity")):
        if used and not (np.isfinite(value) and value > 0):
            raise DataError(f"{name} is {value}, expected a number above 0")
    if by == "shards" and shards < 1:
        raise DataError(f"{shards} shards for each node, expected 1 or more")
    y = y.astype(np.int64)
    _check(y, nodes, shards if by == "shards" else 0, min_samples)
    rng = np.random.default_rng(seed)
    match by:
        case "iid":
            parts = _cut(rng.permutation(y.size), _even(y.size, nodes))
        case "shards":
            parts = _by_shards(y, nodes, shards, rng)
        case "dirichlet":
            parts = _by_dirichlet(y, nodes, alpha, rng)
        case _:
            parts = _cut(rng.permutation(y.size), _lognormal_sizes(y.size, nodes, sigma, min_samples, rng))
    return [np.sort(p) for p in parts]


def draw(
    labels: NDArray[Any], nodes: int, each: int, *, alpha: float | None = None, seed: int = 0
) -> list[Indices]:
    """Ascending indices of `each` samples for every node, by its own mixture of the classes.

    Unlike `partition` a sample may be on several nodes, never twice on one; so there may be more nodes than
    samples. The mixtures are drawn as for dirichlet with `alpha`; without it all are that of the whole. Where
    a node would have more of a class than there is, others take its place. Raises DataError.
    """
    y = np.asarray(labels, dtype=np.int64)
    for what, number in (("nodes", nodes), ("samples a node", each)):
        if number < 1:
            raise DataError(f"{what}: {number}, expected 1 or more")
    if alpha is not None and not (np.isfinite(alpha) and alpha > 0):
        raise DataError(f"alpha is {alpha}, expected a number above 0")
    if seed < 0:
        raise DataError(f"seed is {seed}, expected 0 or more")
    if y.size < each:
        raise DataError(f"{y.size} samples cannot give a node {each} of them: take fewer a node")
    classes, sizes = np.unique(y, return_counts=True)
    pools = [np.flatnonzero(y == c) for c in classes]
    share = sizes / y.size
    parts: list[Indices] = []
    for node in range(nodes):
        rng = np.random.default_rng([seed, 3, node])
        mixture = share if alpha is None else _dirichlet(alpha * share * classes.size, rng)
        wanted = np.zeros(classes.size, np.int64)
        while (need := each - int(wanted.sum())) > 0:
            room = np.where(wanted < sizes, mixture, 0.0)
            if room.sum() <= 0:
                room = (sizes - wanted).astype(np.float64)
            wanted = np.minimum(wanted + rng.multinomial(need, room / room.sum()), sizes)
        taken = [rng.choice(pool, n, replace=False) for pool, n in zip(pools, wanted, strict=True)]
        parts.append(np.sort(np.concatenate(taken)))
    return parts


def count(labels: NDArray[Any], parts: Sequence[Indices], classes: int) -> Counts:
    """How many samples of each class each node holds, int64[nodes, classes]."""
    y = np.asarray(labels, dtype=np.int64)
    return np.stack([np.bincount(y[p], minlength=classes) for p in parts]).astype(np.int64)


def evenly(labels: NDArray[Any], wanted: int) -> Indices:
    """Ascending indices of about `wanted` samples: as many of each label as of any other, while it has some.

    At least one of each label that occurs, whatever `wanted` is; a label's own lie evenly over all of it.
    """
    y = np.asarray(labels)
    classes, sizes = np.unique(y, return_counts=True)
    take = np.minimum(sizes, 1)
    while take.sum() < min(wanted, y.size):
        open_ = np.flatnonzero(take < sizes)
        # The fewest first, and no more than are still wanted.
        open_ = open_[np.argsort(take[open_], kind="stable")][: wanted - int(take.sum())]
        take[open_] += 1
    chosen = [
        np.flatnonzero(y == c)[(np.arange(n) * size) // n]
        for c, n, size in zip(classes, take, sizes, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.array([], np.int64)


def hold_out(labels: NDArray[Any], share: float, *, seed: int = 0) -> tuple[Indices, Indices]:
    """Split into (train, test) with `share` of every class in test, at least one where a class has two."""
    if not 0 < share < 1:
        raise DataError(f"test share is {share}, expected more than 0 and less than 1")
    if seed < 0:
        raise DataError(f"seed is {seed}, expected 0 or more")
    y = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng([seed, 1])
    test: list[Indices] = []
    for c in np.unique(y):
        of_class = rng.permutation(np.flatnonzero(y == c))
        test.append(of_class[: max(round(share * of_class.size), 1 if of_class.size > 1 else 0)])
    held = np.sort(np.concatenate(test)) if test else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(y.size), held), held


def table(counts: Counts, names: Sequence[str], labels: Sequence[str]) -> str:
    """The counts as text: a row a node, a column a class (or the largest ones), and a bar of its size."""
    totals = counts.sum(axis=1)
    most = max(int(totals.max(initial=0)), 1)
    left = max((len(n) for n in names), default=4)
    wide = len(labels) > _WIDE
    heads = ["classes"] if wide else [str(label)[:9] for label in labels]
    widths = [34] if wide else [max(len(h), len(str(int(counts.max(initial=0)))), 3) for h in heads]
    lines = [" ".join([" " * left, *(h.rjust(w) for h, w in zip(heads, widths, strict=True)), "  total"])]
    for name, row, total in zip(names, counts, totals, strict=True):
        cells = [_largest(row, labels)] if wide else [str(int(n)) if n else "·" for n in row]
        padded = (c.rjust(w) for c, w in zip(cells, widths, strict=True))
        lines.append(" ".join([name.ljust(left), *padded, f"{int(total):7d}", _bar(total / most)]).rstrip())
    return "\n".join(lines)


def _check(y: Indices, nodes: int, shards: int, min_samples: int) -> None:
    """Whether there are samples enough; `shards` is 0 where none are cut."""
    pieces = nodes * (shards or 1)
    if y.size < max(nodes * min_samples, pieces):
        kind = f" in {pieces} shards" if shards else ""
        raise DataError(
            f"{y.size} samples cannot give {nodes} nodes{kind} at least {min_samples} each: "
            "take fewer nodes or more samples"
        )
    if shards and (y.size // pieces) * shards < min_samples:
        raise DataError(
            f"{y.size} samples in {pieces} shards leave nodes with {(y.size // pieces) * shards}, "
            f"expected at least {min_samples}: take fewer nodes"
        )


def _even(total: int, pieces: int) -> list[int]:
    return [total // pieces + (i < total % pieces) for i in range(pieces)]


def _cut(order: Indices, sizes: Sequence[int]) -> list[Indices]:
    return np.split(order, np.cumsum(sizes)[:-1])


def _by_shards(y: NDArray[np.int64], nodes: int, k: int, rng: np.random.Generator) -> list[Indices]:
    shuffled = rng.permutation(y.size)
    by_label = shuffled[np.argsort(y[shuffled], kind="stable")]
    pieces = _cut(by_label, _even(y.size, nodes * k))
    drawn = rng.permutation(nodes * k).reshape(nodes, k)
    return [np.concatenate([pieces[i] for i in row]) for row in drawn]


def _by_dirichlet(y: NDArray[np.int64], nodes: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    """Each node in turn draws its size from its own mixture; a class that has run out drops from it."""
    classes, encoded = np.unique(y, return_inverse=True)
    pools = [rng.permutation(np.flatnonzero(encoded == c)) for c in range(classes.size)]
    left = np.array([p.size for p in pools], dtype=np.int64)
    prior = left * (left.size / left.sum())
    parts: list[Indices] = [np.empty(0, np.int64)] * nodes
    sizes = _even(y.size, nodes)
    for node in rng.permutation(nodes):
        mixture = _dirichlet(alpha * prior, rng)
        taken: list[Indices] = []
        need = sizes[node]
        while need:
            open_mixture = np.where(left > 0, mixture, 0.0)
            if open_mixture.sum() <= 0:  # all that it wants has gone: it takes of what remains
                open_mixture = left.astype(np.float64)
            draw = np.minimum(rng.multinomial(need, open_mixture / open_mixture.sum()), left)
            for c in np.flatnonzero(draw):
                taken.append(pools[c][left[c] - draw[c] : left[c]])
            left -= draw
            need -= int(draw.sum())
        parts[int(node)] = np.concatenate(taken)
    return parts


def _dirichlet(weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A draw that stays finite where numpy's gamma variates underflow to all zeros (alpha below .01)."""
    drawn = rng.standard_gamma(weights)
    if drawn.sum() > 0:
        return np.asarray(drawn / drawn.sum())
    one = np.zeros_like(weights)
    one[rng.choice(weights.size, p=weights / weights.sum())] = 1.0
    return one


def _lognormal_sizes(
    total: int, nodes: int, sigma: float, min_samples: int, rng: np.random.Generator
) -> list[int]:
    logs = sigma * rng.standard_normal(nodes)
    weights = np.exp(logs - logs.max())
    exact = (total - nodes * min_samples) * weights / weights.sum()
    sizes = np.floor(exact).astype(np.int64)
    spare = total - nodes * min_samples - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:spare]] += 1
    return [int(s) + min_samples for s in sizes]


def _largest(row: Counts, labels: Sequence[str]) -> str:
    order = [int(i) for i in np.argsort(-row, kind="stable")[:2] if row[i]]
    return f"{int(np.count_nonzero(row))} held: " + ", ".join(f"{labels[i]} {int(row[i])}" for i in order)


def _bar(share: float, width: int = 24) -> str:
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8].strip())
