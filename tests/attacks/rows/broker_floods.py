"""One enrolled node floods the broker with what its certificate lets it send."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import THIEF, Ground
from tests.attacks.raw import RawClient
from tests.broker.secured import connect

from apiary.bus.bus import Received

CHUNK = bytes(120_000)
LEVELS = 52
OWN = ("status", "progress", "ask", "want", "offer", "health", "prediction", "reply", "release", "doctor")


def thief(ground: Ground, name: str, *, session_s: int = 0) -> RawClient:
    broker = ground.broker
    return RawClient(broker.port, broker.folder / THIEF, f"thief-{name}", session_s=session_s)


def left_behind(ground: Ground) -> dict[str, int]:
    """Retained messages under the thief's name, whatever the federation: topic to bytes."""
    reader = ground.broker.anyone()
    for pattern in (f"apiary/+/node/{THIEF}/#", f"apiary-blob/+/up/{THIEF}/#"):
        reader.subscribe(pattern)
    connect(reader)
    found: dict[str, int] = {}
    quiet = time.monotonic() + 2.0
    while time.monotonic() < quiet:
        for event in reader.poll(0.2):
            if isinstance(event, Received) and event.retained:
                found[event.topic] = len(event.payload)
                quiet = time.monotonic() + 2.0
    reader.close()
    return found


@attack("retained messages, 120 kB each, on every topic under its name")
def retained(ground: Ground) -> Outcome:
    def topics() -> Iterator[str]:
        for kind in OWN:
            yield f"apiary/default/node/{THIEF}/{kind}"
        for i in range(ground.much(1_000)):
            yield f"apiary-blob/default/up/{THIEF}/{i:064x}/{i}"
            yield f"apiary-blob/f{i}/up/{THIEF}"
            yield f"apiary/f{i}/node/{THIEF}/status"
            yield f"apiary-blob/default/up/{THIEF}"

    sent = 0

    def flood() -> None:
        nonlocal sent
        client = thief(ground, "retained")
        client.publish(topics(), CHUNK, qos=1, retain=True)
        sent = client.sent
        client.close()

    honest = ground.round_under(flood)
    found = left_behind(ground)
    own = {f"apiary/default/node/{THIEF}/{kind}" for kind in OWN} | {f"apiary-blob/default/up/{THIEF}"}
    others = sorted(set(found) - own)
    assert not others, f"{len(found)} topics stay, such as {others[0]}"
    left = sum(found.values()) / 1e6
    return Outcome(f"{sent} messages, {sent * 0.12:.0f} MB; {len(found)} topics, {left:.1f} MB stay", honest)


def subscriptions(ground: Ground, name: str, *, session_s: int, links: int) -> tuple[str, str]:
    def topics(link: int) -> Iterator[str]:
        for i in range(ground.much(70_000)):
            yield "/".join([f"{name}{link}-{i}", *(f"l{level}" for level in range(LEVELS - 1))])

    sent = ended = 0

    def flood() -> None:
        nonlocal sent, ended
        for link in range(links):
            try:
                client = thief(ground, f"{name}-{link}", session_s=session_s)
            except OSError:  # the broker is being started anew
                time.sleep(1.0)
                continue
            ended += not client.subscribe(topics(link))
            sent += client.sent
            client.close()

    honest = ground.round_under(flood)
    peak = ground.broker.peak_mb
    assert peak < ground.most_mb, f"the broker took {peak:.0f} MB"
    return f"{sent} subscriptions; the broker ended {ended} of {links} links, took {peak:.0f} MB", honest


@attack("70,000 forbidden subscriptions of 52 levels, three times")
def subscriptions_while_connected(ground: Ground) -> Outcome:
    return Outcome(*subscriptions(ground, "clean", session_s=0, links=3))


@attack("the same in sessions that the broker is to remember for a day")
def subscriptions_that_stay(ground: Ground) -> Outcome:
    tried, honest = subscriptions(ground, "stays", session_s=86_400, links=3)
    return Outcome(tried, honest)


@attack("QoS 0 at a coordinator that does not read for up to 25 s")
def qos_0_at_a_slow_coordinator(ground: Ground) -> Outcome:
    """Until the broker took what it must not, or ended the link three times."""
    payload, most, sent, ended = bytes(900_000), ground.much(2_000), 0, 0

    def topics(end: float) -> Iterator[str]:
        nonlocal sent
        while sent < most and time.monotonic() < end:
            sent += 1
            yield f"apiary-blob/default/up/{THIEF}"

    def flood() -> None:
        nonlocal ended
        with ground.frozen("coordinator"):
            end = time.monotonic() + 25.0
            while sent < most and ended < 3 and time.monotonic() < end:
                try:
                    client = thief(ground, f"qos0-{sent}")
                except OSError:
                    time.sleep(0.5)
                    continue
                ended += not client.publish(topics(end), payload, qos=0, retain=False)
                client.close()

    honest = ground.round_under(flood)
    peak = ground.broker.peak_mb
    assert peak < ground.most_mb, f"the broker took {peak:.0f} MB"
    tried = f"{sent} messages, {sent * 0.9:.0f} MB; the broker ended {ended} links, took {peak:.0f} MB"
    return Outcome(tried, honest)


@attack("a node is revoked: what it left on the broker", mend="clear")
def revoked(ground: Ground) -> Outcome:
    client = thief(ground, "revoked")
    client.publish([f"apiary/default/node/{THIEF}/{kind}" for kind in OWN], CHUNK, qos=1, retain=True)
    client.publish([f"apiary-blob/default/up/{THIEF}"], CHUNK, qos=1, retain=True)
    ground.until("it left them", lambda: len(left_behind(ground)) == len(OWN) + 1)
    try:
        done = ground.pki("revoke", THIEF, sets=(ground.broker.reload, "pki.kick=true"))
        assert done.returncode == 0, done.stderr
        honest = ground.round_under(lambda: None)
        left = left_behind(ground)
        assert set(left) == {f"apiary/default/node/{THIEF}/status"}, f"{len(left)} topics stay"
    finally:
        client.close()
        ground.enrol_again(THIEF)
    return Outcome(f"{len(OWN) + 1} retained messages before, its status ('lost') after", honest)
