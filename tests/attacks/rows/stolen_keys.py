"""Keys in other hands: a signature from next year, a request that comes again, another federation."""

from __future__ import annotations

import time
from pathlib import Path

from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import HONEST, OPERATORS, THIEF, Ground
from tests.attacks.liar import ME, Liar
from tests.broker.secured import Secured, connect, sent

from apiary.bus.bus import Connected, Disconnected, Received
from apiary.bus.mqtt import MqttBus
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.wire import NodeId
from apiary.wire.topics import TopicKind, Topics

AHEAD_S = 180 * 86_400.0
OTHER = "coordinator-b"
TOPICS = Topics()


@attack("a stolen key signs offers by a clock half a year ahead; then the name gets new keys", mend="ahead")
def from_next_year(ground: Ground) -> Outcome:
    ground.ready()
    topic = TOPICS.build(TopicKind.NODE_OFFER, node=ME)
    stolen, bus = ground.gate(THIEF, ahead_s=AHEAD_S), ground.broker.party(THIEF)
    connect(bus)
    for _ in range(5):
        bus.publish(topic, stolen.seal(TopicKind.NODE_OFFER, topic, b'{"v":1,"run":"none"}'), qos=1)
    sent(bus)
    bus.close()
    ground.enrol_again(THIEF)
    with Liar(ground, lambda liar: [liar.offer(liar.change())]):
        honest = ground.round_under(lambda: None)
    counted = [THIEF in told["contributors"] for told in ground.history()]
    assert all(counted), f"its updates by the new key counted in {sum(counted)} of {len(counted)} rounds"
    return Outcome(f"5 offers; by the new key {THIEF} is counted in each round", honest)


@attack("an operator's `run stop`, delivered again after a restart of the coordinator", mend="requests")
def request_again(ground: Ground) -> Outcome:
    ground.ready()
    # The last that this operator signed: an older one is refused by its number.
    by = OPERATORS[1]
    topic = TOPICS.build(TopicKind.OPERATOR_REQUEST, node=NodeId(by))
    listener = ground.broker.anyone()
    listener.subscribe(topic)
    connect(listener)
    assert ground.ask("run", "start", "--rounds", "200")[0] == 0
    ground.until("the run is stopped", lambda: ground.ask("run", "stop", by=by)[0] == 0)
    captured = newest(listener)
    assert b"run.stop" in captured
    ground.until("no run is left", lambda: idle(ground))
    ground.stop("coordinator")
    ground.start("coordinator")
    ground.ready()

    def again() -> None:
        for _ in range(3):
            listener.publish(topic, captured, qos=1)
            sent(listener)
            time.sleep(0.2)

    honest = ground.round_under(again)
    listener.close()
    return Outcome("`run stop` 3 times more, as it was signed, while another run is under way", honest)


def newest(bus: MqttBus) -> bytes:
    """The payload of the last message that has come."""
    found, quiet = b"", time.monotonic() + 2.0
    while time.monotonic() < quiet:
        for event in bus.poll(0.1):
            if isinstance(event, Received):
                found, quiet = event.payload, time.monotonic() + 1.0
    return found


def idle(ground: Ground) -> bool:
    code, told = ground.ask("run", "list")
    return code == 0 and all(run["state"] != "active" for run in told["runs"])


@attack(
    "another federation's coordinator, with a valid certificate of its own authority", mend="own-authority"
)
def second_federation(ground: Ground) -> Outcome:
    files = ground.folder / "second"
    if not files.exists():
        authority = ground.folder / "second-pki"
        own = (f"pki.state_dir='{authority}'", f"pki.broker_dir='{ground.folder / 'second-broker'}'")
        sets = () if ground.without == "own-authority" else own
        if sets:
            assert ground.broker.pki("init", "--fleet", "meadow", sets=sets) == 0
        words = ("enrol", OTHER, "--role", "coordinator", "--dir", str(files))
        assert ground.broker.pki(*words, sets=(*sets, *([] if sets else [ground.broker.reload]))) == 0
    refused = 0

    def harm() -> None:
        nonlocal refused
        assert not lets_in(ground.broker, files), "it is let in where it does not belong"
        # Whoever holds the broker puts its messages where the nodes hear them.
        other = load_gate(ground.security_of(files), Role.COORDINATOR, None, None, time.time)
        holder = ground.broker.anyone()
        connect(holder)
        topic = TOPICS.build(TopicKind.ROUND_CURRENT)
        for _ in range(5):
            forged = other.seal(TopicKind.ROUND_CURRENT, topic, b'{"v":1,"state":"closed"}')
            refused += holder.publish(topic, forged, qos=1)
            sent(holder)
            time.sleep(0.2)
        holder.close()

    honest = ground.round_under(harm)
    logs = [(ground.folder / f"{name}.log").read_text() for name in HONEST]
    assert all("which is not this fleet's authority" in log for log in logs), (
        "no node said whose signature it was"
    )
    return Outcome(f"not let in; {refused} announcements through the broker itself: refused", honest)


def lets_in(broker: Secured, files: Path) -> bool:
    party = broker.party(OTHER, files=files)
    try:
        end = time.monotonic() + 20
        while True:
            for event in party.poll(0.1):
                if isinstance(event, Connected | Disconnected):
                    return isinstance(event, Connected)
            assert time.monotonic() < end, "no answer"
    finally:
        party.close()
