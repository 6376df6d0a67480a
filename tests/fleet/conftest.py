from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[MakeFleet]:
    """`make_fleet(nodes, **run settings)`; every fleet in a folder of its own, closed at the end."""
    made: list[Fleet] = []

    def make(nodes: int, **options: Any) -> Fleet:
        made.append(Fleet(tmp_path / f"fleet-{len(made)}", nodes, **options))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()
