"""`--once`: where a broker that is not there is an error at once, not something to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

from apiary.bus.bus import Bus, Connected, Disconnected
from apiary.errors import BrokerUnreachable


class FirstConnection:
    """Waits for the first connection of a bus."""

    def __init__(self, bus: Bus):
        self._bus = bus

    def wait(self, timeout_s: float, should_stop: Callable[[], bool]) -> None:
        """Return when connected; raise the first attempt's BusError. Messages cannot have come before."""
        until = time.monotonic() + timeout_s + 5
        while time.monotonic() < until and not should_stop():
            for event in self._bus.poll(0.2):
                match event:
                    case Connected():
                        return
                    case Disconnected(error):
                        raise error
                    case _:
                        pass
        if not should_stop():
            raise BrokerUnreachable(
                f"no broker answered within {timeout_s + 5:.0f} s (broker.connect_timeout_s)"
            )
