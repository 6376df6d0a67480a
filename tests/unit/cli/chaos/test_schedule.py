"""The schedule of faults, and what judges a run that went through it."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apiary.blobs import BlobStore
from apiary.errors import SettingsError
from apiary_cli.chaos import invariants, torn
from apiary_cli.chaos.fleet import Fleet
from apiary_cli.chaos.invariants import FinishedRun
from apiary_cli.chaos.processes import began_of
from apiary_cli.chaos.schedule import FINISHING, HALFWAY, KINDS, MESSAGES, Fault, chosen, draw, rounds_for
from apiary_cli.datasets.partition import Layout
from apiary_cli.demo.federation import MARK
from apiary_edge.transfer.outbox import Outbox

NODES = ["node-1", "node-2", "node-3"]


def plan(
    seed: int = 1, faults: int = 200, rounds: int = 20, kinds: tuple[str, ...] = tuple(KINDS)
) -> list[Fault]:
    return draw(seed=seed, faults=faults, rounds=rounds, nodes=NODES, kinds=kinds)


def test_the_same_seed_gives_the_same_faults_and_another_one_others() -> None:
    assert plan(seed=4) == plan(seed=4)
    assert plan(seed=4) != plan(seed=5)


@pytest.mark.parametrize("faults", [1, 2, 13, 14, 60, 200, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_as_many_as_asked_for_in_the_order_of_the_rounds(faults: int, seed: int) -> None:
    rounds = rounds_for(faults)
    drawn = plan(seed, faults, rounds)
    assert [f.number for f in drawn] == list(range(1, faults + 1))
    places = [(f.round, f.after) for f in drawn]
    assert places == sorted(places)
    # The last round stays free for what could not be dealt in time.
    assert {f.round for f in drawn} <= {*range(rounds), rounds + 1}
    assert all(0 <= f.after < MESSAGES * len(NODES) for f in drawn)
    assert all(0 <= f.seconds <= KINDS[f.kind].longest_s for f in drawn)


def test_every_kind_comes_up_and_every_party_is_hit() -> None:
    drawn = plan()
    assert {f.kind for f in drawn} == set(KINDS)
    assert {"coordinator", "broker", "wire", *NODES} == {f.victim for f in drawn}
    counts = Counter(f.kind for f in drawn)
    assert counts["node-kill"] > counts["broker-corrupt"]


def test_faults_spread_over_the_whole_run() -> None:
    per_round = Counter(f.round for f in plan())
    assert per_round[0] >= 1 and per_round[21] >= 1
    assert all(7 <= per_round[r] <= 13 for r in range(1, 20))


def test_an_export_is_disturbed_too_and_the_coordinator_killed_in_it() -> None:
    drawn = draw(seed=1, faults=200, rounds=20, nodes=NODES, kinds=tuple(KINDS), building=True)
    early = [f.kind for f in drawn if (f.round, f.after) == (0, 2 * len(NODES))]
    assert len(drawn) == 200 and len(early) >= 5
    assert early[0] == "coordinator-kill" and len(set(early)) > 1


def test_no_training_is_killed_where_there_is_none() -> None:
    for seed in range(50):
        for fault in plan(seed, 60, 6):
            if fault.kind in ("trainer-kill", "disk-full"):
                assert 1 <= fault.round <= 6
            if fault.round == 7:
                assert fault.kind in FINISHING


def test_half_of_the_coordinators_deaths_wait_for_a_part_of_the_updates() -> None:
    """Killed at any message, it nearly never had counted some and not others: a restart could count twice."""
    deaths = [f for f in plan(faults=1000, rounds=100) if f.kind == "coordinator-kill" and 1 <= f.round < 100]
    waiting = [f for f in deaths if f.receipts]
    assert 0.35 < len(waiting) / len(deaths) < 0.65
    assert {f.receipts for f in waiting} == {1, 2}
    assert all(f.receipts == 0 for f in plan() if f.round in (0, 21) or f.kind not in HALFWAY)


def test_only_kinds_that_were_asked_for() -> None:
    drawn = plan(kinds=("trainer-kill",), faults=30, rounds=3)
    assert {f.kind for f in drawn} == {"trainer-kill"}
    assert {f.round for f in drawn} == {1, 2}
    assert chosen("node-kill, torn") == ("node-kill", "torn")
    assert chosen(None) == tuple(KINDS)


@pytest.mark.parametrize("given", ["node-kil", "node-kill,flood", "", ","])
def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(given: str) -> None:
    with pytest.raises(SettingsError, match=r"is no kind of fault\. There are: coordinator-kill, "):
        chosen(given)


def record(model: str = "a", samples: int = 5, **changes: Any) -> FinishedRun:
    counted = {"node-1": {"samples": samples}}
    round_: dict[str, Any] = {
        "round": 1,
        "state": "closed",
        "rejected": {},
        "missing": {},
        "contributors": counted,
        "model": model,
        **changes,
    }
    return FinishedRun({"model_sha256": model}, [round_], {"node": 40.0})


def test_equal_records_hold() -> None:
    assert invariants.same_model(record(), record()).holds
    assert invariants.counted_once(record(), record()).holds
    assert invariants.memory_bounded(record(), record()).holds


def test_a_differing_model_is_said_with_its_round() -> None:
    verdict = invariants.same_model(record("a"), record("b"))
    assert not verdict.holds
    assert verdict.seen == "b, undisturbed a; first in round 1"


@pytest.mark.parametrize(
    ("storm", "seen"),
    [
        (record(samples=6), "samples"),
        (record(missing={"node-1": "no update in time"}), "no update in time"),
        (record(rejected={"node-1": "bad"}), "bad"),
        (record(state="failed"), "failed"),
        (FinishedRun({"model_sha256": "a"}, [], {}), "0 rounds, undisturbed 1"),
    ],
)
def test_what_was_not_counted_as_undisturbed_is_said(storm: FinishedRun, seen: str) -> None:
    verdict = invariants.counted_once(record(), storm)
    assert not verdict.holds
    assert seen in verdict.seen


def test_memory_far_above_the_undisturbed_one_is_said() -> None:
    storm = FinishedRun({}, [], {"node": 200.0})
    assert not invariants.memory_bounded(record(), storm).holds
    # A child's bound is its own: the undisturbed run may have ended before one was seen.
    for mb, holds in ((invariants.CHILD_MB, True), (invariants.CHILD_MB + 1, False)):
        storm = FinishedRun({}, [], {invariants.CHILD: mb})
        assert invariants.memory_bounded(record(), storm).holds is holds


def test_leftovers_and_outboxes_are_found(tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "done.json").write_text("[]")
    assert invariants.outbox(tmp_path) == []
    assert invariants.leftovers(tmp_path) == []
    (tmp_path / "outbox" / "abc.update").touch()
    (tmp_path / "outbox" / ".abc.x.part").touch()
    assert invariants.outbox(tmp_path) == ["abc.update"]
    assert invariants.leftovers(tmp_path) == ["outbox/.abc.x.part"]


def test_tearing_spares_what_the_journal_knows(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("CREATE TABLE accepted (run TEXT, round INTEGER, slot INTEGER, bytes INTEGER)")
        db.execute("INSERT INTO accepted VALUES ('chaos', 3, 4096, 5000)")
    db.close()
    spool = tmp_path / "spool" / "chaos-3.spool"
    spool.write_bytes(bytes(16384))
    torn.tear_coordinator(tmp_path, tmp_path / "runs" / "chaos", random.Random(0))
    after = spool.read_bytes()
    assert after[4096:9096] == bytes(5000)
    assert any(after[:4096]) and any(after[12288:16384]) and len(after) > 16384


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet of one node that was never started, with the stores of one that was."""
    made = Fleet(tmp_path, Layout([Path("node-1")], Path("server"), ["a", "b"], {}), {})
    for party in made.parties:
        BlobStore(made.state(party) / "blobs").put(b"a model")
    Outbox(made.state("node-1") / "outbox").set_done("chaos", 1)
    return made


def test_sound_stores_hold(fleet: Fleet) -> None:
    verdict = invariants.stores_sound(fleet, record())
    assert (verdict.holds, verdict.seen) == (True, "2 blobs give their names")


@pytest.mark.parametrize("party", ["coordinator", "node-1"])
def test_a_damaged_blob_is_found_whoever_has_it(fleet: Fleet, party: str) -> None:
    (blob,) = (fleet.state(party) / "blobs").iterdir()
    blob.write_bytes(b"a modem")
    verdict = invariants.stores_sound(fleet, record())
    assert not verdict.holds and verdict.seen == f"{party}: {blob.name[:12]} is damaged"


def test_a_node_that_does_not_know_what_it_has_done_is_found(fleet: Fleet) -> None:
    Outbox(fleet.state("node-1") / "outbox").set_done("chaos", 0)
    verdict = invariants.stores_sound(fleet, record())
    assert not verdict.holds and verdict.seen == "node-1 is done with ['chaos', 0], expected ['chaos', 1]"


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (lambda folder: (folder / "model.tflite").write_bytes(b"half"), "model.tflite differs"),
        (lambda folder: (folder / "summary.json").unlink(), "summary.json is missing"),
        (lambda folder: (folder / ".x.part").touch(), ".x.part is too much"),
        (lambda folder: None, "2 files as undisturbed"),
    ],
)
def test_a_result_that_is_not_whole_is_found(
    fleet: Fleet, tmp_path: Path, spoil: Callable[[Path], object], seen: str
) -> None:
    calm = Fleet(tmp_path / "calm", Layout([], Path("server"), [], {}), {})
    for one in (calm, fleet):
        folder = one.folder / "runs" / "chaos"
        folder.mkdir(parents=True)
        (folder / "model.tflite").write_bytes(b"whole")
        (folder / "summary.json").write_text(str(one.folder))
    spoil(fleet.folder / "runs" / "chaos")
    verdict = invariants.result_whole(calm, fleet)
    assert verdict.seen == seen and verdict.holds == seen.endswith("undisturbed")


def test_a_child_that_outlives_its_party_is_told_and_one_that_does_not_is_not(fleet: Fleet) -> None:
    """It worked on, ended by itself before the run did, and nobody knew."""
    with subprocess.Popen(["sleep", "60"]) as stays, subprocess.Popen(["sleep", "60"]) as goes:
        began = [(p.pid, began_of(p.pid) or 0) for p in (stays, goes)]
        fleet.watch_orphans("node-1", began, within_s=0.2)
        goes.kill()
        goes.wait()
        fleet.see_to_orphans(time.monotonic())
        assert fleet.outlived == []
        fleet.see_to_orphans(time.monotonic() + 1)
        assert fleet.outlived == [f"process {stays.pid} of node-1"]
        assert not invariants.no_crash(fleet).holds
        stays.kill()


def test_a_process_is_found_by_its_environment_where_its_command_names_nothing(fleet: Fleet) -> None:
    """As a child that gets its job on standard input."""
    with subprocess.Popen(["sleep", "60"], env={MARK: str(fleet.folder)}) as child:
        assert [line.split()[0] for line in fleet.left_running()] == [str(child.pid)]
        fleet.end_left_running()
    assert fleet.left_running() == []
