"""The cache of arrays: bounded, torn entries are made again, a full disk switches it off."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apiary.learn.cache import ArrayCache

SHAPE = (96, 96, 3)
KB = 1024


def picture(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_what_is_put_comes_back_in_another_process_too(tmp_path: Path) -> None:
    ArrayCache(tmp_path, 1).put("pictures", "aa11", picture(1))
    ArrayCache(tmp_path, 1).put("features", "aa11", np.arange(5, dtype=np.float32))
    again = ArrayCache(tmp_path, 1)
    kept = again.get("pictures", "aa11", SHAPE, np.uint8)
    assert kept is not None
    assert np.array_equal(kept, picture(1))
    features = again.get("features", "aa11", (5,), np.float32)
    assert features is not None
    assert features.tolist() == [0, 1, 2, 3, 4]
    assert again.get("pictures", "bb22", SHAPE, np.uint8) is None


def test_a_torn_or_changed_entry_is_none_and_removed(tmp_path: Path) -> None:
    for damage in (
        lambda b: b[:-1],
        lambda b: b[:100] + b"\x00\x01" + b[102:],
        lambda b: b"",
        lambda b: b[:5],
    ):
        ArrayCache(tmp_path, 1).put("p", "aa11", picture(1))
        file = tmp_path / "p" / "aa" / "aa11"
        file.write_bytes(damage(file.read_bytes()))
        assert ArrayCache(tmp_path, 1).get("p", "aa11", SHAPE, np.uint8) is None
        assert not file.exists()


def test_a_torn_entry_on_a_card_that_takes_no_writes_any_more_is_none_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ArrayCache(tmp_path, 1)
    cache.put("pictures", "ab" * 32, np.arange(10, dtype=np.uint8))
    (entry,) = (p for p in tmp_path.rglob("*") if p.is_file())
    entry.write_bytes(entry.read_bytes()[:-1])

    def worn(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", worn)
    assert cache.get("pictures", "ab" * 32, (10,), np.uint8) is None


def test_another_shape_than_asked_for_is_not_given(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, 1)
    cache.put("p", "aa11", picture(1))
    assert cache.get("p", "aa11", (96, 96, 1), np.uint8) is None


def test_the_oldest_go_when_the_bound_is_met(tmp_path: Path) -> None:
    entry = 10 * KB + 8
    cache = ArrayCache(tmp_path, 3 * entry / 2**20)
    for i in range(3):
        cache.put("p", f"{i:04x}", picture(i, (10 * KB,)))
        os.utime(tmp_path / "p" / "00" / f"{i:04x}", (i, i))
    assert cache.nbytes == 3 * entry
    reopened = ArrayCache(tmp_path, 3 * entry / 2**20)
    reopened.put("p", "0003", picture(3, (10 * KB,)))
    left = sorted(p.name for p in (tmp_path / "p" / "00").iterdir())
    assert left == ["0001", "0002", "0003"]
    assert reopened.nbytes == 3 * entry


def test_an_entry_larger_than_the_bound_is_not_stored(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, 0.01)
    cache.put("p", "aa11", picture(1))
    assert cache.nbytes == 0
    assert cache.failed is None


def test_a_folder_that_cannot_be_written_switches_the_cache_off(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = ArrayCache(tmp_path / "cache", 1)
    cache.put("p", "aa11", picture(1))
    assert cache.failed is not None
    assert "cannot write" in cache.failed
    assert cache.get("p", "aa11", SHAPE, np.uint8) is None


def test_left_over_temporary_files_are_cleared(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, 1)
    cache.put("p", "aa11", picture(1))
    (tmp_path / "p" / "aa" / ".aa12.x.part").write_bytes(b"torn")
    assert ArrayCache(tmp_path, 1).nbytes == 96 * 96 * 3 + 8
    assert not (tmp_path / "p" / "aa" / ".aa12.x.part").exists()


def test_a_thousand_pictures_are_read_again(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, 64)
    for i in range(1000):
        cache.put("p", f"{i * 7919 % 65536:04x}{i:04x}", picture(0))
    fresh = ArrayCache(tmp_path, 64)
    for i in range(1000):
        assert fresh.get("p", f"{i * 7919 % 65536:04x}{i:04x}", SHAPE, np.uint8) is not None
