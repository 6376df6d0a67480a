"""Attacks on a broker with the project's configuration: each is refused, and said where it can be."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.broker.secured import PLUGIN, Secured, connect, poll

from apiary.bus.broker import find_mosquitto
from apiary.bus.bus import Connected, Disconnected, Event, PublishRefused, Received
from apiary.bus.client_id import lasting_id
from apiary.bus.inlet import Inlet
from apiary.complaints import Complaints
from apiary.identity.gate import MessageGate
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import SecuritySettings
from apiary.wire import NodeId
from apiary.wire.topics import TopicKind, Topics

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
T = Topics()
PI, OTHER = NodeId("pi-07"), NodeId("pi-08")
ANNOUNCED = T.build(TopicKind.ROUND_CURRENT)
OFFER = T.build(TopicKind.NODE_OFFER, node=PI)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("attacks"), "certificates")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def unharmed(secured: Secured) -> Iterator[None]:
    """After each attack the broker runs, and lets a node in that may come."""
    yield
    assert secured.process.poll() is None
    honest = secured.party(OTHER)
    connect(honest)
    honest.close()


def gate(secured: Secured, role: Role, name: str, folder: Path, *, files: Path | None = None) -> MessageGate:
    """The gate of a party whose files are as `apiary pki` put them."""
    own = files or secured.folder / name
    told = {
        "ca": own / "tls" / "ca.pem",
        "crl": secured.folder / "apiary" / "crl.pem",
        "cert": own / "signing" / "cert.pem",
        "key": own / "signing" / "key.pem",
    }
    return load_gate(SecuritySettings.model_validate(told), role, name, folder / f"{name}.sqlite", time.time)


def sealed(by: MessageGate, kind: TopicKind, topic: str, **said: object) -> bytes:
    return by.seal(kind, topic, json.dumps({"v": 1, **said}).encode())


def is_out(events: list[Event]) -> bool:
    return any(isinstance(e, Disconnected) for e in events)


def assert_never_in(secured: Secured, name: str, *, logged: str = "", **changes: Any) -> None:
    """Connecting fails, and the broker's log says `logged`."""
    before = len(secured.log())
    party = secured.party(name, **changes)
    events = poll(is_out, party)
    assert not any(isinstance(e, Connected) for e in events)
    if changes.get("tls_cert", party) is not None:
        assert "is this party's certificate expired, revoked" in str(events[-1])
    party.close()
    end = time.monotonic() + 5
    while logged not in secured.log()[before:]:
        assert time.monotonic() < end, secured.log()[before:]
        time.sleep(0.05)


# -- getting in -----------------------------------------------------------------------------------------


def test_a_certificate_of_another_authority(secured: Secured, tmp_path: Path) -> None:
    own = (f"pki.state_dir='{tmp_path / 'thief'}'", f"pki.broker_dir='{tmp_path / 'none'}'")
    assert secured.pki("init", "--fleet", "orchard", sets=own) == 0
    assert secured.pki("enrol", PI, "--dir", str(tmp_path / "stolen"), sets=own) == 0
    assert_never_in(secured, PI, files=tmp_path / "stolen", logged="certificate verify failed")


def test_an_expired_certificate(secured: Secured, tmp_path: Path) -> None:
    # Long enough to be installed on a busy machine, which a certificate that has ended is not.
    assert secured.pki("enrol", "pi-old", "--dir", str(tmp_path / "old"), sets=("pki.days=0.0001",)) == 0
    time.sleep(9.7)  # it lasts 8.64 s, and times in certificates are whole seconds
    assert_never_in(secured, "pi-old", files=tmp_path / "old", logged="certificate verify failed")


def test_a_signing_certificate_opens_no_connection(secured: Secured, tmp_path: Path) -> None:
    signing = secured.folder / PI / "signing"
    files = {"tls_cert": signing / "cert.pem", "tls_key": signing / "key.pem"}
    assert_never_in(secured, PI, **files, logged="certificate verify failed")


def test_nobody_is_anonymous(secured: Secured) -> None:
    assert_never_in(secured, PI, tls_cert=None, tls_key=None, logged="peer did not return a certificate")
    assert_never_in(secured, PI, tls_cert=None, tls_key=None, username="coordinator", password="guess")


def test_a_name_in_connect_does_not_replace_the_certificates(secured: Secured) -> None:
    party, witness = secured.party(PI, username="coordinator"), secured.anyone()
    witness.subscribe(ANNOUNCED)
    connect(witness, party)
    party.publish(ANNOUNCED, b"forged")
    events = poll(lambda es: any(isinstance(e, PublishRefused) for e in es), party, witness)
    assert not any(isinstance(e, Received) for e in events)
    party.close()
    witness.close()


def test_old_tls_is_refused(secured: Secured) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):  # the one in question is deprecated
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", secured.port), 5) as s, pytest.raises(OSError):
        context.wrap_socket(s)


# -- once in --------------------------------------------------------------------------------------------


def test_writing_as_another_and_forging_by_right_of_nothing(secured: Secured) -> None:
    thief, coordinator = secured.party(OTHER), secured.party("coordinator")
    coordinator.subscribe("apiary/#")
    coordinator.subscribe("apiary-blob/#")
    connect(coordinator, thief)
    coordinator.poll(0.2)
    topics = [OFFER, ANNOUNCED, T.build(TopicKind.RELEASE_CURRENT), T.build(TopicKind.NODE_RECEIPT, node=PI)]
    topics += [T.build(TopicKind.UPLOAD, node=PI), T.build(TopicKind.NODE_STATUS, node=PI)]
    for topic in topics:
        thief.publish(topic, b"forged", retain=topic == ANNOUNCED)
    events = poll(
        lambda es: sum(isinstance(e, PublishRefused) for e in es) == len(topics), thief, coordinator
    )
    assert {e.topic for e in events if isinstance(e, PublishRefused)} == set(topics)
    assert not [
        e for e in [*events, *coordinator.poll(0.2)] if isinstance(e, Received) and e.payload == b"forged"
    ]
    thief.close()
    coordinator.close()


def test_reading_anothers_update_and_grants(secured: Secured) -> None:
    thief, victim, coordinator = secured.party(OTHER), secured.party(PI), secured.party("coordinator")
    thief.subscribe("#")
    thief.subscribe(f"apiary-blob/default/up/{PI}/#")
    connect(thief, victim, coordinator)
    thief.poll(0.3)
    victim.publish(T.build(TopicKind.UPLOAD, node=PI), b"weights")
    victim.publish(OFFER, b"{}")
    coordinator.publish(T.build(TopicKind.NODE_GRANT, node=PI), b"{}")
    coordinator.publish(T.build(TopicKind.NODE_GRANT, node=OTHER), b"its own")
    events = poll(
        lambda es: any(isinstance(e, Received) and e.payload == b"its own" for e in es),
        thief,
        victim,
        coordinator,
    )
    assert {e.topic for e in events if isinstance(e, Received)} == {T.build(TopicKind.NODE_GRANT, node=OTHER)}
    for bus in (thief, victim, coordinator):
        bus.close()


def test_a_last_will_in_anothers_name(secured: Secured) -> None:
    witness = secured.anyone()
    witness.subscribe("apiary/#")
    connect(witness)
    context = ssl.create_default_context(cafile=secured.folder / "pki" / "ca.pem")
    tls = secured.folder / OTHER / "tls"
    context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
    for whose, arrives in ((PI, False), (OTHER, True)):
        will = [b"flood", T.build(TopicKind.NODE_STATUS, node=whose).encode(), f"{whose} is dead".encode()]
        words = b"".join(len(w).to_bytes(2, "big") + w for w in will)
        connect_packet = b"\x00\x04MQTT\x04\x0e\x00\x3c" + words
        with (
            socket.create_connection(("127.0.0.1", secured.port), 5) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as link,
        ):
            link.sendall(b"\x10" + bytes([len(connect_packet)]) + connect_packet)
            link.settimeout(5)
            link.recv(4)
        # Gone without goodbye: now the broker says the will.
        events = [e for _ in range(5) for e in witness.poll(0.2)]
        said = [e for e in events if isinstance(e, Received) and e.payload == will[2]]
        assert bool(said) is arrives
    witness.close()


def test_a_packet_over_the_limit_costs_only_its_sender(secured: Secured) -> None:
    party, witness = secured.party(PI), secured.anyone()
    witness.subscribe("apiary/#")
    connect(witness, party)
    limit = 1_000_000
    # Told at connect, our own parties keep to it; one that does not is thrown out.
    party.publish(OFFER, b"x" * (limit + 1))
    refused = poll(lambda es: any(isinstance(e, PublishRefused) for e in es), party)
    assert f"at most {limit}" in str(refused)
    with socket.create_connection(("127.0.0.1", secured.open_port), 5) as s:
        s.sendall(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06bigone")
        assert s.recv(4)[:1] == b"\x20"
        # A PUBLISH whose length says 200 MB: nobody waits for it, nothing is reserved for it.
        s.sendall(b"\x30\x80\x88\xaf\x5f" + b"\x00\x01a" + b"x" * 100_000)
        s.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert s.recv(4) == b""
    assert not [e for e in witness.poll(0.2) if isinstance(e, Received) and len(e.payload) > limit]
    party.close()
    witness.close()


def test_a_thousand_connects_keep_nobody_out(secured: Secured) -> None:
    sockets = []
    try:
        for i in range(1_000):
            s = socket.create_connection(("127.0.0.1", secured.port), 5)
            s.setblocking(False)
            with contextlib.suppress(OSError):
                s.send(b"\x16\x03\x01" if i % 2 else b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06attack")
            # Some hang up, some stay and say nothing more.
            if i % 3 == 0:
                s.close()
            else:
                sockets.append(s)
        honest = secured.party(PI)
        connect(honest)
        honest.publish(T.build(TopicKind.NODE_ASK, node=PI), b"{}")
        honest.poll(0.1)
        assert honest.connected
        honest.close()
    finally:
        for s in sockets:
            s.close()
    assert "as attack" not in secured.log()


def test_client_ids_do_not_follow_from_names(secured: Secured, tmp_path: Path) -> None:
    """With the id of another, its connection could be ended: so nobody can know it, and it stays the same."""
    mine = lasting_id(f"default-node-{PI}", tmp_path)
    assert mine != lasting_id(f"default-node-{PI}", tmp_path / "elsewhere")
    assert mine == lasting_id(f"default-node-{PI}", tmp_path)
    assert (tmp_path / "client-id").stat().st_mode & 0o777 == 0o600
    victim = secured.party(PI, client_id=mine)
    connect(victim)
    thief = secured.party(OTHER, client_id=f"default-node-{PI}")
    connect(thief)
    assert not [e for e in victim.poll(0.3) if isinstance(e, Disconnected)]
    # What it would be like otherwise, so that this test could fail.
    knowing = secured.party(OTHER, client_id=mine)
    connect(knowing)
    poll(is_out, victim)
    for bus in (victim, thief, knowing):
        bus.close()


# -- a broker in other hands ----------------------------------------------------------------------------


def test_forged_and_repeated_messages_through_the_broker_itself(
    secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever holds the broker writes what he likes, and the node takes only what its coordinator said."""
    hive = gate(secured, Role.COORDINATOR, "coordinator", tmp_path)
    inlet = Inlet(gate(secured, Role.NODE, PI, tmp_path), Complaints(logging.getLogger("node")))
    node, captured = secured.party(PI), secured.anyone()
    node.subscribe(ANNOUNCED)
    connect(node, captured)
    node.poll(0.2)
    yesterday = sealed(hive, TopicKind.ROUND_CURRENT, ANNOUNCED, round=1)
    today = sealed(hive, TopicKind.ROUND_CURRENT, ANNOUNCED, round=2)
    insider = gate(secured, Role.NODE, OTHER, tmp_path)
    forged = insider.signer.seal(ANNOUNCED, b'{"v":1,"round":9}')  # type: ignore[attr-defined]  # a FileGate
    lies = [b'{"v":1,"round":9}', forged, yesterday, today.replace(b'"round": 2', b'"round": 3')]
    for said in (today, *lies, today):
        captured.publish(ANNOUNCED, said, retain=True)
        captured.poll(0.01)
    events = poll(lambda es: sum(isinstance(e, Received) for e in es) == 6, node, captured)
    taken = [inlet.verify(T.parse(e.topic), e) for e in events if isinstance(e, Received)]
    assert [json.loads(t)["round"] for t in taken if t is not None] == [2, 2]
    # Each kind of lie is said, though all are on one topic.
    for said in (
        "not signed, expected",
        "signed by node 'pi-08', expected",
        "a repetition: ",
        "was changed on",
    ):
        assert said in caplog.text, said
    node.close()
    captured.close()


def offers(events: list[Event], topic: str) -> list[Received]:
    return [e for e in events if isinstance(e, Received) and e.topic == topic]


def test_revoked_is_out_at_once_and_stays_out(secured: Secured, tmp_path: Path) -> None:
    gone = NodeId("pi-gone")
    assert secured.pki("enrol", gone, "--dir", str(secured.folder / gone)) == 0
    coordinator, node, watcher = secured.party("coordinator"), secured.party(gone), secured.anyone()
    coordinator.subscribe("apiary/#")
    node.subscribe(ANNOUNCED)
    connect(coordinator, node, watcher)
    coordinator.poll(0.2)
    log, complained = logging.Logger("coordinator"), io.StringIO()
    log.addHandler(logging.StreamHandler(complained))
    inlet = Inlet(gate(secured, Role.COORDINATOR, "coordinator", tmp_path), Complaints(log))
    signed = gate(secured, Role.NODE, gone, tmp_path)
    offer = T.build(TopicKind.NODE_OFFER, node=gone)
    node.publish(offer, sealed(signed, TopicKind.NODE_OFFER, offer, round=1))
    heard = poll(lambda es: bool(offers(es, offer)), coordinator, node)
    assert inlet.verify(T.parse(offer), offers(heard, offer)[0]) is not None
    for kind in (TopicKind.NODE_HEALTH, TopicKind.NODE_RELEASE, TopicKind.UPLOAD, TopicKind.NODE_OFFER):
        node.publish(T.build(kind, node=gone), b"stays", retain=True)
    poll(lambda es: node.backlog == 0, node)

    told = (
        f"pki.reload=['kill', '-HUP', '{secured.process.pid}']",
        f"pki.kick={'true' if PLUGIN else 'false'}",
    )
    assert secured.pki("revoke", gone, sets=told) == 0
    poll(is_out, node) if PLUGIN else None
    node.publish(offer, b"{}")
    node.poll(0.3)
    # It tries again by itself, and stays out.
    events = [e for _ in range(10) for e in node.poll(0.2)]
    assert not any(isinstance(e, Connected) for e in events)
    if PLUGIN:
        assert f"u'{gone}'" in secured.log() and "disconnected by administrative action" in secured.log()
        status = T.build(TopicKind.NODE_STATUS, node=gone)
        heard = poll(lambda es: any(isinstance(e, Received) and e.topic == status for e in es), coordinator)
        said = [e for e in heard if isinstance(e, Received)]
        last = [
            json.loads(e.payload)
            for e in said
            if e.topic == T.build(TopicKind.NODE_STATUS, node=gone) and e.payload
        ]
        assert last and (last[-1]["state"], last[-1]["why"]) == ("lost", "revoked")
        late_reader = secured.anyone()
        late_reader.subscribe(f"apiary/default/node/{gone}/#")
        late_reader.subscribe(f"apiary-blob/default/up/{gone}/#")
        connect(late_reader)
        left = [e.topic for e in late_reader.poll(0.5) if isinstance(e, Received)]
        assert left == [T.build(TopicKind.NODE_STATUS, node=gone)], "the rest was cleared"
        late_reader.close()
    # Had the broker let it through all the same, the coordinator would not take it.
    time.sleep(1.1)  # the list is looked at once a second
    late = sealed(signed, TopicKind.NODE_OFFER, offer, round=1)
    assert inlet.open(T.parse(offer), Received(offer, late)) is None
    assert "node 'pi-gone', whose certificate is revoked" in complained.getvalue()
    for bus in (coordinator, node, watcher):
        bus.close()


def test_without_the_plugin_revoked_is_mute_and_deaf_at_once(secured: Secured) -> None:
    gone = NodeId("pi-mute")
    assert secured.pki("enrol", gone, "--dir", str(secured.folder / gone)) == 0
    node, watcher = secured.party(gone), secured.anyone()
    watcher.subscribe("apiary/#")
    node.subscribe(ANNOUNCED)
    connect(node, watcher)
    node.poll(0.2)
    watcher.poll(0.2)
    assert secured.pki("revoke", gone, sets=(f"pki.reload=['kill', '-HUP', '{secured.process.pid}']",)) == 0
    offer = T.build(TopicKind.NODE_OFFER, node=gone)
    end, said = time.monotonic() + 5, list[Event]()
    while not any(isinstance(e, PublishRefused) for e in said):
        assert time.monotonic() < end
        watcher.poll(0.01)
        node.publish(offer, b"{}")
        said += node.poll(0.1)
    watcher.publish(ANNOUNCED, b"for those who belong")
    said = [e for _ in range(5) for e in (*watcher.poll(0.05), *node.poll(0.05))]
    assert not [e for e in said if isinstance(e, Received) and e.topic == offer]
    assert [e for e in said if isinstance(e, Received) and e.payload == b"for those who belong"] == [
        Received(ANNOUNCED, b"for those who belong")
    ]  # the watcher's own
    assert node.connected
    node.close()
    watcher.close()


def test_a_renewed_certificate_is_used_for_the_next_connection(secured: Secured) -> None:
    """A node runs for years; what it read when it started ends before that."""
    name = "pi-long"
    assert secured.pki("enrol", name, "--dir", str(secured.folder / name), sets=("pki.days=0.00005",)) == 0
    party = secured.party(name)
    connect(party)
    assert secured.pki("renew", name, "--dir", str(secured.folder / name), "--force") == 0
    time.sleep(5.5)  # the old one lasted 4.3 s
    thief = secured.party(OTHER, client_id=party._options.client_id)  # ends the connection
    connect(thief)
    poll(is_out, party)
    thief.close()
    poll(lambda es: any(isinstance(e, Connected) for e in es), party)
    party.close()
