"""A watched folder: pictures that another program puts there are frames, each once, the oldest first."""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.errors import CameraError, DataError
from apiary.learn.folder.kinds import is_ignored
from apiary.learn.folder.labels import shown
from apiary.learn.folder.walk import picture_suffixes
from apiary.settings import CameraSettings
from apiary_edge.cameras.base import Camera, PassedOver

if TYPE_CHECKING:
    from apiary_edge.cameras.base import Frame

SETTLED_S: Final = 1.0
"""A file that was written to within this time may still grow."""
AHEAD: Final = 4096
"""Names read ahead, about a megabyte: a folder of 100,000 is listed 25 times to see it all."""

_Key = tuple[int, str]


def camera(options: CameraSettings) -> Camera:
    """A folder as a camera."""
    if not options.source:
        raise CameraError("folder: no source; set edge.camera.source to the folder to watch")
    return WatchedFolder(Path(options.source))


class WatchedFolder:
    """The pictures right in a folder; links, hidden files and folders in it are left alone.

    Files are neither moved nor removed. After a restart all are seen again; the store knows them.
    """

    live = False

    def __init__(self, folder: Path):
        self.name = f"folder {folder}"
        self._folder = folder
        self._ahead: deque[_Key] = deque()
        self._seen: _Key = (-1, "")
        self._listed: tuple[int, bool] | None = None

    def open(self) -> None:
        """Begin to watch. Raises CameraError."""
        if not self._folder.is_dir():
            raise CameraError(f"{self.name}: there is no such folder; make it, or set edge.camera.source")
        if not os.access(self._folder, os.R_OK | os.X_OK):
            raise CameraError(f"{self.name}: this user may not read it")
        self._listed = None

    def frame(self) -> Frame | None:
        """The next picture, None where no new one is there. Raises PassedOver for a file that is none."""
        from apiary_edge.cameras._still import read_still

        if not self._ahead:
            self._list()
        if not self._ahead:
            return None
        key = self._ahead.popleft()
        try:
            picture = read_still(self._folder / key[1])
        except DataError as e:
            if not self._folder.is_dir():
                # Not the file's fault: it is still to be seen when the folder is back.
                raise CameraError(f"{self.name}: it is gone; is its drive still there?") from None
            self._seen = key
            raise PassedOver(f"{shown(key[1])}: {e}") from None
        self._seen = key
        return picture

    def close(self) -> None:
        """Stop watching."""
        self._ahead.clear()
        self._listed = None

    def _list(self) -> None:
        try:
            changed = self._folder.stat().st_mtime_ns
            if self._listed == (changed, True):
                return
            limit = time.time_ns() - int(SETTLED_S * 1e9)
            whole = True

            def settled() -> list[_Key]:
                nonlocal whole
                with os.scandir(self._folder) as entries:
                    found = heapq.nsmallest(AHEAD, self._new(entries))
                kept = [key for key in found if key[0] <= limit]
                # Nothing is left to come only if the list was complete, and nothing is still being written.
                whole = len(kept) == len(found) < AHEAD
                return kept

            self._ahead.extend(settled())
            self._listed = (changed, whole and changed <= limit)
        except OSError as e:
            raise CameraError(f"{self.name}: {e.strerror}; is its drive still there?") from None

    def _new(self, entries: Iterator[os.DirEntry[str]]) -> Iterator[_Key]:
        suffixes = picture_suffixes()
        for entry in entries:
            if is_ignored(entry.name) or not entry.name.lower().endswith(suffixes):
                continue
            if not entry.is_file(follow_symlinks=False):
                continue
            about = entry.stat(follow_symlinks=False)
            # The time of change too: an old picture that is moved here keeps its time of writing.
            key = (max(about.st_mtime_ns, about.st_ctime_ns), entry.name)
            if key > self._seen:
                yield key
