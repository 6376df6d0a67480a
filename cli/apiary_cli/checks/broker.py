"""What `apiary doctor` finds out about the broker: at each of its addresses, and up to a chunk's size."""

import os
import secrets
import socket
import time
from dataclasses import replace
from typing import Final

from apiary.addresses import LOOPBACK
from apiary.bus.broker import speaks_mqtt
from apiary.bus.bus import BrokerLimits, Bus, Disconnected, PublishRefused, Received
from apiary.bus.mqtt import MqttBus
from apiary.bus.route import Endpoint, Route, Single
from apiary.errors import BrokerUnreachable, BusError, SettingsError
from apiary.settings import Settings
from apiary_cli.checks.machine import Check
from apiary_cli.terminal.once import first_connection

CHUNK_BYTES: Final = 120_300
"""A chunk of 120,000 bytes, its envelope and its topic."""
SMALL_BYTES: Final = 100
_PROBE_S: Final = 2.0


def broker(settings: Settings, *, coordinator: bool = False) -> list[Check]:
    """At each address: connect, read the limits, send two messages there and back, one as large as a chunk.

    `coordinator`: with the rights of one, which has none under a node's name.
    """
    client_id = f"apiary-doctor-{secrets.token_hex(4)}"
    route = Route(settings.broker.addresses, client_id)
    found: list[Check] = []
    for address in settings.broker.addresses:
        try:
            endpoints = route.look_up(address)
        except BusError as e:
            found.append(_failed(e, str(address)))
            continue
        for endpoint in endpoints:
            where = str(address) if len(endpoints) == 1 else f"{address} ({endpoint.numeric})"
            found += _one_broker(settings, Single(endpoint), client_id, where, coordinator=coordinator)
    if len(found) > 1 and any(c.name == "broker" and c.state != "fail" for c in found):
        # The parties pass over what fails, as long as one address takes them.
        found = [replace(c, state="warn") if c.state == "fail" and c.name == "broker" else c for c in found]
    return found


def _one_broker(
    settings: Settings, route: Route, client_id: str, where: str, *, coordinator: bool
) -> list[Check]:
    try:
        bus = MqttBus(settings.broker, client_id, route=route)
    except SettingsError as e:
        return [Check("broker", "fail", str(e), "correct the setting, `apiary config` shows them all")]
    # Where access lists let this party write and read; nobody listens to `doctor`.
    place = "metric" if coordinator else f"node/{settings.edge.node_id}"
    topic = f"{settings.root}/{settings.federation}/{place}/doctor"
    try:
        limits = first_connection(bus, settings.broker.connect_timeout_s, lambda: False)
        assert limits is not None  # noqa: S101 - nothing stops it
        found = [_limits(limits, where)]
        bus.subscribe(topic)
        for name, size in (("round trip", SMALL_BYTES), ("chunk", CHUNK_BYTES)):
            found.append(_roundtrip(bus, topic, name, size))
            if found[-1].state != "ok":
                break
        return found
    except BusError as e:
        return [_failed(e, where, route.next() if isinstance(e, BrokerUnreachable) else None)]
    finally:
        bus.close()


def _failed(error: BusError, where: str, endpoint: Endpoint | None = None) -> Check:
    what, _, mend = str(error).partition("; ")
    if endpoint is not None and _loopback_only(endpoint):
        mend = (
            "a broker of this machine answers at 127.0.0.1 and not at this address: give it a `listener` for "
            "the network (broker/README.md; `apiary broker --host 0.0.0.0` to try out)"
        )
    elif endpoint is not None and _speaks_http(endpoint):
        mend = (
            "HTTP is spoken there: a web server, or a listener for websockets. broker.port must be one "
            "of plain MQTT, or of MQTT over TLS (usually 1883 or 8883)"
        )
    mend = mend or f"see that the broker runs at {where} and that broker.* of `apiary config` is right"
    return Check("broker", "fail", what, mend)


def _speaks_http(endpoint: Endpoint) -> bool:
    try:
        with socket.create_connection((endpoint.numeric, endpoint.address.port), _PROBE_S) as probe:
            probe.sendall(b"GET /mqtt HTTP/1.1\r\nHost: apiary\r\nConnection: close\r\n\r\n")
            return probe.recv(5) == b"HTTP/"
    except OSError:
        return False


def _loopback_only(endpoint: Endpoint) -> bool:
    """Whether it is an address of this machine, whose broker listens on loopback."""
    if endpoint.numeric == LOOPBACK:
        return False
    try:
        with socket.socket(endpoint.family, socket.SOCK_STREAM) as probe:
            probe.bind((endpoint.numeric, 0))  # only an address of this machine can be bound to
    except OSError:
        return False
    return speaks_mqtt(LOOPBACK, endpoint.address.port)


def _limits(limits: BrokerLimits, where: str) -> Check:
    facts = [f"MQTT {limits.protocol} at {where}"]
    if limits.max_packet_bytes:
        facts.append(f"packets up to {limits.max_packet_bytes} bytes")
    if limits.receive_maximum:
        facts.append(f"{limits.receive_maximum} in flight")
    what = ", ".join(facts)
    if 0 < limits.max_packet_bytes < CHUNK_BYTES:
        return Check("broker", "fail", what, f"raise the broker's max_packet_size to {CHUNK_BYTES} or more")
    if limits.protocol.startswith("3"):
        mend = "what this broker refuses it drops in silence: MQTT 5 would say so"
        return Check("broker", "warn", what, mend)
    return Check("broker", "ok", what)


def _roundtrip(bus: Bus, topic: str, name: str, size: int) -> Check:
    # Printable: whoever watches the topics has it on a terminal.
    payload = f"apiary doctor {os.urandom(16).hex()} ".encode().ljust(size, b".")[:size]
    deadline = time.monotonic() + 5.0
    started = 0.0
    sent = False
    if size > SMALL_BYTES:
        # A small one went this way before: it is no matter of rights.
        mend = (
            f"the broker takes packets of {SMALL_BYTES} bytes on this topic and not of {size}: raise its "
            "max_packet_size and message_size_limit (mosquitto), its max_message_size or the like elsewhere"
        )
    else:
        mend = f"give this party the right to write and read {topic}"
    while time.monotonic() < deadline:
        if not sent:
            started = time.monotonic()
            sent = bus.publish(topic, payload, qos=1)
        for event in bus.poll(0.1):
            match event:
                case Received(payload=back) if back == payload:
                    took = (time.monotonic() - started) * 1000
                    return Check(name, "ok", f"{size} bytes there and back in {took:.0f} ms")
                case PublishRefused(reason=reason):
                    return Check(name, "fail", f"the broker refused {size} bytes: {reason}", mend)
                case Disconnected(error=error):
                    what = f"{size} bytes broke the link: {error}"
                    if size <= SMALL_BYTES:
                        mend = "see the broker's log: it let this party in and then ended the link"
                    return Check(name, "fail", what, mend)
    return Check(
        name, "fail" if size > SMALL_BYTES else "warn", f"{size} bytes did not come back in 5 s", mend
    )
