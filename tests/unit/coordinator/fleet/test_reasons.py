"""One reason for many nodes."""

from __future__ import annotations

import pytest

from apiary.wire import NodeId
from apiary_coordinator.fleet.reasons import commonest


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        ([], None),
        (["too hot"], "n0: too hot"),
        (["too hot", "lost"], "n0, for one: too hot"),
        (["lost", "70 MB are free", "80.5 MB are free"], "2 of 3 nodes: 70 MB are free"),
        (["/home/a/x is empty", "/home/b is empty"], "2 of 2 nodes: /home/a/x is empty"),
        (["no 'cat'\n  or more", "lost", "no 'dog' or more"], "2 of 3 nodes: no 'cat' or more"),
        (["x" * 400], "n0: " + "x" * 300),
    ],
)
def test_the_commonest_of_reasons(reasons: list[str], told: str | None) -> None:
    assert commonest({NodeId(f"n{i}"): why for i, why in enumerate(reasons)}) == told
