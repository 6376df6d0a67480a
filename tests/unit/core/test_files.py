"""Files that are whole or not there, and what they never take the place of."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stand_ins.disk_trace import unsynced

from apiary.errors import StoreError
from apiary.files import (
    clear_partial,
    disk_errors,
    is_full,
    make_folder,
    remove,
    sha256_of,
    stamp,
    sync_folder,
    write_all,
    write_atomic,
    write_json,
)


def test_a_link_a_pipe_and_a_folder_are_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, what in (("link", "a link"), ("nowhere", "a link"), ("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(StoreError, match=rf"cannot write .*{name}: it is .*{what}"):
            write_atomic(tmp_path / name, b"new")
    assert (tmp_path / "link").is_symlink() and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "file").read_bytes() == b"kept"
    write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_device_stays_one(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        # One of its own: where the check is broken, root would take the machine's /dev/null away.
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        device = Path("/dev/null")
    with pytest.raises(StoreError, match="a device or a pipe"):
        write_atomic(device, b"new")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "very" / "deep" / "file"
    write_atomic(path, b"old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"cannot write .*: No space left .*: the disk is full; free some"):
        write_atomic(path, parts())
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["file"]
    write_atomic(path, iter([b"a", b"b"]), mode=0o600)
    assert path.read_bytes() == b"ab" and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    (tmp_path / "any folder").mkdir()
    write_atomic(tmp_path / "a", b"x")
    make_folder(tmp_path / "b")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "any folder").stat().st_mode


def test_what_is_written_and_removed_for_certain_survives_the_power(tmp_path: Path) -> None:
    for path in (tmp_path / "a", tmp_path / "b"):
        write_atomic(path, b"x")
    assert unsynced(tmp_path, lambda: write_atomic(tmp_path / "c", [b"x", b"y"])) == set()
    assert unsynced(tmp_path, lambda: write_atomic(tmp_path / "d", b"x", sync=False)) == {".", "d"}
    assert unsynced(tmp_path, lambda: remove(tmp_path / "a", sync=True)) == set()
    assert unsynced(tmp_path, lambda: remove(tmp_path / "b")) == {"."}, "a sync wears a card"
    remove(tmp_path / "c", sync=True)
    remove(tmp_path / "d")
    write_atomic(tmp_path / "e", b"x", sync=False)


def test_all_bytes_are_with_the_kernel_when_it_is_told_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, fsync = [], os.fsync

    def noted(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            sizes.append(os.fstat(fd).st_size)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    write_atomic(tmp_path / "a", b"small")
    assert sizes == [5]


def test_only_a_folder_is_synced_as_one_and_it_is_closed_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "file")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        sync_folder(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("number", "what"),
    [(28, "the disk is full"), (13, "this user has no right there"), (30, "is read-only"), (5, "")],
)
def test_an_operator_reads_how_to_mend_it_where_that_is_known(number: int, what: str) -> None:
    with pytest.raises(StoreError) as caught, disk_errors("cannot do it"):
        raise OSError(number, os.strerror(number))
    said = str(caught.value)
    assert said.startswith(f"cannot do it: {os.strerror(number)}") and what in said
    assert (said == f"cannot do it: {os.strerror(number)}") == (not what)
    with pytest.raises(StoreError, match=r"^cannot do it: odd$"), disk_errors("cannot do it"):
        raise OSError("odd")


def test_all_of_it_is_written_however_little_the_disk_takes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        write_all(fd, b"0123456789", 2)
        assert os.pread(fd, 100, 0) == b"\0\0" + b"0123456789"
    finally:
        os.close(fd)


def test_removing_what_is_not_there_is_no_error_and_what_cannot_be_removed_is(tmp_path: Path) -> None:
    remove(tmp_path / "none")
    remove(tmp_path / "none", sync=True)
    with pytest.raises(StoreError, match="cannot remove"):
        remove(tmp_path)


def test_half_written_files_go_where_they_are_looked_for(tmp_path: Path) -> None:
    for name in (".a.x.part", "deep/.b.x.part", "c.part", ".d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert clear_partial(tmp_path) == 1
    assert clear_partial(tmp_path, below=True) == 1
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".d", "c.part"]
    assert clear_partial(tmp_path / "none") == 0
    (tmp_path / ".folder.part").mkdir()
    assert clear_partial(tmp_path) == 0


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert stamp(None) is None and stamp(path) is None
    write_atomic(path, b"a")
    before = stamp(path)
    assert before is not None and before == stamp(path)
    write_atomic(path, b"b")
    assert stamp(path) != before


def test_a_disk_has_room_for_a_database_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_full(tmp_path) is False and is_full(tmp_path / "none") is False
    for blocks, full in ((15, True), (16, False)):
        found = os.statvfs_result((4096, 4096, 0, 0, blocks, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _, found=found: found)
        assert is_full(tmp_path) == full


def test_json_ends_with_a_line_and_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1}, indent=None)
    assert (tmp_path / "a").read_text() == '{"x": 1}\n'
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b'{"x": 1}\n').hexdigest()
    write_json(tmp_path / "a", {"x": 1})
    assert (tmp_path / "a").read_text() == '{\n  "x": 1\n}\n'


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b", 0o700)
    make_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot use the folder"):
        make_folder(tmp_path / "file" / "c")
