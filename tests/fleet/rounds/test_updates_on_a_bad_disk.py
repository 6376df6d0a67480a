"""An update that is journaled counts, and one that the disk garbled comes again, whatever it says next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fleet.harness import MakeFleet

from apiary.errors import StoreError
from apiary_coordinator.journal import AcceptedRow, Journal
from apiary_coordinator.round.collector import Collector
from apiary_coordinator.round.runner import RoundRunner
from apiary_coordinator.updates.spool import Spool

FULL = "the journal refused a commit: database or disk is full"


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_updates_of_one_commit_count_though_the_next_step_is_refused(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows are journaled at once; what follows of the first is refused once."""
    undisturbed = make_fleet(3, rounds=1).run()["model_sha256"]
    fleet = make_fleet(3, rounds=1, deadline_s=200, quorum=0.3)
    sync_next, accepted = Collector._sync_next, RoundRunner.accepted
    refusals = [StoreError(FULL)]

    def all_at_once(collection: Collector) -> None:
        if collection._syncing or len(collection._screened) >= 3 or not collection._screened:
            sync_next(collection)

    def refused(runner: RoundRunner, row: AcceptedRow) -> None:
        accepted(runner, row)
        if refusals:
            raise refusals.pop()

    monkeypatch.setattr(Collector, "_sync_next", all_at_once)
    monkeypatch.setattr(RoundRunner, "accepted", refused)
    assert fleet.run(seconds=100)["model_sha256"] == undisturbed
    assert fleet.results()[0]["n_contributors"] == 3


@pytest.mark.parametrize("which", [1, 3], ids=["first chunk", "last chunk"])
def test_a_chunk_that_the_disk_refused_is_asked_for_again(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    fleet = make_fleet(3, rounds=1, deadline_s=200, quorum=0.3)
    write = Spool.write
    writes = 0

    def once_refused(spool: Spool, slot: int, offset: int, data: bytes | memoryview) -> None:
        nonlocal writes
        writes += 1
        if writes == which:
            raise StoreError("cannot write to the spool: Input/output error")
        write(spool, slot, offset, data)

    monkeypatch.setattr(Spool, "write", once_refused)
    fleet.run(seconds=100)
    assert fleet.results()[0]["n_contributors"] == 3


def test_a_round_that_the_disk_refuses_leaves_no_descriptor_open(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StoreError(FULL)

    fleet = make_fleet(3, rounds=1)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "open_round", full)
        for _ in range(200):
            fleet.turn()
        before = descriptors()
        for _ in range(500):
            fleet.turn()
        assert descriptors() == before
    assert fleet.run()["rounds_closed"] == 1
