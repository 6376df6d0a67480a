"""WARNING for the first of its kind, then DEBUG: a peer that misbehaves must not fill the log."""

from __future__ import annotations

import logging
from typing import Final

MAX_KINDS: Final = 10_000
"""Kinds remembered; what comes after them is only debugging."""


class Complaints:
    """Which complaints were made before."""

    def __init__(self, log: logging.Logger):
        self._log = log
        self._made: set[tuple[str, ...]] = set()

    def about(self, who: str, error: Exception) -> None:
        """Log what a peer did wrong; once a peer and kind of error loudly."""
        first = self._first(who, type(error).__name__)
        self._log.log(logging.WARNING if first else logging.DEBUG, "%s", error)

    def once(self, key: str, what: str) -> None:
        """Warn of something the first time it is seen."""
        if self._first("once", key):
            self._log.warning("%s", what)

    def _first(self, *key: str) -> bool:
        if key in self._made or len(self._made) >= MAX_KINDS:
            return False
        self._made.add(key)
        return True
