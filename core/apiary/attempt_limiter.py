"""Slows down who guesses: failed attempts by address, for the owner's pages and the enrolment service."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

_REMEMBERED: Final = 20
"""The newest failures of an address."""


@dataclass(slots=True, eq=False)
class AttemptLimiter:
    """How long an address has to wait before its next attempt is looked at. Bounded; safe for many threads.

    `waits_until` is the rule: from the times of an address's failures, oldest first, to when it may try
    again. `clock` is monotonic seconds; of more than `max_addresses` the one that failed longest ago is
    forgotten.
    """

    waits_until: Callable[[Sequence[float]], float]
    clock: Callable[[], float]
    max_addresses: int
    _failures: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._failures)

    def wait_s(self, address: str) -> float:
        """Seconds; 0 where it need not wait."""
        with self._lock:
            failures = self._failures.get(address)
            return max(0.0, self.waits_until(failures) - self.clock()) if failures else 0.0

    def failed(self, address: str) -> None:
        """Count a failed attempt."""
        with self._lock:
            failures = self._failures.pop(address, deque(maxlen=_REMEMBERED))
            failures.append(self.clock())
            self._failures[address] = failures
            if len(self._failures) > self.max_addresses:
                self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """Forget the failures of an address."""
        with self._lock:
            self._failures.pop(address, None)
