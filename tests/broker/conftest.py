"""Real brokers for these tests, each with the configuration that a test needs."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.broker.ports import free_port

from apiary.bus.broker import find_mosquitto, speaks_mqtt
from apiary.bus.bus import Event
from apiary.bus.mqtt import MqttBus

RunMosquitto = Callable[..., int]


@pytest.fixture
def run_mosquitto(tmp_path: Path) -> Iterator[RunMosquitto]:
    """Runs mosquitto with a configuration (`{port}` is filled in); gives the port."""
    program = find_mosquitto()
    if program is None:
        pytest.skip("mosquitto is not installed")
    running: list[subprocess.Popen[bytes]] = []

    def run(conf: str, *, plain: bool = True) -> int:
        port = free_port()
        path = tmp_path / f"mosquitto-{port}.conf"
        # As root it would become the user `mosquitto`, who cannot read a test's folder.
        user = "user root\n" if os.geteuid() == 0 else ""
        path.write_text(conf.replace("{port}", str(port)) + "\n" + user)
        log = path.with_suffix(".log")
        with log.open("wb") as out:
            process = subprocess.Popen([str(program), "-c", str(path)], stdout=out, stderr=out)
        running.append(process)
        end = time.monotonic() + 10
        while time.monotonic() < end and process.poll() is None:
            if speaks_mqtt("127.0.0.1", port) if plain else _listens(port):
                return port
            time.sleep(0.03)
        pytest.fail(f"mosquitto did not come up:\n{log.read_text()}")

    yield run
    for process in running:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


def poll_until(done: Callable[[list[Event]], bool], *buses: MqttBus, within_s: float = 10.0) -> list[Event]:
    """Poll the buses in turn until `done(all events so far)`; gives the events."""
    events: list[Event] = []
    end = time.monotonic() + within_s
    while not done(events):
        assert time.monotonic() < end, f"not in time; so far: {events[-5:]}"
        for bus in buses:
            events += bus.poll(0.02)
    return events


@pytest.fixture(name="poll_until")
def poll_until_fixture() -> Callable[..., list[Event]]:
    return poll_until


@pytest.fixture(name="free_port")
def free_port_fixture() -> int:
    return free_port()
