"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# The same examples each time, and no clock: what fails here fails for all. `make search` draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with `hardhat/`, `cifar10/` and `fer2013/`: APIARY_DATA, or beside the checkout."""
    folder = Path(os.environ.get("APIARY_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real images not found: set APIARY_DATA to their folder (looked in {folder})")
    return folder
