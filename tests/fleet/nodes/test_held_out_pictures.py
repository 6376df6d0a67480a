"""Pictures that a node trains on and the server tests with: counted by the node, said by both, not listed."""

from __future__ import annotations

import pytest
from tests.fleet.harness import MakeFleet
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.bus.bus import Received
from apiary.wire import held_out
from apiary.wire.messages import Announcement, NodeStatus, parts_of

OURS = [f"{i:02x}" * 32 for i in range(20)]


def test_a_node_reports_a_number_and_no_digest(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    broker = MemoryBroker(seed=1, latency_s=0.01)
    fleet = make_fleet(2, rounds=2, broker=broker, held_out=held_out.encode(OURS))
    fleet.trainings["pi-00"].digests = [*OURS[:3], "ff" * 32]
    ear = broker.bus("ear", None)
    ear.subscribe("#")
    heard: list[bytes] = []

    def listen(turn: int) -> None:
        heard.extend(event.payload for event in ear.poll(0) if isinstance(event, Received))

    fleet.run(each=listen)
    said = [p for p in heard if b'"also_held_out":3' in p]
    assert said and NodeStatus.decode(said[-1], who="pi-00").also_held_out == 3
    assert not any(digest[:16].encode() in p for p in heard for digest in OURS), "no digest in a message"
    lines = {r.getMessage() for r in caplog.records if "held-out pictures" in r.getMessage()}
    assert len(lines) == 1 and "node pi-00 trains on 3 of the held-out pictures" in lines.pop()


def test_what_is_too_large_to_compare_with_is_not_fetched(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1, rounds=1, held_out=b"x" * 7)
    fleet.trainings["pi-00"].digests = OURS
    fleet.run()
    (announcement,) = {
        a.round: a
        for a in [Announcement.decode(fleet.broker.retained["apiary/default/round/current"], who="x")]
    }.values()
    assert announcement.held_out is None or announcement.held_out not in parts_of(announcement)
