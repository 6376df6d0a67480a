"""Every cell of the table of rights, tried both ways against a real mosquitto with the project's lists."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from tests.broker.secured import BROKER, ROLES, Secured, connect, poll

from apiary.bus.broker import find_mosquitto
from apiary.bus.bus import Disconnected, PublishRefused, Received
from apiary.bus.mqtt import MqttBus
from apiary.identity.rights import Access, access_list, right
from apiary.identity.roles import Role
from apiary.wire import Digest, NodeId
from apiary.wire.topics import TopicKind, Topics

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
T = Topics()
DIGEST = Digest("ab" * 32)
TRIED: Final = {"coordinator": "pi-08", "pi-07": "pi-08", "alice": "bob", "walter": "pi-07"}
"""Who tries, and whose topics beside its own it tries."""


@pytest.fixture(scope="module", params=["certificates", "password"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("rights"), request.param, old=True)
    yield made
    made.close()


def topics_of(kind: TopicKind, name: str) -> tuple[str, ...]:
    """The topic of `kind` under `name`'s own name, and under another's; one only where names play no part."""
    names = (name, TRIED[name]) if "{n}" in kind.pattern else (name,)
    return tuple(T.build(kind, node=NodeId(n), digest=DIGEST, index=0, metric="loss") for n in names)


def allowed(name: str, verb: str) -> tuple[set[str], set[str]]:
    """The topics that the table lets `name` read or write, and those that it does not."""
    may: set[str] = set()
    all_of: set[str] = set()
    for kind in TopicKind:
        access = getattr(right(Role(ROLES[name]), kind), verb)
        own, *others = topics_of(kind, name)
        all_of.update((own, *others))
        if access is Access.ALL or (access is Access.OWN and "{n}" not in kind.pattern):
            may.update((own, *others))
        elif access is Access.OWN:
            may.add(own)
    # Nobody but a node passes for one: not even who may write for all nodes, under a name of its own.
    if Role(ROLES[name]) is not Role.NODE:
        may -= {t for t in all_of if f"/node/{name}/" in t or f"/up/{name}" in t}
    return may, all_of - may


@pytest.mark.parametrize("name", TRIED)
def test_what_is_allowed_is_written_and_nothing_else(secured: Secured, name: str) -> None:
    party, witness = secured.party(name), secured.anyone()
    witness.subscribe("apiary/#")
    witness.subscribe("apiary-blob/#")
    connect(witness, party)
    witness.poll(0.2)
    may, may_not = allowed(name, "write")
    mark = f"by {name}".encode()
    sent = []
    for topic in sorted(may | may_not):
        assert party.publish(topic, mark)
        sent += party.poll(0.005)

    def through(events: Sequence[object]) -> set[str]:
        return {e.topic for e in events if isinstance(e, Received) and e.payload == mark}

    events = poll(
        lambda es: through(es) >= may and sum(isinstance(e, PublishRefused) for e in es) >= len(may_not),
        party,
        witness,
        before=sent,
    )
    assert through(events) == may
    assert {e.topic for e in events if isinstance(e, PublishRefused)} == may_not
    assert {e.reason for e in events if isinstance(e, PublishRefused)} == {"Not authorized"}
    close(party, witness)


@pytest.mark.parametrize("name", TRIED)
def test_what_is_allowed_is_read_and_nothing_else(secured: Secured, name: str) -> None:
    party, sender = secured.party(name), secured.anyone()
    party.subscribe("#")
    connect(party, sender)
    party.poll(0.3)
    may, may_not = allowed(name, "read")
    mark = f"to {name}".encode()
    for topic in sorted(may | may_not):
        assert sender.publish(topic, mark)
        sender.poll(0.005)
    # The last word comes after all that was sent before it.
    last = topics_of(TopicKind.ROUND_CURRENT, name)[0]
    sender.publish(last, b"last")
    if last in may:
        events = poll(
            lambda es: any(isinstance(e, Received) and e.payload == b"last" for e in es), party, sender
        )
    else:
        events = [*party.poll(0.5), *party.poll(0.5)]
    got = {e.topic for e in events if isinstance(e, Received) and e.payload == mark}
    assert got == may
    close(party, sender)


@pytest.mark.parametrize("name", TRIED)
def test_a_narrow_subscription_gives_no_more_than_a_wide_one(secured: Secured, name: str) -> None:
    """mosquitto grants each subscription; what matters is what is delivered."""
    party, sender = secured.party(name), secured.anyone()
    may, may_not = allowed(name, "read")
    for topic in may | may_not:
        party.subscribe(topic)
    connect(party, sender)
    party.poll(0.3)
    for topic in sorted(may_not):
        assert sender.publish(topic, b"narrow")
        sender.poll(0.005)
    events = [*sender.poll(0.2), *party.poll(0.4), *party.poll(0.4)]
    assert [e for e in events if isinstance(e, Received) and e.payload == b"narrow"] == []
    close(party, sender)


def test_other_subtrees_and_the_brokers_own_are_closed(secured: Secured) -> None:
    party, witness = secured.party("pi-07"), secured.anyone()
    witness.subscribe("#")
    connect(party, witness)
    topics = [
        "secrets",
        "$SYS/broker/x",
        "$CONTROL/dynamic-security/v1",
        "apiary",
        "apiary/default/node/pi-07/x/y",
    ]
    topics += [
        "apiary/default/node/pi-07",
        "apiary-blob/default/up/pi-07/x",
        "apiary/other/node/pi-07/status",
        "other/default/node/pi-07/status",
    ]
    for topic in topics:
        party.publish(topic, b"x")
    end = time.monotonic() + 10
    refused: set[str] = set()
    while refused != set(topics) and time.monotonic() < end:
        refused |= {e.topic for e in party.poll(0.1) if isinstance(e, PublishRefused)}
    assert refused == set(topics)
    assert not [e for e in witness.poll(0.3) if isinstance(e, Received) and e.payload == b"x"]
    close(party, witness)


def test_doctor_may_send_a_message_to_itself(secured: Secured) -> None:
    party = secured.party("pi-07")
    topic = "apiary/default/node/pi-07/doctor"
    party.subscribe(topic)
    connect(party)
    party.publish(topic, b"x" * 1_000)
    poll(lambda es: any(isinstance(e, Received) for e in es), party)
    close(party)


# Certificates are revoked: test_attacks.py.
@pytest.mark.parametrize("secured", ["password"], indirect=True)
def test_a_password_taken_away_ends_the_connection(secured: Secured) -> None:
    party = secured.party("bob")
    connect(party)
    passwords = str(secured.folder / "apiary" / "passwords")
    subprocess.run(["mosquitto_passwd", "-D", passwords, "bob"], check=True, capture_output=True)
    secured.process.send_signal(signal.SIGHUP)
    poll(lambda es: any(isinstance(e, Disconnected) for e in es), party)
    party.poll(1.0)
    assert not party.connected
    close(party)


def test_the_list_in_the_project_is_made_from_the_table() -> None:
    """Mend it by `apiary_cli`'s own words: access_list(operators=["operator"], viewers=["viewer"])."""
    assert (BROKER / "acl.conf").read_text() == access_list(operators=["operator"], viewers=["viewer"])


def test_the_table_in_the_documentation_is_the_one_that_holds() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "security.md").read_text()
    rows = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1:]
    assert set(rows) == {kind.pattern for kind in TopicKind}
    for kind in TopicKind:
        said = [words(role, kind) for role in (Role.COORDINATOR, Role.NODE, Role.OPERATOR, Role.VIEWER)]
        assert rows[kind.pattern] == [*said, str(kind.signer or "-")], kind


def words(role: Role, kind: TopicKind) -> str:
    r = right(role, kind)
    parts = [
        f"{verb}{' own' if access is Access.OWN else ''}"
        for verb, access in (("write", r.write), ("read", r.read))
        if access is not Access.NONE
    ]
    return ", ".join(parts) or "-"


def close(*buses: MqttBus) -> None:
    for bus in buses:
        bus.close()
