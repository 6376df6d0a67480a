"""One bad party against a fleet of real processes: the floods, with little memory, and a few other rows.

The rows are those of `make attacks`, which prints what each tried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.attack import attacks
from tests.attacks.deployed import DeployedBroker
from tests.attacks.ground import Ground
from tests.broker.secured import PLUGIN, connect

from apiary.bus.broker import find_mosquitto
from apiary.bus.bus import Disconnected, Received
from apiary.wire import NodeId
from apiary.wire.topics import TopicKind, Topics

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
T = Topics()
CHUNK = bytes(120_000)
QUICK = ("older_backup", "half_a_character", "great_claim", "forged", "slow_enrolment")
"""Of the rows about anything else; `make attacks` takes all."""
ROWS = {
    name: row
    for name, row in attacks().items()
    if row.run.__module__.endswith(".broker_floods") or name in QUICK
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("floods"), quick=True) as made:
        yield made


def test_a_broker_whose_memory_stays_full_is_started_anew_without_what_fills_it(tmp_path: Path) -> None:
    broker = DeployedBroker(tmp_path, memory_limit=60_000_000, mended=True)
    try:
        filler, honest = broker.anyone(), [broker.party("pi-07"), broker.party("pi-08")]
        own = [T.build(TopicKind.NODE_STATUS, node=NodeId(name)) for name in ("pi-07", "pi-08")]
        connect(filler, *honest)
        end, sent, full = time.monotonic() + 90, 0, False
        while broker.restarts == 0:
            assert time.monotonic() < end, broker.journal()[-2000:]
            if filler.connected and filler.backlog < 20:
                sent += filler.publish(f"stays/{sent}", CHUNK, retain=True)
            for party, topic in zip(honest, own, strict=True):
                if party.connected and party.backlog == 0 and full:
                    party.publish(topic, CHUNK, retain=True)
                party.poll(0.002)
            full = full or any(isinstance(e, Disconnected) for e in filler.poll(0.002))
        assert "memory stays full (memory_limit), users cut off:" in broker.journal()
        broker.await_answer()
        reader = broker.anyone()
        reader.subscribe("stays/#")
        connect(reader)
        assert not [e for _ in range(5) for e in reader.poll(0.2) if isinstance(e, Received)]
        for bus in (filler, reader, *honest):
            bus.close()
    finally:
        broker.close()


@pytest.mark.parametrize("name", ROWS)
def test_every_honest_node_finishes_its_round(ground: Ground, name: str) -> None:
    if name == "revoked" and PLUGIN is None:
        pytest.skip("mosquitto has no dynamic security plugin")
    ROWS[name].run(ground)
