"""Credentials that fail for a while: the party keeps trying, with pauses, and gets in once they are right."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apiary.bus.broker import find_mosquitto, speaks_mqtt
from apiary.bus.bus import Connected, Disconnected, Event
from apiary.bus.mqtt import MqttBus
from apiary.errors import BrokerRefused
from apiary.settings import BrokerSettings

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


def test_a_party_gets_in_by_itself_once_the_broker_knows_it(
    free_port: int, poll_until: Callable[..., list[Event]], tmp_path: Path
) -> None:
    passwords, conf = tmp_path / "passwords", tmp_path / "mosquitto.conf"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "somebody", "else"], check=True)
    user = "user root\n" if os.geteuid() == 0 else ""
    conf.write_text(
        f"listener {free_port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n{user}"
    )
    with subprocess.Popen([str(find_mosquitto()), "-c", str(conf)], stderr=subprocess.DEVNULL) as broker:
        try:
            end = time.monotonic() + 10
            while not speaks_mqtt("127.0.0.1", free_port) and time.monotonic() < end:
                time.sleep(0.03)
            settings = {"port": free_port, "username": "pi", "password": "right", "retry_max_s": 1.0}
            bus = MqttBus(BrokerSettings.model_validate(settings), "pi-1")

            def refused_twice(events: list[Event]) -> bool:
                return sum(isinstance(e, Disconnected) for e in events) >= 2

            for event in poll_until(refused_twice, bus):
                assert isinstance(event, Disconnected)
                assert isinstance(event.error, BrokerRefused)
                assert event.retry_s > 0
            subprocess.run(["mosquitto_passwd", "-b", str(passwords), "pi", "right"], check=True)
            broker.send_signal(signal.SIGHUP)
            poll_until(lambda events: any(isinstance(e, Connected) for e in events), bus)
            assert bus.connected
            bus.close()
        finally:
            broker.kill()
