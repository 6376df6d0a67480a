"""A broker in other hands: whatever it forges, repeats or strips, the signed run ends with the same bits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest
from tests.fleet.harness import Fleet, MakeFleet
from tests.fleet.signed_party import Party
from tests.stand_ins.fleet_keys import authority
from tests.stand_ins.memory_bus import MemoryBroker, MemoryBus

from apiary.bus.bus import Received
from apiary.identity.credentials import SigningGate
from apiary.identity.replay_guard import DiskMarks
from apiary.identity.roles import Role
from apiary.identity.signing import Verifier
from apiary.wire import NodeId
from apiary.wire.messages import Announcement, Grant, Offer, Receipt
from apiary.wire.topics import TopicKind, Topics

NODES = 3
T = Topics()


class Mallory:
    """Hears everything, and says what `lies` makes of it, in everyone's place."""

    def __init__(self, broker: MemoryBroker, lies: Callable[[Received], list[tuple[str, bytes]]]):
        self.bus: MemoryBus = broker.bus("mallory")
        self.bus.subscribe("#")
        self.lies = lies
        self.own: set[tuple[str, bytes]] = set()
        self.said = 0

    def turn(self, number: int) -> None:
        for event in self.bus.poll(0):
            if isinstance(event, Received) and event.payload and (event.topic, event.payload) not in self.own:
                for topic, payload in self.lies(event):
                    self.own.add((topic, payload))
                    self.said += self.bus.publish(topic, payload, retain=T.parse(topic).kind.retain)


def inner(payload: bytes) -> dict[str, object]:
    said = json.loads(payload)
    return {k: v for k, v in said.items() if k not in ("issued", "cert", "sig")}


def unsigned(event: Received) -> list[tuple[str, bytes]]:
    """Rounds that end, receipts that make a node drop its update, grants, offers: without a signature."""
    at = T.parse(event.topic)
    if at.kind is TopicKind.ROUND_CURRENT:
        told = Announcement.model_validate(inner(event.payload))
        return [
            (event.topic, told.model_copy(update=change).encode())
            for change in ({"state": "finished"}, {"round": told.round + 5}, {"run": "other"}, {"epoch": "x"})
        ]
    if at.kind is TopicKind.NODE_OFFER:
        offer = Offer.model_validate(inner(event.payload))
        digest = offer.update.digest
        lied = [Receipt(digest=digest, state="accepted", run=offer.run, round=offer.round)]
        lied.append(Receipt(digest=digest, state="closed", run=offer.run, round=offer.round, why="no"))
        said = [(T.build(TopicKind.NODE_RECEIPT, node=at.node), r.encode()) for r in lied]
        said.append(
            (T.build(TopicKind.NODE_GRANT, node=at.node), Grant(digest=digest, missing=[(0, 1)]).encode())
        )
        more = offer.model_copy(update={"samples": offer.samples + 1})
        return [*said, (event.topic, more.encode())]
    return []


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(seed=1, latency_s=0.01)


@pytest.fixture(scope="module")
def unsigned_bits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of the same run without signatures and without an attacker."""
    fleet = Fleet(tmp_path_factory.mktemp("calm"), NODES)
    bits = str(fleet.run()["model_sha256"])
    fleet.close()
    return bits


def assert_untouched(fleet: Fleet, bits: str, each: Callable[[int], None]) -> None:
    assert fleet.run(each=each)["model_sha256"] == bits
    for result in fleet.results():
        assert set(result["contributors"]) == {f"pi-{i:02d}" for i in range(NODES)}
        assert result["rejected"] == {}


def refusals(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


def test_what_is_not_signed_changes_nothing_and_is_said(
    make_fleet: MakeFleet, broker: MemoryBroker, unsigned_bits: str, caplog: pytest.LogCaptureFixture
) -> None:
    mallory = Mallory(broker, unsigned)
    assert_untouched(make_fleet(NODES, broker=broker, gates=Party(broker).gate), unsigned_bits, mallory.turn)
    assert mallory.said > 50
    said = refusals(caplog)
    for topic in ("round/current", "node/pi-00/receipt", "node/pi-01/grant", "node/pi-02/offer"):
        assert f"apiary/default/{topic}: not signed, expected the signature of" in said


def test_without_signatures_the_same_attack_does_harm(make_fleet: MakeFleet, unsigned_bits: str) -> None:
    """What the signatures are for: otherwise the test above could pass by itself."""
    broker = MemoryBroker(seed=1, latency_s=0.01)
    fleet = make_fleet(NODES, broker=broker, rounds=1)
    mallory = Mallory(broker, unsigned)
    try:
        fleet.run(each=mallory.turn, seconds=300)
    except AssertionError:
        return
    assert set(fleet.results()[0]["contributors"]) != {f"pi-{i:02d}" for i in range(NODES)}


def test_what_somebody_else_signed_changes_nothing_and_is_said(
    make_fleet: MakeFleet, broker: MemoryBroker, unsigned_bits: str, caplog: pytest.LogCaptureFixture
) -> None:
    party = Party(broker)
    fleet = make_fleet(NODES, broker=broker, gates=party.gate)
    thieves = [
        party.keys.signer("hive", Role.COORDINATOR, ca=authority("thief")),
        party.keys.signer("pi-02", Role.NODE),
        party.keys.signer("old-hive", Role.COORDINATOR),
    ]
    party.revoke(thieves[2])
    turns = 0

    def lies(event: Received) -> list[tuple[str, bytes]]:
        nonlocal turns
        turns += 1
        return [(topic, thieves[turns % 3].seal(topic, payload)) for topic, payload in unsigned(event)]

    caplog.set_level(logging.DEBUG)
    assert_untouched(fleet, unsigned_bits, Mallory(broker, lies).turn)
    said = "\n".join(r.getMessage() for r in caplog.records)
    for why in (
        "'hive', whose certificate is issued by CN=thief",
        "signed by node 'pi-02', expected a certificate of the role coordinator",
        "'old-hive', whose certificate is revoked",
    ):
        assert why in said
    assert "whose certificate is" in refusals(caplog)


def test_what_was_true_before_is_not_believed_again(
    make_fleet: MakeFleet, broker: MemoryBroker, unsigned_bits: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that was signed is said again, later and in turn, over restarts of everyone."""
    party = Party(broker)
    fleet = make_fleet(NODES, broker=broker, gates=party.gate)
    heard: list[tuple[str, bytes]] = []

    def lies(event: Received) -> list[tuple[str, bytes]]:
        if b'"sig":"' not in event.payload:
            return []
        heard.append((event.topic, event.payload))
        again = [(t, p) for t, p in heard if t == event.topic][:-1]
        return again[-1:] + again[:1]

    mallory = Mallory(broker, lies)

    def each(number: int) -> None:
        mallory.turn(number)
        if number == 60:
            fleet.kill_coordinator()
        elif number == 75:
            fleet.start_coordinator()
        elif number == 90:
            fleet.kill_node("pi-02")
        elif number == 100:
            fleet.start_node("pi-02")

    assert_untouched(fleet, unsigned_bits, each)
    assert mallory.said > 20
    assert "round/current: a repetition: coordinator 'hive' issued it at" in refusals(caplog)


def test_a_message_moved_to_another_topic_or_changed_is_refused(
    make_fleet: MakeFleet, broker: MemoryBroker, unsigned_bits: str, caplog: pytest.LogCaptureFixture
) -> None:
    def lies(event: Received) -> list[tuple[str, bytes]]:
        at = T.parse(event.topic)
        if b'"sig":"' not in event.payload or at.node is None:
            return []
        other = NodeId("pi-01" if at.node == "pi-00" else "pi-00")
        moved = T.build(at.kind, node=other)
        return [(moved, event.payload), (event.topic, event.payload.replace(b'"round":', b'"round" :'))]

    party = Party(broker)
    fleet = make_fleet(NODES, broker=broker, gates=party.gate)
    assert_untouched(fleet, unsigned_bits, Mallory(broker, lies).turn)
    said = refusals(caplog)
    assert "receipt: the signature of coordinator 'hive' does not fit the message" in said
    assert "node/pi-01/offer: signed by node 'pi-00', expected node 'pi-01'" in said


def test_a_node_that_is_revoked_in_a_round_counts_no_more(
    make_fleet: MakeFleet, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    party = Party(broker)
    fleet = make_fleet(NODES, broker=broker, gates=party.gate, quorum=0.5, rounds=2, deadline_s=60)
    party.revoke(party.signers[Role.NODE, "pi-02"])
    fleet.run()
    for result in fleet.results():
        assert set(result["contributors"]) == {"pi-00", "pi-01"}
    assert "node/pi-02/offer: signed by node 'pi-02', whose certificate is revoked" in refusals(caplog)


def test_a_signed_party_and_an_unsigned_one_do_not_mix_in_silence(
    make_fleet: MakeFleet, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    party = Party(broker)
    fleet = make_fleet(NODES, broker=broker, gates=party.gate, quorum=0.5, rounds=1, deadline_s=60)
    fleet.kill_node("pi-02")
    fleet.gates = lambda role, name, folder: SigningGate(role, fleet_verifier(party), None)
    fleet.start_node("pi-02")
    fleet.run()
    assert "pi-02" not in fleet.results()[0]["contributors"]
    assert "does its sender have security.cert and security.key set?" in refusals(caplog)


def fleet_verifier(party: Party) -> Verifier:
    return Verifier(party.keys.trust(), DiskMarks(None, lambda: party.broker.now), party.now)


def test_the_coordinators_last_will_counts_although_nobody_can_seal_it(broker: MemoryBroker) -> None:
    party = Party(broker)
    gate = SigningGate(Role.NODE, fleet_verifier(party), None)
    topic = T.build(TopicKind.COORDINATOR_STATUS)
    will = b'{"v":1,"state":"offline","epoch":"e","version":""}'
    assert gate.open(T.parse(topic), topic, will) == will
    from apiary.errors import SignatureRefused

    for forged in (
        b'{"v":1,"state":"online","epoch":"e"}',
        b"[]",
        b"{",
        b'{"state":"offline"}' + b" " * 1_000,
    ):
        with pytest.raises(SignatureRefused):
            gate.open(T.parse(topic), topic, forged)
