"""A disk that knows what a power cut would take: what was written since it was synced.

`unsynced(act)` runs `act` in a forked child whose calls are noted, and gives the files whose bytes, and the
folders whose names, were changed and not synced when it returned. Bytes that SQLite writes are not seen; its
own settings decide about them.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR


class _Disk:
    def __init__(self) -> None:
        self.dirty: set[str] = set()

    def named(self, path: object) -> None:
        """A name came, went, or became another's: its folder is to be synced."""
        self.dirty.add(os.path.dirname(os.path.abspath(os.fspath(path))))  # type: ignore[call-overload] # noqa: PTH100, PTH120

    def moved(self, source: object, target: object) -> None:
        """A file has another name: so have its bytes."""
        before, after = (os.path.abspath(os.fspath(p)) for p in (source, target))  # type: ignore[call-overload] # noqa: PTH100
        if before in self.dirty:
            self.dirty.discard(before)
            self.dirty.add(after)
        else:
            self.dirty.discard(after)
        self.named(target)

    def gone(self, path: object) -> None:
        """What is removed need not be synced; that it is gone may be."""
        self.dirty.discard(os.path.abspath(os.fspath(path)))  # type: ignore[call-overload] # noqa: PTH100
        self.named(path)

    def written(self, fd: int) -> None:
        self.dirty.add(_path_of(fd))

    def synced(self, fd: int) -> None:
        self.dirty.discard(_path_of(fd))


def _path_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _arm(disk: _Disk) -> None:
    """For a child only: nothing is put back."""
    real_os_open, real_open = os.open, io.open

    def os_open(path: Any, flags: int, *args: Any, **more: Any) -> int:
        new = bool(flags & os.O_CREAT) and not os.path.exists(path)  # noqa: PTH110
        fd = real_os_open(path, flags, *args, **more)
        if new:
            disk.named(path)
        if flags & _WRITES and (new or flags & os.O_TRUNC):
            disk.written(fd)
        return fd

    def open_(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if isinstance(file, int):
            opened = real_open(file, mode, *args, **more)
        else:
            new = not os.path.exists(file)  # noqa: PTH110
            opened = real_open(file, mode, *args, **more)
            if new:
                disk.named(file)
        if set(mode) & set("wax+"):
            disk.written(opened.fileno())
        return opened

    os.open = os_open
    builtins.open = io.open = open_
    os.fdopen = open_  # type: ignore[assignment]  # in a child only

    def after(name: str, note: Callable[..., None]) -> None:
        real = getattr(os, name)

        def noting(*args: Any, **more: Any) -> Any:
            done = real(*args, **more)
            note(*args)
            return done

        setattr(os, name, noting)

    for name in ("pwrite", "write", "posix_fallocate", "ftruncate"):
        after(name, lambda fd, *_: disk.written(fd))
    for name in ("fsync", "fdatasync"):
        after(name, disk.synced)
    for name in ("replace", "rename"):
        after(name, disk.moved)
    after("link", lambda source, target: disk.named(target))
    after("mkdir", lambda path, *_: disk.named(path))
    for name in ("unlink", "remove", "rmdir"):
        after(name, disk.gone)


def unsynced(folder: Path, act: Callable[[], object]) -> set[str]:
    """Names below `folder` that a power cut after `act` could take back, or tear; `.` is `folder` itself."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            real_write, disk = os.write, _Disk()
            _arm(disk)
            act()
            real_write(write_end, json.dumps(sorted(disk.dirty)).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        text = told.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    paths = [Path(p) for p in json.loads(text)]
    return {str(p.relative_to(folder)) for p in paths if p.is_relative_to(folder)}
