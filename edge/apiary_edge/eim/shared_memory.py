"""The program's shared memory as a file under /dev/shm. Not multiprocessing's: that starts a process more."""

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import Final

from apiary.eim.protocol import SharedMemory
from apiary.errors import EimError

FOLDER: Final = Path("/dev/shm")  # noqa: S108 - POSIX shared memory lives there, it is no temporary file
_FLOAT_BYTES: Final = 4


class Mapped:
    """The program's features, mapped. `close` also removes what a crashed program has left behind."""

    def __init__(self, offer: SharedMemory, folder: Path = FOLDER):
        """Map what was offered. Raises EimError where it is not there, too small or another user's."""
        self._path = folder / offer.name
        size = offer.elements * _FLOAT_BYTES
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as e:
            raise EimError(f"the program's shared memory {self._path}: {e.strerror}") from None
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
                raise EimError(f"the program's shared memory {self._path} is not its own")
            if about.st_size < size:
                raise EimError(
                    f"the program's shared memory {self._path} has {about.st_size} bytes, expected {size}"
                )
            self._inode = about.st_ino
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)

    def write(self, features: bytes) -> None:
        """Put float32 features at its start."""
        self._map[: len(features)] = features

    def close(self) -> None:
        """Unmap; remove the file where it still is the one that was mapped."""
        self._map.close()
        with contextlib.suppress(OSError):
            if self._path.stat(follow_symlinks=False).st_ino == self._inode:
                self._path.unlink()
