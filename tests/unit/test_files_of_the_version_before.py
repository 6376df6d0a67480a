"""What commit 8fbd764 wrote on a coordinator and a node is read: tests/fixtures/state_8fbd764."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.state_8fbd764.unpack import unpack

from apiary.files import sha256_of
from apiary.identity.replay_guard import DiskMarks
from apiary.settings import ReleaseSettings
from apiary.wire import Digest
from apiary_cli.main import main
from apiary_coordinator.journal import Journal
from apiary_coordinator.releases.ledger import Ledger
from apiary_edge.predicting import model_files
from apiary_edge.releases.store import ReleaseStore, current, folder_of
from apiary_edge.transfer.outbox import Outbox


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("state")
    return folder, unpack(folder)


def test_the_journal_has_the_open_round_and_what_was_accepted(state: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = state
    journal = Journal(folder / "state" / "coordinator")
    run = journal.active_run()
    assert run is not None and run.id == expected["run"]
    rows = journal.rounds(run.id)
    assert [row.result is None for row in rows] == [False, False, True]
    assert [row.model for row in rows[:-1]] == [was["model"] for was in expected["rounds"][:-1]]
    accepted = journal.accepted(run.id, expected["cut"]["round"])
    assert len(accepted) == expected["cut"]["accepted"]
    contributors = expected["rounds"][-1]["contributors"]
    assert all(row.contributor.model_dump() == contributors[row.node] for row in accepted)
    spool = next((folder / "state" / "coordinator" / "spool").iterdir()).read_bytes()
    for row in accepted:
        aside = folder / "update"
        aside.write_bytes(spool[row.slot : row.slot + row.bytes])
        assert sha256_of(aside) == row.digest
    journal.close()


def test_an_outbox_has_its_update_and_the_round_before(state: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = state
    cut = expected["cut"]
    for node, digests in cut["outbox"].items():
        outbox = Outbox(folder / "state" / node / "outbox")
        waiting, cut_round = outbox.waiting(), (expected["run"], cut["round"])
        assert [offer.update.digest for offer in waiting] == digests
        assert all((offer.run, offer.round) == cut_round for offer in waiting)
        assert outbox.done() == (expected["run"], cut["round"] - (1 if digests else 0))
        for offer in waiting:
            part = outbox.read_part(Digest(offer.update.digest), 0, offer.update.bytes)
            assert len(part) == offer.update.bytes


def test_the_sample_store_has_its_labelled_pictures(
    state: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, expected = state
    assert main(["samples", "list", "--json", "--state-dir", str(folder / "node" / "node-1")]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {sample["id"] for sample in found} == set(expected["node"]["samples"])
    assert {sample["label"] for sample in found} == {"3"}


def test_the_installed_release_is_still_installed(state: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = state
    node = folder / "node" / "node-1"
    slot = current(node)
    assert slot is not None and slot.release == "first"
    assert sha256_of(slot.path) == slot.digest
    store = ReleaseStore(folder_of(node))
    assert store.current == slot
    book = Ledger(folder / "node" / "coordinator", ReleaseSettings()).book
    assert book.rollout is not None and book.rollout.state == "done"
    assert book.rollout.release.file.digest == slot.digest
    assert store.serial == book.serial
    chosen = model_files.chosen(node)
    assert chosen is not None and chosen.digest == slot.digest


def test_the_newest_model_is_still_described(state: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = state
    node = folder / "node" / "node-1"
    file = model_files.newest_file(node)
    # Its paths are absolute: those of the folder it was made in.
    file.write_text(file.read_text().replace(expected["node"]["state_dir"], str(node)))
    newest = model_files.newest(node)
    assert newest is not None and newest.digest == expected["rounds"][-1]["model"]
    assert sha256_of(newest.file) == newest.digest
    assert model_files.known_labels(node) == tuple("0123456789")


def test_what_guards_against_repetition_still_does(state: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = state
    earlier_s = expected["node"]["issued"] / 1000 - 3600  # the clock was set back
    marks = DiskMarks(folder / "node" / "node-1" / "marks.sqlite", lambda: earlier_s)
    assert marks.admit("coordinator", "apiary/default/round/current", 8) == 9
    assert marks.admit("alice", "apiary/default/request/alice", 4) == 3
    assert marks.issue() > expected["node"]["issued"]
    marks.close()
