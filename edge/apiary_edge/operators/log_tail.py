"""The last lines of this process's log, kept in memory for operators who ask; bounded, without paths."""

import logging
import re
import threading
from collections import deque
from pathlib import Path
from typing import Final

from apiary.learn.folder import kinds
from apiary.log_lines import LogLines

MAX_BYTES: Final = 16_384
_MAX_LINE: Final = 1_000
_SUFFIXES: Final = "|".join(re.escape(s) for s in (*kinds.PICTURES, *kinds.HEIC, *kinds.AVIF))
_NAME: Final = rf"([^/'\"\n]+(?:{_SUFFIXES}))"
_PICTURE: Final = re.compile(r"[^\s'\"=:]*/" + _NAME, re.IGNORECASE)


class LogTail(logging.Handler):
    """Add it to the root logger. Of a picture's path only its name is kept; `hidden` are its folders."""

    def __init__(self, hidden: list[Path] | None = None, max_bytes: int = MAX_BYTES):
        super().__init__(logging.INFO)
        self.setFormatter(LogLines("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        folders = sorted(
            {str(form) for path in hidden or [] for form in (path.absolute(), path)}, reverse=True
        )
        # In folders that are known, labels with spaces in them are part of a path.
        self._hidden = [re.compile(f"{re.escape(f)}/(?:[^'\"\n]*/)?{_NAME}", re.IGNORECASE) for f in folders]
        self._max = max_bytes
        self._bytes = 0
        self._lines: deque[str] = deque()
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's lines; the oldest leave."""
        for line in self.format(record).splitlines():
            kept = self._clean(line)[:_MAX_LINE]
            with self._guard:
                self._lines.append(kept)
                self._bytes += len(kept.encode(errors="replace")) + 1
                while self._bytes > self._max:
                    self._bytes -= len(self._lines.popleft().encode(errors="replace")) + 1

    def tail(self, lines: int, max_bytes: int = MAX_BYTES) -> list[str]:
        """At most so many of the last lines, oldest first, together at most `max_bytes`."""
        with self._guard:
            newest = list(self._lines)[-lines:] if lines > 0 else []
        taken: list[str] = []
        for line in reversed(newest):
            max_bytes -= len(line.encode(errors="replace")) + 1
            if max_bytes < 0:
                break
            taken.append(line.encode(errors="replace").decode())
        return taken[::-1]

    def _clean(self, line: str) -> str:
        for pattern in self._hidden:
            line = pattern.sub(r"\1", line)
        return _PICTURE.sub(r"\1", line)
