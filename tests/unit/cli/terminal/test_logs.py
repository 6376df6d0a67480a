"""The log as JSON lines: always the same keys, whatever is logged."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apiary_cli.terminal.logs import OURS, JsonLines, to_stderr

KEYS = {"time", "level", "logger", "message", "fields", "error"}


def line(text: str, *args: Any, exc_info: Any = None) -> dict[str, Any]:
    record = logging.LogRecord("apiary_edge.service", logging.INFO, "", 0, text, args, exc_info)
    text_line = JsonLines().format(record)
    assert "\n" not in text_line
    found: dict[str, Any] = json.loads(text_line)
    assert set(found) == KEYS
    return found


def test_pairs_of_a_message_are_fields() -> None:
    found = line("node=%s round=%d trained samples=%d loss=%.4f, seconds=%.1f", "pi-1", 3, 40, 0.5, 2.0)
    assert found["fields"] == {
        "node": "pi-1",
        "round": 3,
        "samples": 40,
        "loss": 0.5,
        "seconds": 2.0,
    }
    assert found["message"] == "node=pi-1 round=3 trained samples=40 loss=0.5000, seconds=2.0"
    assert (found["level"], found["logger"], found["error"]) == ("INFO", "apiary_edge.service", None)
    assert found["time"].endswith("+00:00")


def test_fields_come_from_the_call_and_not_from_what_was_sent() -> None:
    assert line("node=%s 100%% refused: %s", "pi-1", "round=3 x=1")["fields"] == {"node": "pi-1"}
    assert line("%s of run=%s", 1, Path("a"))["fields"] == {"run": "a"}
    assert line("loss=%.4f why=%s", float("nan"), None)["fields"] == {"loss": "nan", "why": None}
    assert line("run=%s")["fields"] == {}


@pytest.mark.parametrize("text", ["", "two\nlines", "a \x00 and \ud800", "x" * 10_000, "100%", '{"a": 1}'])
def test_whatever_is_logged_is_one_line(text: str) -> None:
    assert line("%s", text)["message"] == text


def test_an_exception_is_in_error() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        found = line("failed", exc_info=sys.exc_info())
    assert found["error"].splitlines()[-1] == "ValueError: no"


def test_a_command_that_fails_says_so_in_the_same_form(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "apiary_cli",
            "edge",
            "--log-format",
            "json",
            "--data",
            str(tmp_path / "none"),
        ],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("APIARY_")},
    )
    assert done.returncode == 3
    lines = [json.loads(text) for text in done.stderr.splitlines()]
    assert lines and all(set(x) == KEYS for x in lines)
    assert lines[-1]["level"] == "ERROR" and str(tmp_path / "none") in lines[-1]["message"]


def test_a_command_sets_levels_here() -> None:
    to_stderr(verbose=False)
    assert logging.getLogger(OURS[0]).level == logging.INFO


def test_and_the_next_test_has_none_of_them() -> None:
    assert logging.getLogger(OURS[0]).level == logging.NOTSET
