"""`apiary predictions`: the page's address for its owner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apiary_cli.main import main
from apiary_edge.web.token import load_or_make

ON = ["--set", "edge.predict.enabled=true"]


def test_it_prints_the_address_with_the_owners_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predictions", "--state-dir", str(tmp_path), *ON]
    token = load_or_make(tmp_path)
    assert main(command) == 0
    assert capsys.readouterr().out == f"predictions page: http://127.0.0.1:4912/predictions/?token={token}\n"
    assert main([*command, "--json", "--set", "edge.page.host=::1"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "address": "http://[::1]:4912/predictions/",
        "token": token,
    }


def test_where_no_node_ran_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predictions", "--state-dir", str(tmp_path / "none"), *ON]) == 3
    assert "no node has served its page from there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "set edge.predict.enabled = true"),
        ([*ON, "--set", "edge.page.port=0"], "the log of apiary edge"),
    ],
)
def test_where_there_is_no_page_it_says_what_to_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], why: str
) -> None:
    assert main(["predictions", "--state-dir", str(tmp_path), *flags]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "labelling.token").exists()
