"""The in-memory broker: scripted faults strike as written, and the same seed gives the same run."""

from __future__ import annotations

import math

import pytest
from tests.stand_ins.memory_bus import QUEUE_LIMIT, RETRY_S, LinkFault, MemoryBroker, MemoryBus

from apiary.bus.bus import BrokerLimits, Connected, Disconnected, PublishRefused, Received, Will, matches
from apiary.errors import BrokerRefused, BrokerUnreachable


def pair(broker: MemoryBroker) -> tuple[MemoryBus, MemoryBus]:
    """A sender and a receiver of everything, both connected."""
    sender, receiver = broker.bus("sender"), broker.bus("receiver")
    receiver.subscribe("#")
    assert sender.poll(0) == receiver.poll(0) == [Connected(broker.limits)]
    return sender, receiver


def payloads(bus: MemoryBus) -> list[bytes]:
    return [e.payload for e in bus.poll(0) if isinstance(e, Received)]


def send(bus: MemoryBus, count: int, topic: str = "t") -> None:
    for i in range(count):
        assert bus.publish(topic, b"%d" % i)


def test_drop_takes_just_what_it_names_and_the_sender_learns_nothing() -> None:
    broker = MemoryBroker(faults=[LinkFault("drop", "t", skip=2, times=1)])
    sender, receiver = pair(broker)
    send(sender, 5)
    sender.poll(0)
    assert sender.backlog == 0
    assert payloads(receiver) == [b"0", b"1", b"3", b"4"]
    assert broker.struck == {"drop": 1}


def test_fault_can_be_for_one_client() -> None:
    broker = MemoryBroker(faults=[LinkFault("drop", to="receiver")])
    sender, receiver = pair(broker)
    other = broker.bus("other")
    other.subscribe("t")
    other.poll(0)
    send(sender, 1)
    assert payloads(receiver) == []
    assert payloads(other) == [b"0"]


def test_duplicate_arrives_twice() -> None:
    sender, receiver = pair(MemoryBroker(faults=[LinkFault("duplicate", times=1)]))
    send(sender, 2)
    assert payloads(receiver) == [b"0", b"0", b"1"]


def test_reorder_lets_messages_overtake() -> None:
    sender, receiver = pair(MemoryBroker(seed=1, faults=[LinkFault("reorder", probability=0.3)]))
    send(sender, 50)
    got = payloads(receiver)
    assert sorted(got, key=int) == [b"%d" % i for i in range(50)]
    assert got != sorted(got, key=int)


def test_delay_holds_back_until_the_clock_says_so() -> None:
    broker = MemoryBroker(seed=1, faults=[LinkFault("delay", seconds=10.0)])
    sender, receiver = pair(broker)
    send(sender, 20)
    assert payloads(receiver) == []
    broker.now = 5.0
    first = payloads(receiver)
    broker.now = 10.0
    rest = payloads(receiver)
    assert first
    assert rest
    assert len(first) + len(rest) == 20


def test_latency_is_the_way_of_messages_and_acknowledgements() -> None:
    broker = MemoryBroker(latency_s=0.5)
    sender, receiver = pair(broker)
    send(sender, 1)
    assert payloads(receiver) == []
    sender.poll(0)
    assert sender.backlog == 1
    broker.now = 0.5
    assert payloads(receiver) == [b"0"]
    sender.poll(0)
    assert sender.backlog == 0


def test_corrupt_changes_one_byte() -> None:
    sender, receiver = pair(MemoryBroker(seed=2, faults=[LinkFault("corrupt")]))
    sender.publish("t", bytes(100))
    (got,) = payloads(receiver)
    assert len(got) == 100
    assert sum(b != 0 for b in got) == 1


def test_cut_by_a_message_breaks_the_receivers_link() -> None:
    broker = MemoryBroker(faults=[LinkFault("cut", skip=1, times=1, seconds=7.0)])
    sender, receiver = pair(broker)
    send(sender, 3)
    lost = receiver.poll(0)
    assert [type(e) for e in lost] == [Disconnected]
    assert not receiver.connected
    broker.now = 6.9
    assert receiver.poll(0) == []
    broker.now = 7.0
    assert receiver.poll(0) == [Connected(broker.limits)]
    send(sender, 1)
    assert payloads(receiver) == [b"0"], "the subscription is restored, what waited is lost"


def test_cut_publishes_the_will_and_closing_does_not() -> None:
    broker = MemoryBroker()
    _, watcher = pair(broker)
    for name, expected in (("cut", [b"lost"]), ("closed", [])):
        party = broker.bus(name, Will(f"status/{name}", b"lost"))
        party.poll(0)
        if name == "cut":
            broker.cut("cut", for_s=math.inf)
            broker.now += 1e9
            party.poll(0)
            assert not party.connected, "cut for ever is dead"
        else:
            party.close()
        assert payloads(watcher) == expected
    assert broker.retained == {"status/cut": b"lost"}


def test_cut_drops_unacknowledged_publishes_from_the_backlog() -> None:
    broker = MemoryBroker(latency_s=1.0)
    sender, _ = pair(broker)
    send(sender, 3)
    assert sender.backlog == 3
    broker.cut("sender")
    assert sender.backlog == 0
    assert not sender.publish("t", b"x")
    (event,) = sender.poll(0)
    assert isinstance(event, Disconnected)
    assert isinstance(event.error, BrokerUnreachable)
    assert event.retry_s == RETRY_S


def test_broker_that_forgets_loses_retained_messages_and_links() -> None:
    broker = MemoryBroker()
    sender, receiver = pair(broker)
    sender.publish("state", b"x", retain=True)
    broker.forget()
    assert broker.retained == {}
    assert not sender.connected
    assert [type(e) for e in receiver.poll(0)] == [Disconnected]
    broker.now += RETRY_S
    assert receiver.poll(0) == [Connected(broker.limits)]


def test_stopped_broker_lets_nobody_in_until_it_starts() -> None:
    broker = MemoryBroker()
    sender, _ = pair(broker)
    sender.publish("state", b"x", retain=True)
    broker.stop()
    broker.now = 100.0
    sender.poll(0)
    assert not sender.connected
    broker.start()
    assert sender.poll(0) == [Connected(broker.limits)]
    assert broker.retained == {"state": b"x"}


def test_second_party_of_one_id_evicts_the_first() -> None:
    broker = MemoryBroker()
    one, two = broker.bus("same"), broker.bus("same")
    one.poll(0)
    two.poll(0)
    (event,) = one.poll(0)
    assert isinstance(event, Disconnected)
    assert isinstance(event.error, BrokerRefused)
    assert two.connected


def test_full_queue_loses_in_silence_as_mosquitto_does() -> None:
    broker = MemoryBroker()
    sender, receiver = pair(broker)
    send(sender, QUEUE_LIMIT + 5)
    assert broker.counts.overflowed == 5
    assert len(payloads(receiver)) == QUEUE_LIMIT


def test_oversize_message_is_refused() -> None:
    broker = MemoryBroker(limits=BrokerLimits("5.0", max_packet_bytes=10))
    sender, receiver = pair(broker)
    assert sender.publish("t", bytes(11))
    assert sender.poll(0) == [PublishRefused("t", "message of 11 bytes, at most 10")]
    assert payloads(receiver) == []


def test_same_seed_same_run_and_another_seed_another() -> None:
    def run(seed: int) -> list[bytes]:
        faults = [
            LinkFault("drop", probability=0.2),
            LinkFault("duplicate", probability=0.2),
            LinkFault("reorder", probability=0.2),
            LinkFault("corrupt", probability=0.1),
        ]
        sender, receiver = pair(MemoryBroker(seed, faults))
        send(sender, 100)
        return payloads(receiver)

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_healed_broker_is_faultless() -> None:
    broker = MemoryBroker(faults=[LinkFault("drop")])
    sender, receiver = pair(broker)
    broker.heal()
    send(sender, 3)
    assert payloads(receiver) == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("+/b", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+", "", True),
        ("a/+", "a/", True),
    ],
)
def test_wildcards(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected
