"""`--once`: where a broker that is not there is an error at once, not something to wait for."""

import time
from collections.abc import Callable

from apiary.bus.bus import BrokerLimits, Bus, Connected, Disconnected
from apiary.errors import BrokerUnreachable


class FirstConnection:
    """Waits for the first connection of a bus."""

    def __init__(self, bus: Bus):
        self._bus = bus

    def wait(self, timeout_s: float, should_stop: Callable[[], bool]) -> BrokerLimits | None:
        """The broker's limits once connected, None where it is to stop; raises the first attempt's BusError.

        To be called before anything is subscribed, so that no message can be lost to it.
        """
        until = time.monotonic() + timeout_s + 5
        while time.monotonic() < until and not should_stop():
            for event in self._bus.poll(0.2):
                match event:
                    case Connected(limits):
                        return limits
                    case Disconnected(error):
                        raise error
                    case _:
                        pass
        if not should_stop():
            raise BrokerUnreachable(
                f"no broker answered within {timeout_s + 5:.0f} s (broker.connect_timeout_s)"
            )
        return None
