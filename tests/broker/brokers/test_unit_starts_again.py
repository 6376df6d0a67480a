"""The deployed broker's unit: whatever is wrong with its database, its second start succeeds.

The commands are those of the unit's template.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.broker.ports import free_port
from tests.broker.unit import after_end, before_start

from apiary.bus.broker import DATABASE, find_mosquitto, speaks_mqtt
from apiary.bus.bus import Connected, Event, Received
from apiary.bus.mqtt import MqttBus
from apiary.settings import BrokerSettings

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


class Unit:
    """mosquitto with a database in `folder`, and the unit's commands before and after it."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        user = "user root\n" if os.geteuid() == 0 else ""
        (folder / "mosquitto.conf").write_text(
            f"{user}persistence true\npersistence_location {folder}/\nlistener {self.port} 127.0.0.1\n"
            "allow_anonymous true\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """One start; whether it answers. What systemd does after an end is done where it ends."""
        before_start(self.folder)
        self.process = subprocess.Popen(
            [str(find_mosquitto()), "-c", str(self.folder / "mosquitto.conf")], stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 15
        while time.monotonic() < end:
            if self.process.poll() is not None:
                self.ended()
                return False
            if speaks_mqtt("127.0.0.1", self.port):
                return True
            time.sleep(0.03)
        raise AssertionError("it neither answered nor ended")

    def end(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(10)
        self.ended()

    def ended(self) -> None:
        assert self.process is not None
        after_end(self.folder, self.process.returncode)

    def retained(self) -> list[bytes]:
        bus, events = MqttBus(BrokerSettings(port=self.port), "reader"), list[Event]()
        bus.subscribe("kept/#")
        while not any(isinstance(e, Connected) for e in events):
            events += bus.poll(0.1)
        events += [*bus.poll(0.3), *bus.poll(0.3)]
        bus.close()
        return [e.payload for e in events if isinstance(e, Received)]

    def keep(self) -> None:
        bus, sent = MqttBus(BrokerSettings(port=self.port), "writer"), False
        while not sent or bus.backlog:
            sent = sent or bus.publish("kept/one", b"a" * 5_000, retain=True)
            bus.poll(0.1)
        bus.close()


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    made = Unit(tmp_path)
    assert made.start()
    made.keep()
    made.end(signal.SIGTERM)
    return made


def test_after_an_orderly_end_everything_is_kept(unit: Unit) -> None:
    assert unit.start()
    assert unit.retained() == [b"a" * 5_000]
    unit.end(signal.SIGTERM)


@pytest.mark.parametrize("damage", ["all NULs", "NULs at its end", "cut", "empty", "another's"])
def test_a_torn_database_costs_at_most_one_start(unit: Unit, damage: str) -> None:
    file = unit.folder / DATABASE
    whole = file.read_bytes()
    file.write_bytes(
        {
            "all NULs": bytes(len(whole)),
            "NULs at its end": whole[:40] + bytes(len(whole) - 40),
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "another's": b"SQLite format 3\x00" * 40,
        }[damage]
    )
    starts = 1
    while not unit.start():
        starts += 1
        assert starts <= 2
    if starts == 2:
        assert (unit.folder / f"{DATABASE}.damaged").is_file()
    unit.keep()
    assert unit.retained() == [b"a" * 5_000]
    unit.end(signal.SIGTERM)
    assert unit.start()
    assert unit.retained() == [b"a" * 5_000], "the next database is its own again"
    unit.end(signal.SIGTERM)


def test_a_broker_that_was_killed_starts_without_what_it_kept(unit: Unit) -> None:
    """As the log's filter ends one whose memory stays full: what fills it may lie in the database."""
    assert unit.start()
    unit.end(signal.SIGKILL)
    assert unit.start()
    assert unit.retained() == []
    unit.end(signal.SIGTERM)
