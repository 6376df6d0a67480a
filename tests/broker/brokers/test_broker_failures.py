"""A broker that is absent, refuses, dies, comes back, or speaks another version."""

from __future__ import annotations

import logging
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apiary.bus.broker import find_mosquitto, start_broker
from apiary.bus.bus import BrokerLimits, Connected, Disconnected, Event, PublishRefused, Received, Will
from apiary.bus.mqtt import FIRST_RETRY_S, MqttBus
from apiary.errors import BrokerRefused, BrokerUnreachable, SettingsError
from apiary.settings import BrokerSettings

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
PollUntil = Callable[..., list[Event]]
OPEN = "listener {port} 127.0.0.1\nallow_anonymous true\n"


def has(kind: type[Event]) -> Callable[[list[Event]], bool]:
    return lambda events: any(isinstance(e, kind) for e in events)


def test_absent_broker_is_reported_with_growing_pauses_and_no_tight_loop(free_port: int) -> None:
    bus = MqttBus(BrokerSettings(port=free_port, retry_max_s=0.9), "a", jitter=random.Random(1))
    lost: list[Disconnected] = []
    cpu, polls = time.process_time(), 0
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        lost += [e for e in bus.poll(1.0) if isinstance(e, Disconnected)]
        polls += 1
        assert not bus.connected
    error = lost[0].error
    assert isinstance(error, BrokerUnreachable)
    assert f"broker 127.0.0.1:{free_port}: Connection refused" in str(error)
    assert "is the broker running? Start one with `apiary broker`" in str(error)
    assert 3 <= len(lost) <= 8
    assert FIRST_RETRY_S / 2 <= lost[0].retry_s <= FIRST_RETRY_S
    assert max(e.retry_s for e in lost) > FIRST_RETRY_S
    assert max(e.retry_s for e in lost) <= 0.9
    assert polls < 30
    assert time.process_time() - cpu < 0.5
    bus.close()


def test_unknown_host_is_reported_by_name() -> None:
    bus = MqttBus(BrokerSettings(host="no-such-host.invalid"), "a")
    event = bus.poll(5.0)[0]
    assert isinstance(event, Disconnected)
    assert "no-such-host.invalid:1883: the name is not known" in str(event.error)
    bus.close()


def test_port_that_never_answers_takes_no_longer_than_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bus = MqttBus(BrokerSettings(port=silent.getsockname()[1], connect_timeout_s=1.0), "a")
        began = time.monotonic()
        events: list[Event] = []
        while not events:
            events = bus.poll(0.2)
        assert time.monotonic() - began >= 0.9
        assert isinstance(events[0], Disconnected)
        assert "nothing answered MQTT's CONNECT" in str(events[0].error)
        bus.close()


def test_something_that_is_no_broker_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def answer() -> None:
            peer, _ = server.accept()
            peer.recv(1000)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        bus = MqttBus(BrokerSettings(port=server.getsockname()[1]), "a")
        events = bus.poll(3.0) or bus.poll(3.0)
        thread.join(5)
        assert isinstance(events[0], Disconnected)
        assert isinstance(events[0].error, BrokerUnreachable)
        bus.close()


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_wrong_password_says_which_settings_to_check(
    run_mosquitto: Callable[..., int], poll_until: PollUntil, tmp_path: Path, protocol: str
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "pi", "right"], check=True)
    conf = f"listener {{port}} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
    port = run_mosquitto(conf)
    settings = {"port": port, "protocol": protocol, "username": "pi"}

    bus = MqttBus(BrokerSettings.model_validate({**settings, "password": "wrong"}), "a")
    lost = poll_until(has(Disconnected), bus)[-1]
    assert isinstance(lost, Disconnected)
    assert isinstance(lost.error, BrokerRefused)
    assert "Not authorized; check broker.username" in str(lost.error)
    assert "wrong" not in str(lost.error)
    bus.close()

    secret = tmp_path / "secret"
    secret.write_text("right\n")
    bus = MqttBus(BrokerSettings.model_validate({**settings, "password_file": secret}), "a")
    assert isinstance(poll_until(has(Connected), bus)[-1], Connected)
    bus.close()


def test_missing_password_file_is_a_settings_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"broker\.password_file .*gone: No such file"):
        MqttBus(BrokerSettings(password_file=tmp_path / "gone"), "a")


def test_oversize_message_is_refused_and_the_link_stays(
    run_mosquitto: Callable[..., int], poll_until: PollUntil
) -> None:
    port = run_mosquitto(f"max_packet_size 50000\n{OPEN}")
    bus = MqttBus(BrokerSettings(port=port), "a")
    bus.subscribe("x")
    poll_until(has(Connected), bus)
    assert bus.publish("x", b"y" * 60_000)
    refused = poll_until(has(PublishRefused), bus)[-1]
    assert isinstance(refused, PublishRefused)
    assert refused.topic == "x"
    assert refused.reason == "message of 60000 bytes, the broker takes packets of at most 50000"
    assert bus.backlog == 0
    assert bus.publish("x", b"small")
    poll_until(has(Received), bus)
    assert bus.connected
    bus.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_two_parties_with_one_id_are_told_and_do_not_race(
    run_mosquitto: Callable[..., int], poll_until: PollUntil, protocol: str
) -> None:
    settings = BrokerSettings.model_validate({"port": run_mosquitto(OPEN), "protocol": protocol})
    one, two = MqttBus(settings, "same"), MqttBus(settings, "same")

    def hinted(events: list[Event]) -> bool:
        return any(
            isinstance(e, Disconnected) and "does another party use the id 'same'?" in str(e.error)
            for e in events
        )

    began = time.monotonic()
    events = poll_until(hinted, one, two)
    # One takes the other's place about every pause; the pauses double from half a second.
    assert time.monotonic() - began > 0.5
    assert sum(isinstance(e, Connected) for e in events) <= 10
    one.close()
    two.close()


def test_killed_broker_comes_back_and_everything_is_restored(poll_until: PollUntil, tmp_path: Path) -> None:
    first = start_broker(0, prefer="mosquitto", state_dir=tmp_path)
    bus = MqttBus(BrokerSettings(port=first.port, retry_max_s=0.5), "a", Will("w", b"gone"))
    for i in range(120):  # more than one SUBSCRIBE packet holds
        bus.subscribe(f"x/{i}")
    poll_until(has(Connected), bus)
    bus.unsubscribe("x/7")
    for _ in range(5):
        bus.publish("x/1", b"lost with the broker")
    first.kill()
    lost = poll_until(has(Disconnected), bus)[-1]
    assert isinstance(lost, Disconnected)
    assert isinstance(lost.error, BrokerUnreachable)
    assert not bus.connected
    assert bus.backlog == 0
    assert not bus.publish("x/1", b"nobody there")
    with start_broker(first.port, prefer="mosquitto", state_dir=tmp_path):
        poll_until(has(Connected), bus)
        other = MqttBus(BrokerSettings(port=first.port), "b")
        poll_until(has(Connected), other)
        bus.poll(0.2)
        for i in range(120):
            assert other.publish(f"x/{i}", b"new")
        got = poll_until(lambda events: sum(isinstance(e, Received) for e in events) >= 119, bus, other)
        topics = [e.topic for e in got if isinstance(e, Received)]
        assert topics == [f"x/{i}" for i in range(120) if i != 7]
        bus.close()
        other.close()


def test_orderly_shutdown_of_the_broker_is_no_refusal(poll_until: PollUntil) -> None:
    with start_broker(0, prefer="mosquitto") as broker:
        bus = MqttBus(BrokerSettings(port=broker.port), "a")
        poll_until(has(Connected), bus)
    lost = poll_until(has(Disconnected), bus)[-1]
    assert isinstance(lost, Disconnected)
    assert isinstance(lost.error, BrokerUnreachable)
    bus.close()


def test_mqtt_5_is_spoken_and_limits_are_known(poll_until: PollUntil) -> None:
    with start_broker(0, prefer="mosquitto") as broker:
        bus = MqttBus(BrokerSettings(port=broker.port), "a")
        connected = poll_until(has(Connected), bus)[-1]
        assert connected == Connected(BrokerLimits("5.0", max_packet_bytes=1_000_000, receive_maximum=100))
        bus.close()


def test_window_shrinks_to_what_the_broker_allows(
    run_mosquitto: Callable[..., int], poll_until: PollUntil
) -> None:
    port = run_mosquitto(f"max_inflight_messages 3\n{OPEN}")
    bus = MqttBus(BrokerSettings(port=port, inflight=50), "a")
    bus.subscribe("x")
    events = poll_until(has(Connected), bus)
    assert events == [Connected(BrokerLimits("5.0", 0, 3))], "one event, though it connected twice"
    for i in range(200):
        assert bus.publish("x", str(i).encode())
    got = poll_until(lambda events: len(events) >= 200, bus)
    assert [e.payload for e in got if isinstance(e, Received)] == [str(i).encode() for i in range(200)]
    bus.close()


def test_3_1_1_by_choice_has_no_warning(poll_until: PollUntil, caplog: pytest.LogCaptureFixture) -> None:
    with start_broker(0, prefer="mosquitto") as broker:
        bus = MqttBus(BrokerSettings(port=broker.port, protocol="3.1.1"), "a")
        assert poll_until(has(Connected), bus) == [Connected(BrokerLimits("3.1.1"))]
        assert not caplog.records
        bus.close()


def test_auto_falls_back_on_amqtt_with_one_warning(
    poll_until: PollUntil, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("amqtt")
    with start_broker(0, prefer="amqtt", say=lambda _: None) as broker:
        bus = MqttBus(BrokerSettings(port=broker.port, retry_max_s=0.3), "a", Will("w", b"gone"))
        assert poll_until(has(Connected), bus) == [Connected(BrokerLimits("3.1.1"))]
    poll_until(has(Disconnected), bus)
    with start_broker(broker.port, prefer="amqtt", say=lambda _: None):
        poll_until(has(Connected), bus)
        bus.close()
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "speaks MQTT 3.1.1 only" in warnings[0]


def test_ten_parties_that_connect_at_once_share_a_blob_over_amqtt() -> None:
    pytest.importorskip("amqtt")
    with start_broker(0, prefer="amqtt", say=lambda _: None) as broker:
        settings = BrokerSettings(port=broker.port)
        parties = [MqttBus(settings, f"p{i}", Will(f"status/{i}", b"lost")) for i in range(10)]
        got: list[list[Received]] = [[] for _ in parties]
        for party in parties:
            party.subscribe("status/+")
            party.subscribe("down/+")
        end = time.monotonic() + 30
        chunk, sent = bytes(120_000), 0
        while any(len(g) < 10 + 25 for g in got):
            assert time.monotonic() < end, [len(g) for g in got]
            for i, party in enumerate(parties):
                for event in party.poll(0.005):
                    if isinstance(event, Connected):
                        assert party.publish(f"status/{i}", b"ready", retain=True)
                    elif isinstance(event, Received):
                        got[i].append(event)
            seen_all = all(len({e.topic for e in g}) >= 10 for g in got)
            if seen_all and sent < 25 and parties[0].backlog < 10:
                parties[0].publish(f"down/{sent}", chunk)
                sent += 1
        for g in got:
            topics = [e.topic for e in g if e.topic.startswith("down/")]
            assert topics == [f"down/{i}" for i in range(25)]
            assert {e.topic for e in g if e.payload == b"ready"} == {f"status/{i}" for i in range(10)}
        for party in parties:
            party.close()


def test_connection_cut_during_connect_does_not_lower_the_protocol(
    poll_until: PollUntil, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MqttBus(BrokerSettings(port=free_port, retry_max_s=0.3), "a")
    with socket.create_server(("127.0.0.1", free_port)) as cutting:
        cutting.settimeout(10)

        def cut() -> None:
            for _ in range(3):  # twice version 5, then 3.1.1
                peer, _ = cutting.accept()
                peer.recv(1000)
                peer.close()

        thread = threading.Thread(target=cut)
        thread.start()
        lost = poll_until(has(Disconnected), bus)[-1]
        thread.join(5)
    assert isinstance(lost, Disconnected)
    assert "closed the connection instead of answering" in str(lost.error)
    with start_broker(free_port, prefer="mosquitto"):
        connected = poll_until(has(Connected), bus)[-1]
        assert isinstance(connected, Connected)
        assert connected.limits.protocol == "5.0"
        bus.close()
    assert "3.1.1" not in caplog.text


def test_version_5_alone_is_refused_by_amqtt_with_the_remedy(poll_until: PollUntil) -> None:
    pytest.importorskip("amqtt")
    with start_broker(0, prefer="amqtt", say=lambda _: None) as broker:
        bus = MqttBus(BrokerSettings(port=broker.port, protocol="5"), "a")
        lost = poll_until(has(Disconnected), bus)[-1]
        assert isinstance(lost, Disconnected)
        assert isinstance(lost.error, BrokerRefused)
        assert 'does not speak MQTT 5; set broker.protocol = "auto"' in str(lost.error)
        bus.close()


def test_idle_link_stays_up_beyond_its_keepalive(poll_until: PollUntil) -> None:
    with start_broker(0, prefer="mosquitto") as broker:
        bus = MqttBus(BrokerSettings(port=broker.port, keepalive_s=5), "a")
        poll_until(has(Connected), bus)
        end = time.monotonic() + 9.0
        while time.monotonic() < end:
            assert bus.poll(1.0) == []
        assert bus.connected
        bus.close()


def test_wake_ends_a_wait() -> None:
    bus = MqttBus(BrokerSettings(port=1, retry_max_s=60), "a")
    bus.poll(1.0)
    bus._retry_at = time.monotonic() + 3600
    threading.Timer(0.1, bus.wake).start()
    began = time.monotonic()
    bus.poll(60.0)
    assert time.monotonic() - began < 60.0, "it waited to the end"
    bus.close()


def test_reader_that_does_not_poll_loses_nothing_and_takes_it_in_portions(poll_until: PollUntil) -> None:
    """The queue of broker/mosquitto.conf holds what ten grants of 14 MB put into it."""
    with start_broker(0, prefer="mosquitto") as broker:
        sender, reader = (
            MqttBus(BrokerSettings(port=broker.port), "s"),
            MqttBus(BrokerSettings(port=broker.port), "r"),
        )
        reader.subscribe("x")
        poll_until(has(Connected), reader)
        reader.poll(0.1)
        poll_until(has(Connected), sender)
        body = bytes(20_000)
        for i in range(1_500):
            assert sender.publish("x", i.to_bytes(4, "big") + body)
        end = time.monotonic() + 20
        while sender.backlog:
            assert time.monotonic() < end
            sender.poll(0.1)
        got: list[int] = []
        while len(got) < 1_500:
            assert time.monotonic() < end
            events = reader.poll(0.2)
            assert len(events) <= 1_100
            got += [int.from_bytes(e.payload[:4], "big") for e in events if isinstance(e, Received)]
        assert got == list(range(1_500))
        sender.close()
        reader.close()
