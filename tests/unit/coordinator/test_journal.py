"""The journal: what was committed is there after anything, whole commits only."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apiary.errors import StoreError
from apiary.wire import Digest, NodeId
from apiary.wire.messages import BlobRef, Offer, TrainMetrics
from apiary_coordinator.journal import AcceptedRow, Journal

A, B = NodeId("a"), NodeId("b")
OFFER = Offer(
    run="r",
    round=1,
    update=BlobRef(digest="d" * 64, bytes=100),
    codec="dense",
    samples=7,
    metrics=TrainMetrics(loss=0.5, accuracy=0.9, accuracy_before=0.8, seconds=1.0),
)


def row(node: str, slot: int = 0) -> AcceptedRow:
    return AcceptedRow(NodeId(node), Digest("d" * 64), slot, 100, 7, 1.23456, OFFER)


def test_a_run_from_its_opening_to_its_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.active_run() is None
    journal.open_run("r1", 5.0, '{"rounds": 3}')
    journal.set_exported("r1", '{"a": 1}')
    found = journal.active_run()
    assert found is not None
    assert (found.id, found.created, found.settings) == ("r1", 5.0, '{"rounds": 3}')
    assert (found.exported, found.state, found.stop) == ('{"a": 1}', "active", None)
    journal.end_run("r1", "finished", "all done")
    assert journal.active_run() is None
    ended = journal.run("r1")
    assert ended is not None and (ended.state, ended.stop) == ("finished", "all done")
    assert journal.run("r2") is None
    journal.close()


def test_the_newest_unfinished_run_is_taken_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open_run("old", 1.0, "{}")
    journal.open_run("new", 2.0, "{}")
    found = journal.active_run()
    assert found is not None and found.id == "new"
    journal.close()


def test_a_round_and_its_updates_survive_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open_round("r", 1, {"cohort": ["a", "b"]})
    journal.accept("r", 1, [row("b", 4096), row("a")])
    journal.reject("r", 1, NodeId("c"), "NaN")
    journal.close()
    again = Journal(tmp_path)
    (opened,) = again.rounds("r")
    assert (opened.number, opened.opened, opened.result) == (1, {"cohort": ["a", "b"]}, None)
    assert again.accepted("r", 1) == [row("b", 4096), row("a")]
    assert again.accepted("r", 1)[0].contributor.seconds == 1.235
    assert again.rejected("r", 1) == {"c": "NaN"}
    assert again.counted("r", 1, A) and not again.counted("r", 1, NodeId("c"))
    assert not again.counted("r", 2, A) and not again.counted("q", 1, A)
    again.close_round("r", 1, {"state": "closed"}, Digest("m"), None)
    (closed,) = again.rounds("r")
    assert (closed.result, closed.model, closed.state) == ({"state": "closed"}, "m", None)
    again.close()


def test_what_an_update_weighs_is_told_apart_from_what_it_trained_on() -> None:
    whole = row("a").contributor
    assert (whole.samples, whole.trained, whole.bytes) == (7, None, 100)
    capped = replace(row("a"), samples=3).contributor
    assert (capped.samples, capped.trained) == (3, 7)


def test_an_operators_request_is_known_over_a_restart_with_its_last_answer(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.request(A, "1") == (False, None)
    for operator, id_ in ((A, "1"), (A, "2"), (B, "1")):
        journal.note_request(operator, id_)
    journal.answer_request(A, "1", "working")
    journal.answer_request(A, "1", "done")
    journal.close()
    again = Journal(tmp_path)
    assert again.request(A, "1") == (True, "done")
    assert again.request(A, "2") == again.request(B, "1") == (True, None)
    assert again.request(B, "2") == (False, None)
    with pytest.raises(StoreError, match="UNIQUE"):
        again.note_request(A, "1")
    again.close()


def test_an_invitation_rewrites_the_opening_and_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open_round("r", 1, {"cohort": ["a"]})
    journal.accept("r", 1, [row("a")])
    journal.open_round("r", 1, {"cohort": ["a", "b"]})
    (found,) = journal.rounds("r")
    assert (found.opened, found.result) == ({"cohort": ["a", "b"]}, None)
    assert journal.counted("r", 1, A)
    journal.close()


def test_what_grows_with_the_fleet_is_told_one_round_at_a_time_and_left_of_a_run_that_is_over(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    whole = {"round": 1, "state": "closed", "n_contributors": 1, "contributors": {"a": {"samples": 3}}}
    for run in ("r", "other"):
        journal.open_round(run, 1, {"cohort": ["a"], "shares": {"a": {"samples": 3}}})
        journal.accept(run, 1, [row("a")])
        journal.reject(run, 1, NodeId("b"), "NaN")
        journal.close_round(run, 1, whole, Digest("m"), Digest("s"))
    slim = {"round": 1, "state": "closed", "n_contributors": 1}
    assert [(r.opened, r.result, r.model) for r in journal.rounds("r")] == [({}, slim, "m")]
    assert list(journal.results("r")) == [whole]
    journal.trim("r")
    journal.trim("r")
    assert list(journal.results("r")) == [slim]
    assert (journal.rounds("r")[0].model, journal.rounds("r")[0].state) == ("m", "s")
    assert not journal.accepted("r", 1) and not journal.rejected("r", 1)
    assert list(journal.results("other")) == [whole] and journal.accepted("other", 1)
    journal.close()


def test_one_node_is_accepted_once_a_round(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.accept("r", 1, [row("a")]) == [row("a")]
    assert journal.accept("r", 1, [row("b"), row("a", 4096), row("b", 8192), row("c")]) == [
        row("b"),
        row("c"),
    ]
    assert journal.accepted("r", 1) == [row("a"), row("b"), row("c")]
    journal.accept("r", 2, [row("a")])
    journal.close()


def test_a_row_that_breaks_a_constraint_costs_none_of_the_others(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal._db.execute(
        "CREATE TRIGGER no BEFORE INSERT ON accepted WHEN NEW.node = 'b' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    assert journal.accept("r", 1, [row("a"), row("b"), row("c")]) == [row("a"), row("c")]
    journal.close()
    again = Journal(tmp_path)
    assert again.accepted("r", 1) == [row("a"), row("c")]
    again.close()


def test_a_damaged_update_that_is_struck_out_may_come_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accept("r", 1, [row("a"), row("b")])
    for run, number in (("r", 2), ("q", 1)):
        journal.accept(run, number, [row("a")])
    journal.forget("r", 1, A)
    assert journal.counted("r", 2, A) and journal.counted("q", 1, A), "other rounds' updates are whole"
    journal.forget("r", 1, NodeId("nobody"))
    assert [r.node for r in journal.accepted("r", 1)] == ["b"]
    journal.accept("r", 1, [row("a")])
    journal.close()


def test_a_second_coordinator_on_the_folder_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(StoreError, match=r"another coordinator is using .*coordinator\.state_dir"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use the state folder"):
        Journal(tmp_path / "file")


def test_a_file_that_is_no_journal_is_refused_each_time_with_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"no database at all, " * 500)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"cannot be opened: .*; restore it from a backup"):
            Journal(tmp_path)


def test_a_damaged_journal_is_refused_not_used(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for i in range(200):
        journal.accept("r", 1, [row(f"node-{i}")])
    journal.close()
    file = tmp_path / "journal.sqlite"
    data = bytearray(file.read_bytes())
    assert len(data) > 5 * 4096
    data[2 * 4096 : 4 * 4096] = os.urandom(2 * 4096)
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"is damaged|cannot be opened"):
        Journal(tmp_path)


def test_a_commit_on_a_full_disk_changes_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accept("r", 1, [row("a")])
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    big = AcceptedRow(B, Digest("d" * 200_000), 0, 1, 1, 1.0, OFFER)
    with pytest.raises(StoreError, match="full; free some disk space"):
        journal.accept("r", 1, [row("c"), big])
    assert [r.node for r in journal.accepted("r", 1)] == ["a"]
    journal._db.execute("PRAGMA max_page_count = 1000000")
    journal.accept("r", 1, [row("c"), big])
    assert [r.node for r in journal.accepted("r", 1)] == ["a", "c", "b"]
    journal.close()


def test_every_commit_is_synced(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    journal.close()


def test_a_torn_end_of_the_log_loses_whole_commits_only(tmp_path: Path) -> None:
    """Power goes while the WAL is written: at every length of it, a prefix of the commits is there."""
    live = tmp_path / "live"
    journal = Journal(live)
    for i in range(8):
        journal.accept("r", 1, [row(f"{i}-{k}") for k in range(5)])
    wal = (live / "journal.sqlite-wal").read_bytes()
    main = (live / "journal.sqlite").read_bytes()
    journal.close()
    seen: list[int] = []
    for cut in [*range(0, len(wal), 3001), len(wal)]:
        folder = tmp_path / "torn"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "journal.sqlite").write_bytes(main)
        (folder / "journal.sqlite-wal").write_bytes(wal[:cut])
        reopened = Journal(folder)
        nodes = [r.node for r in reopened.accepted("r", 1)]
        reopened.close()
        assert nodes == [f"{i}-{k}" for i in range(8) for k in range(5)][: len(nodes)]
        assert len(nodes) % 5 == 0
        seen.append(len(nodes))
    assert seen == sorted(seen)
    assert seen[-1] == 40 and len(set(seen)) > 4


_WRITER = """
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Offer
from apiary_coordinator.journal import AcceptedRow, Journal
journal, offer = Journal(Path(sys.argv[1])), Offer.model_validate_json(sys.argv[2])
i = 0
while True:
    rows = [AcceptedRow(NodeId(f"{i}-{k}"), Digest("d" * 64), 0, 1, 1, 1.0, offer) for k in range(3)]
    journal.accept("r", 1, rows)
    print(i, flush=True)
    i += 1
"""


@pytest.mark.parametrize("after_s", [0.02, 0.11])
def test_what_was_told_is_there_after_kill_9(tmp_path: Path, after_s: float) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path), OFFER.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    told = [int(line) for line in [first, *child.stdout.read().splitlines()] if line.strip()]
    child.stdout.close()
    child.wait()
    journal = Journal(tmp_path)
    nodes = [r.node for r in journal.accepted("r", 1)]
    journal.close()
    commits = len(nodes) // 3
    assert nodes == [f"{i}-{k}" for i in range(commits) for k in range(3)]
    assert told[-1] + 1 <= commits <= told[-1] + 2


def test_sqlite_is_new_enough_for_what_the_journal_asks() -> None:
    """`ON CONFLICT DO UPDATE` came with 3.24; Raspberry Pi OS Bookworm has 3.40."""
    assert sqlite3.sqlite_version_info >= (3, 24)


@pytest.mark.parametrize(
    "read",
    [
        lambda j: j.active_run(),
        lambda j: j.run("r"),
        lambda j: j.rounds("r"),
        lambda j: list(j.results("r")),
        lambda j: j.accepted("r", 1),
        lambda j: j.counted("r", 1, A),
        lambda j: j.rejected("r", 1),
    ],
)
def test_what_cannot_be_read_is_said_and_no_bug_of_ours(
    tmp_path: Path, read: Callable[[Journal], object]
) -> None:
    """An offer of a round that is over asks the journal: a disk that fails must not end the coordinator."""
    journal = Journal(tmp_path)
    journal.commit(*((f"DROP TABLE {table}", ()) for table in ("run", "round", "accepted", "rejected")))
    with pytest.raises(StoreError, match="the journal cannot be read: no such table"):
        read(journal)
    journal.close()


def test_a_run_that_is_to_stop_is_to_stop_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open_run("r", 1.0, "{}")
    journal.open_run("other", 0.5, "{}")
    journal.request_stop("r", "an operator's wish")
    journal.close()
    again = Journal(tmp_path)
    found, other = again.active_run(), again.run("other")
    assert found is not None and (found.id, found.state, found.stop) == ("r", "active", "an operator's wish")
    assert other is not None and other.stop is None
    again.close()


def test_what_was_remembered_is_there_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.recall("samples") is None
    journal.remember("samples", {"pi-1": 40})
    journal.remember("since", 7.5)
    journal.remember("since", 8.5)
    journal.close()
    again = Journal(tmp_path)
    assert (again.recall("samples"), again.recall("since")) == ({"pi-1": 40}, 8.5)
    assert again.recall("others") is None
    again.close()
