"""The real workshop where the disk refuses: said as such, so that the coordinator tries it again."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apiary.blobs import BlobStore
from apiary.errors import DataError, StoreError
from apiary.settings import Settings
from apiary_coordinator.model import keras
from apiary_coordinator.model.keras import KerasModelBuilder


@pytest.fixture
def workshop(tmp_path: Path) -> KerasModelBuilder:
    for label in ("a", "b"):
        (tmp_path / "test" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "test" / label / "1.png")
    coordinator = {"state_dir": tmp_path / "state", "test_data": tmp_path / "test"}
    settings = Settings.model_validate({"coordinator": coordinator})
    return KerasModelBuilder(settings, BlobStore(tmp_path / "state" / "blobs"))


def test_a_full_disk_during_the_export(workshop: KerasModelBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(job: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keras, "build_in_child", full)
    with pytest.raises(StoreError, match="cannot make the export: No space left on device: the disk is full"):
        workshop.build()


def test_what_is_no_fault_of_the_disk_is_no_store_error(workshop: KerasModelBuilder, tmp_path: Path) -> None:
    (tmp_path / "test" / "b" / "1.png").unlink()
    with pytest.raises(DataError, match="holds one class only"):
        workshop.build()
