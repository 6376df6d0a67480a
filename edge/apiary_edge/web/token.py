"""The owner's token: made at the first start, kept in a file that only this user can read."""

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Final

from apiary.errors import StoreError
from apiary.files import sync_folder

FILE_NAME: Final = "labelling.token"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{32,128}")


def load(state_dir: Path) -> str | None:
    """The token in `state_dir`, None where no node has made one. Raises StoreError."""
    file = state_dir / FILE_NAME
    try:
        return _read(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise StoreError(f"cannot read the token in {file}: {e.strerror}; try it with sudo") from e


def load_or_make(state_dir: Path) -> str:
    """The token in `state_dir`, 256 random bits if there was none. Raises StoreError."""
    file = state_dir / FILE_NAME
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return _read(file)
        # Not by write_atomic, whose files others may read. The link makes it whole or not there, and of two
        # processes that start together one wins.
        fresh = state_dir / f".{FILE_NAME}.{secrets.token_hex(4)}.part"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as f:
                f.write(secrets.token_urlsafe(32) + "\n")
                f.flush()
                os.fsync(f.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(fresh, file)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(state_dir)
        return _read(file)
    except OSError as e:
        raise StoreError(f"cannot keep the labelling page's token in {file}: {e.strerror}") from e


def _read(file: Path) -> str:
    with file.open(encoding="ascii", errors="replace") as f:
        mode = os.fstat(f.fileno()).st_mode & 0o777
        if mode & 0o077:
            raise StoreError(
                f"{file} may be read by others (mode {mode:o}): remove it, and a new one is made"
            )
        text = f.read(1024).strip()
    if not _TOKEN.fullmatch(text):
        raise StoreError(f"{file} holds no token: remove it, and a new one is made")
    return text
