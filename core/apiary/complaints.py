"""WARNING for the first of its kind, then DEBUG: a peer that misbehaves must not fill the log."""

import logging
import math
from typing import Final

MAX_SAID: Final = 2_000
"""Of one subject; later ones are logged for debugging only, which is announced. Each has its own, so that
a fleet of another version, or names made up by an attacker, hide nothing else."""
AGAIN_S: Final = 600.0
"""The same trouble is logged again after this time, in seconds of the monotonic clock."""
MAX_TROUBLES: Final = 100


class Complaints:
    """Which complaints were made before."""

    def __init__(self, log: logging.Logger):
        self._log = log
        self._made: dict[str, set[str]] = {}
        self._told: dict[str, float] = {}

    def about(self, who: str, error: Exception) -> None:
        """Log what a peer did wrong; once a peer and kind of error loudly."""
        first = self._first(type(error).__name__, who)
        self._log.log(logging.WARNING if first else logging.DEBUG, "%s", error)

    def trouble(self, error: Exception, now: float) -> None:
        """Log what this machine refused, a full disk say; loudly again after a while, as it comes back."""
        key = str(error)[:200]
        loud = now - self._told.get(key, -math.inf) >= AGAIN_S
        if loud:
            if len(self._told) >= MAX_TROUBLES:
                self._told.clear()
            self._told[key] = now
        self._log.log(logging.ERROR if loud else logging.DEBUG, "%s", error)

    def once(self, subject: str, who: str, what: str) -> None:
        """Warn of something the first time it is seen of `who`. Subjects are few, the program's own."""
        if self._first(subject, who):
            self._log.warning("%s", what)

    def _first(self, subject: str, who: str) -> bool:
        made = self._made.setdefault(subject, set())
        if who in made or len(made) > MAX_SAID:
            return False
        made.add(who)
        if len(made) > MAX_SAID:
            self._log.warning(
                "%s: logged for %d so far; further ones only with --verbose, until the next start",
                subject,
                MAX_SAID,
            )
            return False
        return True
