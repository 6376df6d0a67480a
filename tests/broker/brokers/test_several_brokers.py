"""`broker.hosts`: members that refuse, stay silent, or close the connection are passed over."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from apiary.bus.broker import find_mosquitto, start_broker
from apiary.bus.bus import Connected, Disconnected, Event
from apiary.bus.mqtt import MqttBus
from apiary.errors import BrokerRefused, BrokerUnreachable
from apiary.settings import BrokerSettings, load_settings
from apiary_cli.checks import broker as broker_check

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
PollUntil = Callable[..., list[Event]]
V5, V311 = 5, 4
ACCEPTED_311 = b"\x20\x02\x00\x00"


def connected(events: list[Event]) -> bool:
    return any(isinstance(e, Connected) for e in events)


def lost(events: list[Event]) -> bool:
    return any(isinstance(e, Disconnected) for e in events)


@contextmanager
def member(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """A port where `answer` decides on each CONNECT: bytes are sent and the link kept, None closes it."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                stack.enter_context(peer)
                peer.settimeout(5)
                said = answer(peer.recv(1000))
                if said is None:
                    peer.close()
                else:
                    peer.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            over.set()
            thread.join(10)


def closing(_: bytes) -> None:
    return None


def silent(_: bytes) -> bytes:
    return b""


def refusing(_: bytes) -> bytes:
    return b"\x20\x03\x00\x87\x00"  # not authorized


def knows_311_only(connect: bytes) -> bytes | None:
    """As RabbitMQ 3.10: it closes the connection on a CONNECT of version 5."""
    return None if connect[8] == V5 else ACCEPTED_311


def ids_that_begin_at(port: int, ports: list[int]) -> str:
    """A client id whose first address is that port."""
    from apiary.addresses import Address
    from apiary.bus.route import Route

    addresses = [Address("127.0.0.1", p) for p in ports]
    return next(i for i in map(str, range(1000)) if Route(addresses, i).next().address.port == port)


@pytest.mark.parametrize("kind", ["refusing", "silent", "closing", "not there"])
def test_a_failed_member_is_passed_over_within_the_attempt(
    poll_until: PollUntil, free_port: int, kind: str
) -> None:
    answers = {"refusing": refusing, "silent": silent, "closing": closing}
    with ExitStack() as stack:
        broker = stack.enter_context(start_broker(0, prefer="mosquitto"))
        bad = free_port if kind == "not there" else stack.enter_context(member(answers[kind]))
        hosts = [f"127.0.0.1:{bad}", f"127.0.0.1:{broker.port}"]
        name = ids_that_begin_at(bad, [bad, broker.port])
        bus = MqttBus(BrokerSettings(hosts=tuple(hosts), connect_timeout_s=3.0), name)
        events = poll_until(connected, bus)
        assert not lost(events), "one attempt, as far as the services see"
        assert bus.limits.protocol == "5.0"
        bus.close()


def test_where_every_member_fails_the_error_names_each(poll_until: PollUntil, free_port: int) -> None:
    with member(refusing) as bad:
        hosts = (f"127.0.0.1:{bad}", f"127.0.0.1:{free_port}")
        bus = MqttBus(BrokerSettings(hosts=hosts), "a")
        error = next(e.error for e in poll_until(lost, bus) if isinstance(e, Disconnected))
        assert isinstance(error, BrokerRefused)
        assert "none of 2 addresses" in str(error)
        assert f"127.0.0.1:{bad}: its answer: Not authorized" in str(error)
        assert f"127.0.0.1:{free_port}: Connection refused" in str(error)
        bus.close()


def test_a_member_that_dies_costs_its_parties_one_reconnect(poll_until: PollUntil, tmp_path: Path) -> None:
    with ExitStack() as stack:
        members = [
            stack.enter_context(start_broker(0, prefer="mosquitto", state_dir=tmp_path / str(i)))
            for i in range(2)
        ]
        hosts = tuple(f"127.0.0.1:{m.port}" for m in members)
        buses = [MqttBus(BrokerSettings(hosts=hosts), f"pi-{i}") for i in range(12)]
        for bus in buses:
            poll_until(connected, bus)
        at = Counter(bus._endpoint.address.port for bus in buses if bus._endpoint)
        assert set(at) == {m.port for m in members}, "they spread"
        members[0].kill()
        for bus in buses:
            if bus._endpoint and bus._endpoint.address.port == members[0].port:
                poll_until(connected, bus)
        assert {bus._endpoint.address.port for bus in buses if bus._endpoint} == {members[1].port}
        for bus in buses:
            bus.close()


def test_a_broker_that_closes_on_version_5_is_spoken_to_in_3_1_1(
    poll_until: PollUntil, caplog: pytest.LogCaptureFixture
) -> None:
    with member(knows_311_only) as port:
        bus = MqttBus(BrokerSettings(port=port), "a")
        events = poll_until(connected, bus)
        assert not lost(events)
        assert bus.limits.protocol == "3.1.1"
        assert "speaks MQTT 3.1.1 only" in caplog.text
        bus.close()


def test_one_cut_on_version_5_is_no_reason_for_3_1_1(poll_until: PollUntil) -> None:
    """A broker that is being stopped closes a connection too."""
    connects: list[int] = []

    def once_closing(connect: bytes) -> bytes | None:
        connects.append(connect[8])
        return None if len(connects) == 1 else b"\x20\x03\x00\x00\x00"

    with member(once_closing) as port:
        bus = MqttBus(BrokerSettings(port=port), "a")
        poll_until(connected, bus)
        assert connects == [V5, V5]
        assert bus.limits.protocol == "5.0"
        bus.close()


def test_where_3_1_1_does_not_help_version_5s_reason_is_given(poll_until: PollUntil) -> None:
    connects: list[int] = []

    def shut(connect: bytes) -> None:
        connects.append(connect[8])

    with member(shut) as port:
        bus = MqttBus(BrokerSettings(port=port), "a")
        error = next(e.error for e in poll_until(lost, bus) if isinstance(e, Disconnected))
        assert connects == [V5, V5, V311]
        assert isinstance(error, BrokerUnreachable)
        assert "closed the connection instead of answering" in str(error)
        bus.close()


def test_doctor_tries_each(free_port: int) -> None:
    with start_broker(0, prefer="mosquitto") as broker:
        hosts = [f"127.0.0.1:{broker.port}", f"127.0.0.1:{free_port}"]
        found = broker_check.broker(load_settings(overrides={"broker.hosts": hosts}).settings)
        states = [(c.name, c.state) for c in found]
        assert states == [("broker", "ok"), ("round trip", "ok"), ("chunk", "ok"), ("broker", "warn")]
        assert f"127.0.0.1:{free_port}" in found[-1].what
        # A flag names the broker, whatever the settings name.
        overrides = {"broker.hosts": hosts, "broker.port": broker.port}
        assert len(load_settings(overrides=overrides).settings.broker.addresses) == 2


def test_doctor_finds_a_broker_that_listens_on_loopback_only() -> None:
    with start_broker(0, prefer="mosquitto") as broker:
        overrides = {"broker.host": "127.0.1.1", "broker.port": broker.port}
        (found,) = broker_check.broker(load_settings(overrides=overrides).settings)
    assert found.state == "fail"
    assert "a broker of this machine answers at 127.0.0.1 and not at this address" in found.mend


def test_doctor_says_what_is_no_plain_listener() -> None:
    with member(
        lambda said: b"HTTP/1.1 400 Bad Request\r\n\r\n" if said.startswith(b"GET") else None
    ) as port:
        found = broker_check.broker(load_settings(overrides={"broker.port": port}).settings)
    assert [(c.name, c.state) for c in found] == [("broker", "fail")]
    assert "listener for websockets" in found[0].mend


def test_doctor_tells_packet_limits_from_rights(tmp_path: Path) -> None:
    conf = tmp_path / "small.conf"
    conf.write_text("message_size_limit 50000\n")
    with start_broker(0, state_dir=tmp_path / "b", prefer="mosquitto", conf=conf) as broker:
        found = broker_check.broker(
            load_settings(overrides={"broker.port": broker.port, "broker.protocol": "3.1.1"}).settings
        )
    last = found[-1]
    assert (last.name, last.state) == ("chunk", "fail")
    assert "message_size_limit" in last.mend
    assert "right to" not in last.mend
