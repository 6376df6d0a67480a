"""One process a state folder: two nodes that share an outbox would lose each other's updates, two brokers
each other's database and log."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apiary.errors import StoreError


@contextmanager
def hold_folder(folder: Path, who: str, instead: str) -> Iterator[None]:
    """Hold the folder for this process. Raises StoreError where another `who` has it: do `instead`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise StoreError(f"cannot use the state folder {folder}: {e.strerror}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreError(f"another {who} is using {folder}: {instead}") from None
    try:
        yield
    finally:
        os.close(fd)
