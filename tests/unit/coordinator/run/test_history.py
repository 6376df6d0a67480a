"""`history.jsonl` grows by a line a round, survives a torn last one, and says what the journal says."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apiary.errors import DataError, StoreError
from apiary.settings import Settings
from apiary_coordinator.report.history_file import NAME, HistoryFile, read_history
from apiary_coordinator.run.history import RunHistory


def entry(number: int, accuracy: float) -> dict[str, Any]:
    return {
        "round": number,
        "state": "closed",
        "accuracy": accuracy,
        "loss": 1 - accuracy,
        "contributors": {"pi-1": {"samples": 5, "bytes": 100, "seconds": 1.0}},
        "bytes_up": 100,
        "bytes_down": 100,
        "shares": {"pi-1": {"samples": 5 + number}},
    }


def record(folder: Path, *rounds: dict[str, Any]) -> RunHistory:
    """A record of these rounds, which the journal has; what is added later is journaled first."""
    settings = Settings.model_validate({"coordinator": {"runs_dir": folder}})
    journaled = list(rounds)
    made = RunHistory("run", 1.0, settings, lambda: iter(journaled))
    made.labels, made.initial = ("a", "b"), {"accuracy": 0.5, "loss": 0.7}
    made.resume()
    add = made.add

    def journal_and_add(entry: dict[str, Any]) -> None:
        journaled.append(entry)
        add(entry)

    made.add = journal_and_add  # type: ignore[method-assign]  # of this one only
    return made


def test_rounds_are_appended_and_read_back_as_one_record(tmp_path: Path) -> None:
    writing = record(tmp_path)
    writing.begin()
    assert not (tmp_path / "run").exists()
    writing.add(entry(1, 0.6))
    begun = (tmp_path / "run" / NAME).read_bytes()
    writing.add(entry(2, 0.9))
    writing.add(entry(3, 0.7))
    told = read_history(tmp_path / "run")
    assert [r["accuracy"] for r in told["rounds"]] == [0.6, 0.9, 0.7]
    assert (told["best_round"], told["stop"], told["labels"]) == (2, None, ["a", "b"])
    assert told["nodes"] == {"pi-1": {"samples": 8}}
    writing.stop = "3 rounds"
    writing.finish("ab", 9.0, {})
    data = (tmp_path / "run" / NAME).read_bytes()
    assert data.startswith(begun)
    assert read_history(tmp_path / "run")["stop"] == "3 rounds"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best_round"] == 2
    kinds = [json.loads(line)["kind"] for line in data.splitlines()]
    assert kinds == ["run", "round", "round", "round", "end"]


def test_a_rise_of_the_loss_is_measured_from_the_lowest_of_the_last_five_rounds(tmp_path: Path) -> None:
    writing = record(tmp_path)
    writing.begin()
    assert writing.loss_before == 0.7, "before the first round it is the untrained model's"
    for number, accuracy in enumerate((0.5, 0.9, 0.6, 0.7, 0.8), start=1):
        writing.add(entry(number, accuracy))
    writing.add({**entry(6, 0.99), "state": "failed"})
    assert writing.loss_before == pytest.approx(0.1)
    writing.add(entry(7, 0.6))
    assert writing.loss_before == pytest.approx(0.1)
    writing.add(entry(8, 0.6))
    assert writing.loss_before == pytest.approx(0.2), "the best was six rounds ago"


def test_the_end_is_written_once_and_costs_no_look_at_the_rounds(tmp_path: Path) -> None:
    """The loop says it, and a run of a large fleet has hundreds of megabytes."""
    writing = record(tmp_path, entry(1, 0.6))
    writing.begin()
    writing.add(entry(2, 0.9))
    writing.stop = "2 rounds"
    writing._results = lambda: iter(())
    writing.end()
    writing.end()
    data = (tmp_path / "run" / NAME).read_bytes()
    assert [json.loads(line)["kind"] for line in data.splitlines()] == ["run", "round", "round", "end"]
    # Killed before the journal said that it is over, and told to stop for another reason meanwhile.
    again = record(tmp_path, entry(1, 0.6), entry(2, 0.9))
    again.stop = "stopped by operator anna"
    again.end()
    assert read_history(tmp_path / "run")["stop"] == "stopped by operator anna"
    assert (tmp_path / "run" / NAME).read_bytes().count(b'"end"') == 1


def test_what_is_in_memory_of_a_round_does_not_grow_with_the_fleet(tmp_path: Path) -> None:
    writing = record(tmp_path)
    many = {f"pi-{i}": {"samples": 1, "bytes": 1, "seconds": float(i)} for i in range(500)}
    for number in range(1, 6):
        one = {**entry(number, 0.5), "contributors": many, "shares": many, "node_metrics": many}
        writing.add(one)
    assert max(len(json.dumps(r)) for r in writing.rounds) < 200
    assert [len(pace) for pace in writing.paces] == [500] * 3
    assert writing.newest is not None and len(writing.newest["contributors"]) == 500
    assert writing.finish("ab", 9.0, {})["nodes"] == 500


def test_of_what_nodes_measured_the_last_is_read_back(tmp_path: Path) -> None:
    writing = record(tmp_path)
    for number, nodes in enumerate((("a", "b"), ("b",), ("b", "c")), 1):
        metrics = {node: {"accuracy": number / 10} for node in nodes}
        writing.add({**entry(number, 0.5), "node_metrics": metrics})
    told = read_history(tmp_path / "run")
    assert [r["node_metrics"] for r in told["rounds"]] == [
        {"a": {"accuracy": 0.1}},
        {},
        {"b": {"accuracy": 0.3}, "c": {"accuracy": 0.3}},
    ]
    assert all("shares" not in r for r in told["rounds"]) and told["nodes"] == {"pi-1": {"samples": 8}}


def test_cut_at_any_byte_it_is_read_and_made_whole_at_the_next_start(tmp_path: Path) -> None:
    whole = record(tmp_path, entry(1, 0.6), entry(2, 0.9))
    whole.begin()
    path = tmp_path / "run" / NAME
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(0, len(data), 3):
        path.write_bytes(data[:cut])
        if cut < first:
            with pytest.raises(DataError, match="its first line"):
                read_history(path.parent)
        else:
            assert len(read_history(path.parent)["rounds"]) == data[:cut].count(b"\n") - 1
        if cut % 60 == 0:
            whole.begin()
            assert path.read_bytes() == data


@pytest.mark.parametrize("garbage", [b"garbage\n", b"", b"{}\n"])
def test_what_the_journal_does_not_say_goes(tmp_path: Path, garbage: bytes) -> None:
    """A journal from a backup has fewer rounds than the file; a damaged file has none that hold."""
    longer = record(tmp_path, entry(1, 0.6), entry(2, 0.9))
    longer.begin()
    path = tmp_path / "run" / NAME
    path.write_bytes(garbage + path.read_bytes())
    record(tmp_path, entry(1, 0.6)).begin()
    assert [r["round"] for r in read_history(path.parent)["rounds"]] == [1]


def test_a_line_that_the_disk_refused_comes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writing = record(tmp_path, entry(1, 0.6))
    writing.begin()
    real = os.pwrite

    def full(fd: int, data: bytes, at: int) -> int:
        real(fd, bytes(data[:10]), at)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        writing.add(entry(2, 0.9))
    assert "it is written with the next round" in caplog.text
    assert [r["round"] for r in read_history(tmp_path / "run")["rounds"]] == [1]
    writing.add(entry(3, 0.9))
    assert [r["round"] for r in read_history(tmp_path / "run")["rounds"]] == [1, 2, 3]


def test_a_refused_line_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = HistoryFile(tmp_path)
    file.hold(lambda: [{"kind": "run", "run": "r"}])
    before = (tmp_path / NAME).read_bytes()

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreError, match=r"cannot write .*history.jsonl: Input/output error"):
            file.add({"kind": "round", "round": 1})
    assert (tmp_path / NAME).read_bytes() == before
