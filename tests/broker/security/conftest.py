"""A mosquitto with certificates, for each test that changes what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.broker.secured import Secured

from apiary.bus.broker import find_mosquitto


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    broker = Secured(tmp_path, "certificates")
    yield broker
    broker.close()
