"""One file of slots: written in any order, mapped to be read, reused when refused."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from apiary.errors import StoreError
from apiary_coordinator.updates.spool import Spool

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "run-1.spool"


def test_slots_are_pages_apart_and_take_their_room_at_once(path: Path) -> None:
    spool = Spool(path)
    assert [spool.allocate(n) for n in (1, PAGE, PAGE + 1, 1)] == [0, PAGE, 2 * PAGE, 4 * PAGE]
    assert path.stat().st_size == 5 * PAGE
    assert path.stat().st_mode & 0o077 == 0
    spool.close()


def test_parts_written_in_any_order_give_the_whole(path: Path) -> None:
    spool = Spool(path)
    spool.allocate(10)
    slot = spool.allocate(10)
    spool.write(slot, 6, b"6789")
    spool.write(slot, 0, memoryview(b"012345"))
    with spool.view(slot, 10) as view:
        assert bytes(view) == b"0123456789"
    with spool.view(0, 10) as view:
        assert bytes(view) == bytes(10)
    spool.close()


def test_a_released_slot_serves_the_next_of_its_size(path: Path) -> None:
    spool = Spool(path)
    small, large = spool.allocate(10), spool.allocate(PAGE + 1)
    spool.release(small, 10)
    assert spool.allocate(PAGE + 1) > large
    assert spool.allocate(20) == small
    assert spool.allocate(20) not in (small, large)
    spool.close()


def test_after_a_restart_the_bytes_are_there_and_new_slots_come_after_them(path: Path) -> None:
    spool = Spool(path)
    slot = spool.allocate(5)
    spool.write(slot, 0, b"hello")
    spool.sync()
    spool.close()
    again = Spool(path)
    with again.view(slot, 5) as view:
        assert bytes(view) == b"hello"
    assert again.allocate(5) == PAGE
    again.close()
    again.remove()
    assert not path.exists()


def test_a_file_cut_short_is_an_error_to_view_not_a_crash(path: Path) -> None:
    spool = Spool(path)
    spool.allocate(2 * PAGE)
    os.truncate(path, PAGE)
    with pytest.raises(ValueError, match="mmap"), spool.view(0, 2 * PAGE):
        pass
    spool.close()


def test_a_view_that_outlives_its_block_is_our_bug(path: Path) -> None:
    spool = Spool(path)
    spool.allocate(10)
    with pytest.raises((AssertionError, BufferError)), spool.view(0, 10) as view:
        kept = view[2:]
    assert kept is not None
    spool.close()


def test_a_full_disk_says_so_and_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(path)
    slot = spool.allocate(5)
    spool.write(slot, 0, b"hello")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreError, match=r"no room for an update of 99 bytes in .*: No space left"):
            spool.allocate(99)
    assert spool.allocate(99) == PAGE
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(StoreError, match="cannot sync the spool"):
            spool.sync()
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match="cannot write to the spool"):
            spool.write(slot, 0, b"x")
    with spool.view(slot, 5) as view:
        assert bytes(view) == b"hello"
    spool.close()


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the spool"):
        Spool(tmp_path / "file" / "x.spool")
