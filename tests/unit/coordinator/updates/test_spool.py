"""One file of slots: written in any order, mapped to be read, reused when refused."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
from tests.stand_ins.disk_trace import unsynced

from apiary.errors import StoreError
from apiary_coordinator.updates.spool import Spool

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool" / "run-1.spool"


def test_slots_are_equal_and_take_their_room_at_once(path: Path) -> None:
    spool = Spool(path, PAGE + 1)
    assert [spool.allocate(9) for _ in range(3)] == [0, 2 * PAGE, 4 * PAGE]
    assert path.stat().st_size == 6 * PAGE
    assert path.stat().st_mode & 0o077 == 0
    spool.close()


def test_parts_written_in_any_order_give_the_whole(path: Path) -> None:
    spool = Spool(path, 10)
    spool.allocate(2)
    slot = spool.allocate(2)
    spool.write(slot, 6, b"6789")
    spool.write(slot, 0, memoryview(b"012345"))
    with spool.view(slot, 10) as view:
        assert bytes(view) == b"0123456789"
    with spool.view(0, 10) as view:
        assert bytes(view) == bytes(10)
    spool.close()


def test_a_released_slot_serves_the_next_update(path: Path) -> None:
    spool = Spool(path, 10)
    first, second = spool.allocate(2), spool.allocate(2)
    spool.release(first)
    assert spool.allocate(2) == first
    assert second == PAGE
    assert path.stat().st_size == 2 * PAGE
    spool.close()


def test_no_more_slots_are_in_use_than_may_be(path: Path) -> None:
    spool = Spool(path, 10)
    slots = [spool.allocate(3) for _ in range(3)]
    with pytest.raises(StoreError, match=r"the spool .* holds 3 updates, at most 3 may be there"):
        spool.allocate(3)
    assert path.stat().st_size == 3 * PAGE
    spool.release(slots[1])
    assert spool.allocate(3) == slots[1]
    spool.close()


def test_after_a_restart_the_bytes_are_there_and_new_slots_come_after_them(path: Path) -> None:
    spool = Spool(path, 5)
    slot = spool.allocate(1)
    spool.write(slot, 0, b"hello")
    spool.sync()
    spool.close()
    again = Spool(path, 5)
    with again.view(slot, 5) as view:
        assert bytes(view) == b"hello"
    assert again.allocate(2) == PAGE
    again.close()
    for _ in range(2):  # what is gone already is as it should be
        again.remove()
        assert not path.exists()


def test_after_a_restart_what_no_journaled_update_takes_is_free(path: Path) -> None:
    """Otherwise each restart would leave the places of the uploads that it cut short."""
    spool = Spool(path, 5)
    for _ in range(4):
        spool.allocate(4)
    spool.close()
    again = Spool(path, 5)
    again.keep([(PAGE, 5)])
    assert sorted(again.allocate(4) for _ in range(3)) == [0, 2 * PAGE, 3 * PAGE]
    assert path.stat().st_size == 4 * PAGE
    again.close()


def test_slots_of_another_size_are_kept_whole(path: Path) -> None:
    """The version before gave each update as much as it had."""
    spool = Spool(path, 1)
    for _ in range(5):
        spool.allocate(5)
    spool.close()
    again = Spool(path, 2 * PAGE)
    again.keep([(PAGE, 3), (4 * PAGE, PAGE)])
    # Two updates are there, however many of the new slots they touch.
    assert [again.allocate(4) for _ in range(2)] == [2 * PAGE, 6 * PAGE]
    with pytest.raises(StoreError, match="holds 4 updates"):
        again.allocate(4)
    again.close()


def test_a_file_cut_short_is_an_error_to_view_not_a_crash(path: Path) -> None:
    spool = Spool(path, 2 * PAGE)
    spool.allocate(1)
    os.truncate(path, PAGE)
    with pytest.raises(ValueError, match="mmap"), spool.view(0, 2 * PAGE):
        pass
    spool.close()


def test_a_view_that_outlives_its_block_is_our_bug(path: Path) -> None:
    spool = Spool(path, 10)
    spool.allocate(1)
    with pytest.raises(BufferError), spool.view(0, 10) as view:
        kept = view[2:]
    assert kept is not None
    spool.close()


def test_a_full_disk_says_so_and_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(path, 99)
    slot = spool.allocate(2)
    spool.write(slot, 0, b"hello")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreError, match=r"no room for an update of 4096 bytes in .*: No space left"):
            spool.allocate(2)
    assert spool.allocate(2) == PAGE
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
        Spool(tmp_path / "file" / "x.spool", 1)


@pytest.mark.parametrize(("sync", "left"), [({}, set()), ({"sync": False}, {"spool", "spool/1.spool"})])
def test_a_power_cut_takes_nothing_that_was_synced(
    tmp_path: Path, sync: dict[str, bool], left: set[str]
) -> None:
    """Neither an update's bytes nor the file's name: the journal will name what lies there."""
    (tmp_path / "spool").mkdir()

    def take() -> None:
        spool = Spool(tmp_path / "spool" / "1.spool", 10, **sync)
        spool.write(spool.allocate(1), 0, b"0123456789")
        spool.sync()

    assert unsynced(tmp_path, take) == left


def test_a_folder_that_cannot_be_synced_leaves_no_descriptor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(StoreError, match="cannot sync the spool's folder"):
        Spool(path, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_part_of_an_update_is_read_by_itself(path: Path) -> None:
    spool = Spool(path, 10)
    spool.allocate(2)
    slot = spool.allocate(2)
    spool.write(slot, 0, b"0123456789")
    assert spool.read(slot, 3, 4) == b"3456" and spool.read(slot, 0, 0) == b""
    assert spool.read(slot, PAGE - 1, 1) == b"\0"
    with pytest.raises(StoreError, match=r"the spool .* ends within an update"):
        spool.read(slot, PAGE - 1, 2)
    spool.close()


def test_a_closed_spool_keeps_no_file_open(path: Path) -> None:
    def opened() -> int:
        links = Path("/proc/self/fd")
        return sum(os.path.realpath(link) == os.path.realpath(path) for link in links.iterdir())

    spool = Spool(path, 10)
    assert opened() == 1
    spool.close()
    assert opened() == 0
