"""Files that are whole or not there, and what they never take the place of."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from apiary.errors import StoreError
from apiary.files import write_atomic


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


def test_a_device_stays_one() -> None:
    with pytest.raises(StoreError, match="a device or a pipe"):
        write_atomic(Path("/dev/null"), b"new")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
