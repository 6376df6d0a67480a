"""Ctrl-C and SIGTERM: the first asks the loop to end in good order, the second ends at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal ended what was waited for: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int | None):
        super().__init__()
        self.exit_code = 128 + (number or signal.SIGINT)


class StopSignal:
    """A flag that is called: whether a signal came."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, 0 where nothing came."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_on_signals(wake: Callable[[], None] = lambda: None) -> Iterator[StopSignal]:
    """Within the block, SIGINT and SIGTERM set the flag and wake the loop; afterwards all is as before."""
    stop = StopSignal()

    def handler(number: int, frame: FrameType | None) -> None:
        if stop():
            raise Interrupted(number)
        stop.signal = number
        wake()

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
