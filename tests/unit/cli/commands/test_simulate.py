"""`apiary simulate`: what cannot be simulated is refused before anything is built, and leaves no folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apiary_cli import main as cli
from apiary_cli.datasets.partition import materialise


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[int, str]:
    code = cli.main(["simulate", *words, "--runs-dir", str(folder / "runs")])
    left = list((folder / "runs").glob(".simulate-*")) if (folder / "runs").exists() else []
    assert left == []
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["digits", "--nodes", "0"], 2, "--nodes 0: expected 1 to 20000"),
        (["digits", "--nodes", "20001"], 2, "--nodes 20001: expected 1 to 20000"),
        (["digits", "--jobs", "0"], 2, "--jobs 0: expected 1 to 256"),
        (["digits", "--pace", "0"], 2, "--pace: pace_s is '0.0': Input should be greater than 0"),
        (["digits", "--pace", "nan"], 2, "--pace: pace_s is 'nan'"),
        (["digits", "--drop-out", "1"], 2, "--drop-out: drop_out is '1.0'"),
        (["digits", "--link-spread", ".5"], 2, "--link-spread: link_spread is '0.5'"),
        (["digits", "--each", "5", "--by", "shards"], 2, "not by shards"),
        (["digits", "--nodes", "5000"], 3, "samples cannot give 5000 nodes at least 1 each"),
        (["digits", "--nodes", "3", "--each", "9999"], 3, "cannot give a node 9999"),
        (["nowhere"], 3, "nowhere is no folder here"),
        (["digits", "--profile", "gone.json"], 2, "gone.json"),
        (["digits", "--set", "run.min_nodes=50", "--nodes", "5"], 2, "the simulated fleet has 5 nodes"),
        (["digits", "--set", "run.rounds=0"], 2, "run.rounds"),
        (["digits", "--strategy", "fedmagic", "--nodes", "3"], 2, "fedmagic"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_simulated_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], code: int, why: str
) -> None:
    got, err = refused(capsys, tmp_path, *words, *([] if "--limit" in words else ["--limit", "100"]))
    assert got == code
    assert why in err


def test_shares_on_disk_are_not_shared_out_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    materialise("digits", tmp_path / "shares", nodes=2, limit=40)
    code, err = refused(capsys, tmp_path, str(tmp_path / "shares"), "--nodes", "3", "--alpha", "1")
    assert code == 3
    assert "is shared out already: leave out --nodes, --alpha" in err


def test_a_profile_with_other_labels_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    profile = tmp_path / "fleet.json"
    profile.write_text(json.dumps({"nodes": [{"id": "pi-1", "labels": {"cat": 4}}]}))
    code, err = refused(capsys, tmp_path, "digits", "--limit", "40", "--profile", str(profile))
    assert code == 3
    assert "node pi-1 of the profile has the label 'cat'" in err
