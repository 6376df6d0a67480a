"""Files that are whole or not there: temporary file, fsync, rename, fsync of the folder."""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from apiary.errors import StoreError

# The only way to read it is to set it; done once, before there are threads.
_UMASK: Final = os.umask(0o077)
os.umask(_UMASK)
_NEEDED_BYTES: Final = 64 * 2**10


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside into a StoreError: `what` failed, the system's reason, how to mend it.

    with disk_errors(f"cannot read {path}"):
        data = path.read_bytes()
    """
    try:
        yield
    except OSError as e:
        raise StoreError(f"{what}: {e.strerror or e}{advice(e)}") from e


def write_atomic(
    path: Path,
    data: bytes | memoryview | Iterable[bytes | memoryview],
    *,
    sync: bool = True,
    mode: int = 0o666 & ~_UMASK,
) -> None:
    """Replace `path` by `data` so that a power cut leaves the old file or the new one. Raises StoreError.

    A link, a device or a folder is not replaced, but refused.

    `mode` is that of any other new file; 0o600 for a secret, which no other user can open at any instant.
    """
    refuse_special(path)
    parts = [data] if isinstance(data, bytes | memoryview) else data
    with disk_errors(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(fd, "wb") as f:
                for part in parts:
                    f.write(part)
                f.flush()
                # mkstemp keeps others out; a finished file has the mode of any other new file.
                os.fchmod(f.fileno(), mode)
                if sync:
                    os.fsync(f.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
        if sync:
            sync_folder(path.parent)


def refuse_special(path: Path) -> None:
    """Raise StoreError where something is there that a file must not take the place of."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # there is none, or writing says what is wrong
    if stat.S_ISREG(mode):
        return
    what = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
    raise StoreError(f"cannot write {path}: it is {what}, which a file would replace; name a file")


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at `offset` of an open file: a disk that is nearly full takes a part. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """`value` as JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=indent) + "\n").encode())


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it where they are not there. Raises StoreError."""
    with disk_errors(f"cannot use the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True, mode=mode)


def remove(path: Path, *, sync: bool = False) -> None:
    """Remove a file if it is there, `sync`: for certain when this returns. Raises StoreError."""
    with disk_errors(f"cannot remove {path}"):
        path.unlink(missing_ok=True)
        if sync:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read a part at a time. Raises OSError."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


Stamp = tuple[int, int, int] | None


def stamp(path: Path | None) -> Stamp:
    """Another value once a file was written or replaced; None where there is none."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None


def clear_partial(folder: Path, *, below: bool = False) -> int:
    """Remove what `write_atomic` left when power went, `below`: in folders of it too; returns how many.

    Raises StoreError.
    """
    found = folder.rglob(".*.part") if below else folder.glob(".*.part")
    left = [p for p in found if p.is_file()]
    for p in left:
        remove(p)
    return len(left)


def is_full(folder: Path) -> bool:
    """Whether a database there has no room to open: it needs 32 kB, and SQLite calls that an I/O error."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _NEEDED_BYTES


def advice(e: OSError) -> str:
    """How an operator mends it, to follow what went wrong; empty where that is not known."""
    import errno

    known: dict[int | None, str] = {
        errno.ENOSPC: ": the disk is full; free some space, nothing was lost",
        errno.EACCES: ": this user has no right there",
        errno.EROFS: ": the file system is read-only (a worn SD card does that)",
    }
    return known.get(e.errno, "")
