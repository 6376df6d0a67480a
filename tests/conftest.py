"""What every kind of test shares: examples of property tests, the real pictures, and the check of skips."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from tests import skip_check

from apiary_cli.terminal.logs import OURS

# The same examples each time, and no clock: what fails here fails for all. `make search` draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")

AT_START = [(logger, logger.level) for logger in map(logging.getLogger, ("", *OURS))]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a command that ran in this process set: its levels would hide a later test's log lines."""
    handlers = [(logger, list(logger.handlers)) for logger, _ in AT_START]
    for logger, level in AT_START:  # a fixture of a module may have run a command, too
        logger.setLevel(level)
    yield
    for logger, level in AT_START:
        logger.setLevel(level)
    for logger, before in handlers:
        logger.handlers[:] = before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that APIARY_DATA names, with `hardhat/`, `cifar10/` and `fer2013/`."""
    named = os.environ.get("APIARY_DATA")
    if not named:
        pytest.skip("needs real pictures: APIARY_DATA names their folder")
    assert Path(named).is_dir(), f"APIARY_DATA names {named}, which is no folder"
    return Path(named)


def pytest_configure(config: pytest.Config) -> None:
    skip_check.pytest_configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: one that a worker takes last would leave the others idle."""
    long = {item.path for item in items for name in ("slow", "tensorflow") if item.get_closest_marker(name)}
    items.sort(key=lambda item: item.path not in long)
