"""A sample store for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.edge.samples.parts import opened

from apiary_edge.samples.store import SampleStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    made = opened(tmp_path)
    yield made
    made.close()
