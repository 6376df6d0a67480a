"""One enrolled node says of its updates, and of itself, what is not so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import HONEST, PICTURES, THIEF, Ground
from tests.attacks.liar import ME, SAMPLES, Liar, Tensors
from tests.fleet.harness import SHAPES

from apiary.wire import blob, capabilities
from apiary.wire.chunks import digest_of
from apiary.wire.messages import NodeStatus, Offer
from apiary.wire.topics import TopicKind

CLAIM = 2**24
TOO_LONG = 500
"""Times the norm of an honest update. More of this small model a single number's bound (64) refuses."""
TURNED = -29.0
"""An honest update's norm is 24.5; the first round's bound is three times the start model's, 735."""


def scaled(tensors: Tensors, factor: float) -> Tensors:
    return {name: factor * tensor for name, tensor in tensors.items()}


def under(ground: Ground, lie: Callable[[Liar], Iterable[Offer]]) -> tuple[Liar, str]:
    with Liar(ground, lie) as liar:
        return liar, ground.round_under(lambda: None)


def refused(ground: Ground, why: str) -> str:
    """Every round refused the liar with this reason; the reason of the first."""
    reasons = [told["rejected"].get(THIEF, "") for told in ground.history()]
    times = sum(why in reason for reason in reasons)
    assert reasons and times == len(reasons), f"refused in {times} of {len(reasons)} rounds: {reasons}"
    return str(reasons[0])


@attack("two good updates offered back to back, again and again", mend="in-hand")
def offers_back_to_back(ground: Ground) -> Outcome:
    offered = 0

    def some(liar: Liar, times: int) -> list[Offer]:
        nonlocal offered
        offered += 2 * times
        return [liar.offer(scaled(liar.change(), 0.5)), liar.offer(liar.change())] * times

    with Liar(ground, lambda liar: some(liar, 5), then=lambda liar: some(liar, 1)) as liar:
        honest = ground.round_under(lambda: None)
    states = [receipt.state for receipt in liar.receipts]
    rounds = len(ground.history())
    assert states.count("accepted") <= rounds, states
    tried = f"{offered} offers; it got {len(states)} receipts, {states.count('accepted')} accepted"
    return Outcome(tried, honest)


@attack("an update that claims 2^24 samples", mend="weights")
def great_claim(ground: Ground) -> Outcome:
    _, honest = under(ground, lambda liar: [liar.offer(liar.change(), samples=CLAIM)])
    weights = []
    for told in ground.history():
        counted = {name: one["samples"] for name, one in told["contributors"].items()}
        own = counted.pop(THIEF)
        # The cap follows from the statuses: the stand-in for training counts other samples than the pictures.
        assert 2 * own <= PICTURES * len(HONEST), f"it weighs {own}, the others {list(counted.values())}"
        weights.append(f"{own} of {own + sum(counted.values())}")
    return Outcome(f"it weighed {', '.join(weights)} samples", honest)


@attack(f"an update {TOO_LONG} times as long as an honest one", mend="norms")
def too_long(ground: Ground) -> Outcome:
    each = TOO_LONG * 0.1

    def lie(liar: Liar) -> list[Offer]:
        return [liar.offer({name: each * np.sign(t) for name, t in liar.change().items()})]

    _, honest = under(ground, lie)
    return Outcome(refused(ground, "the update's norm is"), honest)


@attack("an update as long as the first round bears, its sign turned, at the cap's weight", mend="leave-out")
def turned(ground: Ground) -> Outcome:
    def lie(liar: Liar) -> list[Offer]:
        assert liar.round is not None
        factor = TURNED if liar.round.round == 1 else -1.0
        return [liar.offer(scaled(liar.change(), factor), samples=CLAIM)]

    _, honest = under(ground, lie)
    first = ground.history()[0]
    assert list(first["left_out"] or ()) == [THIEF], first["left_out"]
    return Outcome(f"round 1: {first['left_out'][THIEF]}", honest)


@attack("an update with a number that is none", mend="numbers")
def not_finite(ground: Ground) -> Outcome:
    def lie(liar: Liar) -> list[Offer]:
        tensors = {name: t.copy() for name, t in liar.change().items()}
        tensors["a/bias"][7] = np.nan
        return [liar.offer(tensors)]

    _, honest = under(ground, lie)
    return Outcome(refused(ground, "not finite"), honest)


@attack("offers of all sizes up to 256 MiB: the coordinator's disk", mend="bytes")
def sizes(ground: Ground) -> Outcome:
    slot, most = blob.most_bytes(SHAPES, "raw_f32"), 0
    spool = ground.folder / "coordinator-state" / "spool"
    offered: dict[int, int] = {}

    def lie(liar: Liar) -> list[Offer]:
        nonlocal most
        assert liar.round is not None
        number = liar.round.round
        times = offered[number] = offered.get(number, 0) + 1
        # The places that it took before.
        for file in spool.glob("*.spool"):
            most = max(most, file.stat().st_blocks * 512)
        if times == 1:
            return [liar.bare_offer(f"{number:032x}{i:032x}", slot * i // 8) for i in range(1, 8)]
        if times == 2:
            return [liar.bare_offer("f" * 64, 2**28)]
        # Where that was granted: an update that is refused, so that the round goes on.
        nothing = bytes(1000)
        return [liar.bare_offer(digest_of(nothing), len(nothing), document=nothing)]

    _, honest = under(ground, lie)
    bound = (len(HONEST) + 1) * (slot + 4096)
    assert 0 < most <= bound, f"{most / 1e6:.1f} MB, expected at most {bound / 1e6:.1f} MB"
    refused(ground, "allowed are")
    return Outcome(f"8 sizes a round; the spool took at most {most / 1e6:.2f} MB", honest)


@attack("statuses, offers, receipts and rounds in the name of others", mend="rights")
def forged(ground: Ground) -> Outcome:
    sent = 0

    def lie(liar: Liar) -> list[Offer]:
        nonlocal sent
        gone = NodeStatus(state="lost", why="forged").encode()
        offer, refused = liar.offer(liar.change()), liar.bare_offer("f" * 64, 2**28)
        for other in HONEST:
            for kind, payload in (
                (TopicKind.NODE_STATUS, gone),
                (TopicKind.NODE_STATUS, b""),
                (TopicKind.NODE_OFFER, offer.encode()),
                (TopicKind.NODE_OFFER, refused.encode()),
                (TopicKind.NODE_RECEIPT, b"{}"),
            ):
                topic = liar.topics.build(kind, node=type(ME)(other))
                sent += liar.bus.publish(topic, payload, qos=1, retain=True)
        for kind in (TopicKind.ROUND_CURRENT, TopicKind.COORDINATOR_STATUS):
            sent += liar.bus.publish(liar.topics.build(kind), b"", qos=1, retain=True)
        return [offer]

    _, honest = under(ground, lie)
    for told in ground.history():
        assert not set(HONEST) & (set(told["rejected"]) | set(told["missing"])), told
    assert sent > 0
    return Outcome(f"{sent} messages in the names of nodes and coordinator", honest)


@attack("a node that died without a last word, its status retained", mend="silence")
def silent(ground: Ground) -> Outcome:
    """Its link ends in order, so that the broker says nothing in its name."""
    bus = ground.broker.party(THIEF)
    status = NodeStatus(
        state="ready",
        samples=SAMPLES,
        labels={"a": SAMPLES, "b": SAMPLES},
        runtimes=["fake"],
        capabilities=capabilities.of_this_version(),
        repeat_s=1.0,
    )
    topic = f"apiary/default/node/{THIEF}/status"
    ground.until("it has a link", lambda: bus.poll(0.1) or bus.connected)
    bus.publish(topic, status.encode(), qos=1, retain=True)
    ground.until("it is known", lambda: bus.poll(0.1) is not None and ground.state_of(THIEF) is not None)
    bus.close()
    try:
        began = time.monotonic()
        ground.until("it is silent", lambda: ground.state_of(THIEF) == "silent", 30.0)
        took = time.monotonic() - began
        honest = ground.round_under(lambda: None)
        for told in ground.history():
            assert THIEF not in told["missing"], told["missing"]
    finally:
        cleaner = ground.broker.party(THIEF)
        cleaner.publish(topic, NodeStatus(state="lost", why="gone").encode(), qos=1, retain=True)
        end = time.monotonic() + 10
        while cleaner.backlog and time.monotonic() < end:
            cleaner.poll(0.1)
        cleaner.close()
    return Outcome(f"silent {took:.0f} s after its link ended, drawn in no round", honest)
