"""A broker that does not keep to MQTT, or sends more than it was told we take: refused, and said."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from apiary.bus.bus import Disconnected, Event
from apiary.bus.mqtt import MqttBus
from apiary.bus.packets import MAX_PACKET_BYTES
from apiary.settings import BrokerSettings

CONNACK = b"\x20\x03\x00\x00\x00"  # MQTT 5, section 3.2: accepted, no properties
TOO_LONG = b"\x30\xff\xff\xff\x7f"  # a PUBLISH of 256 MiB begins
MAXIMUM_PACKET_SIZE = b"\x27" + MAX_PACKET_BYTES.to_bytes(4, "big")  # section 3.1.2.11.4


class Hostile:
    """Accepts one connection after another, answers CONNECT, then says what it was given to say."""

    def __init__(self, says: bytes):
        self.heard = b""
        self._says = says
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(10)
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(10)
                self.heard = peer.recv(4096)
                peer.sendall(CONNACK + self._says)
                while peer.recv(4096):
                    pass

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in accept
        self._server.close()
        self._thread.join(15)


@pytest.fixture(params=[TOO_LONG, b"\x30\x80\x80\x80\x80\x01", b"\xf0\x00", b"\x90\x01\x00", b"\x40\x00"])
def hostile(request: pytest.FixtureRequest) -> Iterator[Hostile]:
    broker = Hostile(request.param)
    yield broker
    broker.close()


def test_the_link_ends_with_a_reason_and_is_tried_again(hostile: Hostile) -> None:
    bus = MqttBus(BrokerSettings(port=hostile.port, protocol="5"), "careful")
    events: list[Event] = []
    end = time.monotonic() + 10
    while sum(isinstance(e, Disconnected) for e in events) < 2:
        assert time.monotonic() < end, events
        events += bus.poll(0.1)
    bus.close()
    ended = next(e for e in events if isinstance(e, Disconnected))
    assert f"127.0.0.1:{hostile.port}" in str(ended.error)
    assert ended.retry_s > 0
    assert MAXIMUM_PACKET_SIZE in hostile.heard


def test_what_is_too_large_is_named() -> None:
    broker = Hostile(TOO_LONG)
    bus = MqttBus(BrokerSettings(port=broker.port, protocol="5"), "careful")
    events: list[Event] = []
    end = time.monotonic() + 10
    while not any(isinstance(e, Disconnected) for e in events):
        assert time.monotonic() < end, events
        events += bus.poll(0.1)
    bus.close()
    broker.close()
    ended = next(e for e in events if isinstance(e, Disconnected))
    assert f"a packet of 268435455 bytes, expected at most {MAX_PACKET_BYTES}" in str(ended.error)
