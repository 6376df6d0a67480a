"""`--once` and Ctrl-C: the first connection or its error, the first signal or the second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest
from tests.stand_ins.memory_bus import MemoryBroker, MemoryBus

from apiary.bus.bus import Disconnected, Event
from apiary.errors import BrokerRefused, BrokerUnreachable
from apiary_cli.terminal.once import first_connection
from apiary_cli.terminal.stopping import stop_on_signals


class Told(MemoryBus):
    """A bus that is told what happens to it."""

    def __init__(self, *events: Event):
        super().__init__(MemoryBroker(), "a", None)
        self._told: list[Sequence[Event]] = [[e] for e in events]

    def poll(self, timeout_s: float) -> list[Event]:
        return list(self._told.pop(0)) if self._told else []


def test_a_broker_that_answers_lets_it_go_on() -> None:
    bus = MemoryBroker().bus("a")
    first_connection(bus, 1.0, lambda: False)
    assert bus.connected


@pytest.mark.parametrize("error", [BrokerUnreachable("nobody there"), BrokerRefused("wrong password")])
def test_the_first_error_is_raised_as_it_is(error: BrokerUnreachable | BrokerRefused) -> None:
    with pytest.raises(type(error), match=str(error)):
        first_connection(Told(Disconnected(error, 1.0)), 1.0, lambda: False)


def test_a_signal_ends_the_waiting_without_an_error() -> None:
    first_connection(Told(), 60.0, lambda: True)


def test_silence_is_an_error_in_the_end() -> None:
    with pytest.raises(
        BrokerUnreachable, match=r"no broker answered within 0 s \(broker.connect_timeout_s\)"
    ):
        first_connection(Told(), -5.0, lambda: False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_and_wakes_the_second_ends(number: signal.Signals, code: int) -> None:
    woken: list[bool] = []
    before = signal.getsignal(number)
    with stop_on_signals(lambda: woken.append(True)) as stop:
        assert not stop() and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop() and stop.exit_code == code and woken == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_without_a_terminal_a_live_view_says_plain_lines_and_nothing_when_quiet() -> None:
    code = (
        "from apiary_cli.terminal.live import LiveView; from apiary_cli.terminal.view import RunView\n"
        "with LiveView(RunView()) as live: live.say('a line'); assert not live.redraws\n"
        "with LiveView(RunView(), quiet=True) as live: live.say('not this one')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("", "a line\n")
