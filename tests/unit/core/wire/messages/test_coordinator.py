"""A round's result stays readable however many nodes took part; its counts speak of all of them."""

from __future__ import annotations

import pytest

from apiary.wire.messages import MAX_BYTES, READABLE_BYTES, SEAL_BYTES, Contributor, RoundResult

"""More than a signature adds."""


def result(contributors: int, rejected: int = 0, missing: int = 0, why: str = "no update") -> RoundResult:
    share = Contributor(samples=120, bytes=836_112, seconds=9.5)
    return RoundResult(
        run="run-2026",
        round=12,
        state="closed",
        accuracy=0.97,
        n_contributors=contributors,
        n_rejected=rejected,
        n_missing=missing,
        contributors={f"pi-{i:05d}": share for i in range(contributors)},
        rejected={f"bad-{i:05d}": why for i in range(rejected)},
        missing={f"away-{i:05d}": why for i in range(missing)},
    )


def test_a_small_fleet_is_told_in_full() -> None:
    small = result(200, 5, 5)
    assert small.readable() == small


@pytest.mark.parametrize("why", ["short", "x" * 500, "\u00e9" * 500, "\U0001f41d" * 500, '"\\\n' * 166])
@pytest.mark.parametrize("nodes", [(10_000, 0, 0), (10_000, 10_000, 10_000), (0, 0, 10_000), (0, 10_000, 0)])
def test_ten_thousand_nodes_stay_below_the_readable_bytes(nodes: tuple[int, int, int], why: str) -> None:
    told = result(*nodes, why=why).readable()
    assert len(told.encode()) <= READABLE_BYTES - SEAL_BYTES < MAX_BYTES
    assert RoundResult.decode(told.encode(), who="test") == told
    assert (told.n_contributors, told.n_rejected, told.n_missing) == nodes
    named = (bool(told.contributors), bool(told.rejected), bool(told.missing))
    assert named == tuple(there > 0 for there in nodes)


def test_the_longest_list_that_fits_is_not_cut() -> None:
    most = next(n for n in range(200, 500) if result(n).readable() != result(n))
    assert result(most - 1).readable() == result(most - 1)
    assert len(result(most).readable().contributors) == most - 1
    assert len(result(most).readable().encode()) > READABLE_BYTES - SEAL_BYTES - 100
