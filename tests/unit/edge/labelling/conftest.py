"""A store with pictures, its owner's browser, and a stranger's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stand_ins.browser import Browser, Clock
from tests.unit.edge.labelling.parts import BOUNDS, TOKEN, picture

from apiary_edge.labelling.app import Labelling, site
from apiary_edge.samples.model import Added, Incoming, SampleId
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import OwnerGate


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    made = SampleStore(tmp_path / "samples", tmp_path / "cache", BOUNDS, time.time)
    yield made
    made.close()


@pytest.fixture
def ids(store: SampleStore) -> list[SampleId]:
    outcomes = list(store.add_many(Incoming(picture(i), "test") for i in range(12)))
    return [o.id for o in outcomes if isinstance(o, Added)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stranger(store: SampleStore, clock: Clock) -> Browser:
    gate = OwnerGate(TOKEN, 4911, clock, clock.pauses.append)
    return Browser(site(Labelling(lambda: store, BOUNDS.held_out), gate), TOKEN)


@pytest.fixture
def owner(stranger: Browser) -> Browser:
    stranger.login()
    return stranger
