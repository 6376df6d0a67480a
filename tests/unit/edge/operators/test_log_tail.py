"""The last lines of a node's log: bounded, and without where pictures lie."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from apiary_edge.operators.log_tail import LogTail


def say(tail: LogTail, text: str) -> None:
    tail.emit(logging.LogRecord("apiary_edge", logging.INFO, "", 0, text, None, None))


def words(tail: LogTail, lines: int = 100, max_bytes: int = 10**6) -> list[str]:
    return [line.split(" INFO ", 1)[-1] for line in tail.tail(lines, max_bytes)]


def test_the_last_lines_oldest_first() -> None:
    tail = LogTail()
    for i in range(10):
        say(tail, f"line {i}")
    assert words(tail, 3) == ["line 7", "line 8", "line 9"]
    assert words(tail, 0) == []


def test_what_is_kept_and_what_is_told_are_bounded_in_bytes() -> None:
    tail = LogTail(max_bytes=1000)
    for i in range(1000):
        say(tail, f"äö {i}")
    kept = tail.tail(10_000)
    assert kept[-1].endswith("äö 999")
    assert 900 < sum(len(line.encode()) + 1 for line in kept) <= 1000
    told = tail.tail(10_000, 200)
    assert told[-1].endswith("äö 999")
    assert sum(len(line.encode()) + 1 for line in told) <= 200


def test_a_long_line_is_cut() -> None:
    tail = LogTail()
    say(tail, "x" * 5000)
    assert len(tail.tail(1)[0]) == 1000


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("/srv/pictures/anna smith/001.jpg: left out", "001.jpg: left out"),
        ("cannot read /home/pi/photos/cat/17.PNG", "cannot read 17.PNG"),
        ("path=/home/pi/photos/cat/17.png bytes=3", "path=17.png bytes=3"),
        ("'photos/cat/17.jpeg' is torn", "'17.jpeg' is torn"),
        ("cannot read /home/pi/photos/cat/IMG_1.HEIC", "cannot read IMG_1.HEIC"),
        ("cannot read /home/pi/photos/cat/a.jfif", "cannot read a.jfif"),
        ("round=3 broker 127.0.0.1:1883", "round=3 broker 127.0.0.1:1883"),
        ("cannot write state/edge/outbox/x.json", "cannot write state/edge/outbox/x.json"),
    ],
)
def test_of_a_pictures_path_the_name_is_kept(said: str, kept: str) -> None:
    tail = LogTail([Path("/srv/pictures")])
    say(tail, said)
    assert words(tail) == [kept]


def test_a_traceback_is_lines() -> None:
    tail = LogTail()
    try:
        raise ValueError("it broke")
    except ValueError:
        record = logging.LogRecord("apiary", logging.ERROR, "", 0, "bug", (), sys.exc_info())
    tail.emit(record)
    lines = tail.tail(50)
    assert lines[0].endswith(" ERROR bug") and lines[-1] == "ValueError: it broke"


def test_a_text_of_a_peer_begins_no_line_of_its_own() -> None:
    tail = LogTail()
    say(tail, "one\ntwo \x1b[2J")
    assert [line.split(" INFO ")[-1] for line in tail.tail(5)] == [r"one\ntwo \x1b[2J"]
