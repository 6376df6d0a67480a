"""A node that offers again and again, or more than one update: it costs itself, and none of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleet.harness import SHAPES, Fleet, MakeFleet
from tests.fleet.raw_node import RawNode

from apiary.wire import Digest, blob
from apiary.wire.chunks import digest_of
from apiary_coordinator.round.collector import Collector

BAD = "pi-01"
SLOT = blob.most_bytes(SHAPES, "raw_f32")


def opened(fleet: Fleet, node: str = BAD) -> RawNode:
    """A node that only speaks, once a round is open."""
    raw = RawNode(fleet, node)
    fleet.until(lambda: fleet.runner)
    return raw


def spool_bytes(fleet: Fleet) -> int:
    """What the open round takes of the coordinator's disk."""
    (spool,) = (fleet.folder / "coordinator" / "spool").iterdir()
    return spool.stat().st_size


@pytest.mark.parametrize("start", range(4))
def test_a_second_offer_while_the_first_update_is_screened_counts_nothing_twice(
    make_fleet: MakeFleet, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Both updates are good and come whole; the worker is slow, so that it has the first for some turns."""
    alone = make_fleet(4, rounds=1)
    once = opened(alone)
    only = once.update()
    once.offer(only)
    expected = alone.run(each=lambda _: once.answer())["model_sha256"]

    fleet = make_fleet(4, rounds=1, worker_s=2.0)
    raw = opened(fleet)
    for _ in range(start):
        fleet.turn()
    first, second = raw.update(), raw.update(factor=0.5)
    assert first == only
    raw.offer(first)

    def sent() -> bool:
        raw.answer()
        return bool(raw.granted)

    fleet.until(sent)
    for _ in range(2):  # its chunks are on their way
        fleet.turn()

    def again(_: int) -> None:
        raw.answer()
        if fleet.runner is not None:
            raw.offer(second)

    summary = fleet.run(each=again)
    (result,) = fleet.results()
    assert sorted(result["contributors"]) == sorted(fleet.nodes)
    assert summary["model_sha256"] == expected
    assert [r["state"] for r in raw.receipts if r["digest"] == digest_of(first)] == ["accepted"]
    assert {r["state"] for r in raw.receipts if r["digest"] == digest_of(second)} == {"duplicate"}
    assert "the journal" not in caplog.text


def test_an_update_that_the_journal_has_no_place_for_costs_its_node_alone(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the guard before it had let a second one pass: the round goes on with the same bits."""
    expected = make_fleet(4, rounds=2).run()["model_sha256"]
    fleet = make_fleet(4, rounds=2)
    real = Collector._on_synced

    def doubled(collector: Collector, _: None) -> None:
        seconds = [replace(row, slot=row.slot + 2**30, digest=Digest("0" * 64)) for row in collector._syncing]
        collector._syncing = [row for pair in zip(collector._syncing, seconds, strict=True) for row in pair]
        real(collector, None)

    monkeypatch.setattr(Collector, "_on_synced", doubled)
    assert fleet.run()["model_sha256"] == expected
    assert [r["n_contributors"] for r in fleet.results()] == [4, 4]
    assert "an update of it has no place in the journal" in caplog.text


def test_a_row_that_the_journal_refuses_rejects_its_node_and_no_other(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=2)
    fleet.journal._db.execute(
        f"CREATE TRIGGER no BEFORE INSERT ON accepted WHEN NEW.node = '{BAD}' "
        "BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    fleet.run()
    for result in fleet.results():
        assert sorted(result["contributors"]) == ["pi-00", "pi-02", "pi-03"]
        assert result["rejected"] == {BAD: f"node {BAD}: the journal refuses its update"}


def test_the_place_of_a_row_that_the_journal_refuses_is_anothers(make_fleet: MakeFleet) -> None:
    """All four come at once for three places, and are journaled in one commit."""
    fleet = make_fleet(4, rounds=2, min_nodes=3, fraction=0.75, over_select=4 / 3, worker_s=2.0)
    for training in fleet.trainings.values():
        training.seconds = 2.0
    fleet.journal._db.execute(
        f"CREATE TRIGGER no BEFORE INSERT ON accepted WHEN NEW.node = '{BAD}' "
        "BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    fleet.run(seconds=300)
    assert [r["n_contributors"] for r in fleet.results()] == [3, 3]


@pytest.mark.parametrize("size", [SLOT + 1, 2**28], ids=["one byte", "256 MiB"])
def test_an_update_larger_than_an_honest_one_is_refused_before_a_byte_is_sent(
    make_fleet: MakeFleet, size: int
) -> None:
    fleet = make_fleet(4, rounds=1)
    raw = opened(fleet)
    raw.offer(raw.update(), size=size)
    fleet.run(each=lambda _: raw.answer())
    (result,) = fleet.results()
    assert result["rejected"] == {BAD: f"the update has {size} bytes, allowed are {SLOT}"}
    assert raw.granted == []


def test_offers_of_all_sizes_take_no_more_of_the_disk_than_one_update_a_node(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=1)
    for node in ("pi-02", "pi-03"):
        fleet.trainings[node].seconds = 1e9
    raw = opened(fleet)
    document, most = raw.update(), 0
    for i in range(200):
        size = 1 + i * (SLOT - 1) // 199
        raw.offer(document, size=size, digest=f"{i:064x}")
        for _ in range(3):
            fleet.turn()
        most = max(most, spool_bytes(fleet))
    assert most <= 2 * (SLOT + 4096)  # pi-00 has one, too


def test_restarts_in_the_middle_of_uploads_leave_no_places_behind(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=1)
    raw = opened(fleet)
    for node in ("pi-02", "pi-03"):
        fleet.trainings[node].seconds = 1e9
    fleet.until(lambda: fleet.runner is not None and fleet.runner.round.accepted)
    for i in range(6):
        fleet.until(lambda: fleet.runner)
        raw.offer(raw.update(), digest=f"{i:064x}")
        for _ in range(5):
            fleet.turn()
        fleet.kill_coordinator()
        fleet.start_coordinator()
    assert spool_bytes(fleet) <= 2 * (SLOT + 4096)


def test_a_node_that_left_and_was_refused_is_counted_once(make_fleet: MakeFleet) -> None:
    """Accepted and rejected at once it would end the round early after a restart."""
    fleet = make_fleet(4, rounds=1, lost_grace_s=0, deadline_s=200)
    raw = opened(fleet)
    fleet.trainings["pi-03"].seconds = 60
    fleet.kill_node(BAD)
    runner = fleet.runner
    assert runner is not None
    fleet.until(lambda: runner.round.gone)
    raw.offer(raw.update(), size=2**28)
    fleet.until(lambda: runner.round.rejected)
    raw.offer(raw.update())
    for _ in range(30):
        raw.answer()
        fleet.turn()
    assert raw.granted == []
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.run(each=lambda _: raw.answer())
    (result,) = fleet.results()
    assert (result["n_contributors"], list(result["rejected"])) == (3, [BAD])
