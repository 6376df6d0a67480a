"""Locks between processes: one service a state folder, one change of a small file at a time.

Two nodes that share an outbox would lose each other's updates, two brokers each other's database and log.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from apiary.errors import ApiaryError, StoreError

LOCK_S: Final = 10.0
"""Time for another process to finish a change of a file."""
_POLL_S: Final = 0.02


@contextmanager
def hold_folder(folder: Path, who: str, instead: str) -> Iterator[None]:
    """Hold the state folder for this process. Raises StoreError where another `who` has it: do `instead`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch(0o600)
    except OSError as e:
        raise StoreError(f"cannot use the state folder {folder}: {e.strerror}") from e
    with hold(folder / "lock", StoreError(f"another {who} is using {folder}: {instead}")):
        yield


@contextmanager
def hold(path: Path, refused: ApiaryError, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of `path`, a file that is made here or a folder that is there, against other processes.

    Raises `refused` where another one has not freed it within `wait_s`, StoreError without access.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(f"cannot open {path}: {e.strerror}") from None
    try:
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= end:
                    raise refused from None
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)
