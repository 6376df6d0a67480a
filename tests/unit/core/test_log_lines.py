"""A record is one line, whatever was sent to us."""

from __future__ import annotations

import logging
import sys

from apiary.log_lines import LogLines


def record(text: str, *args: object, broken: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("a\x1b[2J\nb")
    except ValueError:
        return logging.LogRecord(
            "apiary", logging.INFO, "", 0, text, args, sys.exc_info() if broken else None
        )


def test_a_text_of_a_peer_begins_no_line_and_controls_no_terminal() -> None:
    line = LogLines("%(levelname)s %(message)s").format(record("node=%s %s", "pi-1", "\x1b[2J\nINFO forged"))
    assert line == r"INFO node=pi-1 \x1b[2J\nINFO forged"


def test_a_traceback_has_its_lines_and_nothing_else() -> None:
    lines = LogLines("%(message)s").format(record("it broke", broken=True)).splitlines()
    assert lines[:2] == ["it broke", "Traceback (most recent call last):"]
    assert "\x1b" not in "".join(lines) and r"ValueError: a\x1b[2J" in lines
