"""`--once`: where a broker that is not there is an error at once, not something to wait for."""

import time
from collections.abc import Callable

from apiary.bus.bus import BrokerLimits, Bus, Connected, Disconnected
from apiary.errors import BrokerUnreachable


def first_connection(bus: Bus, timeout_s: float, should_stop: Callable[[], bool]) -> BrokerLimits | None:
    """The broker's limits once connected, None where it is to stop; raises the first attempt's BusError.

    To be called before anything is subscribed, so that no message can be lost to it.
    """
    until = time.monotonic() + timeout_s + 5
    while time.monotonic() < until and not should_stop():
        for event in bus.poll(0.2):
            if isinstance(event, Connected):
                return event.limits
            if isinstance(event, Disconnected):
                raise event.error
    if not should_stop():
        raise BrokerUnreachable(f"no broker answered within {timeout_s + 5:.0f} s (broker.connect_timeout_s)")
    return None
