"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with `hardhat/`, `cifar10/` and `fer2013/`: APIARY_DATA, or beside the checkout."""
    folder = Path(os.environ.get("APIARY_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real images not found: set APIARY_DATA to their folder (looked in {folder})")
    return folder
