from __future__ import annotations

from pathlib import Path

import pytest

from apiary.errors import StoreError
from apiary.identity.replay_guard import AHEAD_MS, RETRY_MS, DiskMarks


def test_marks_outlive_the_process(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "deep" / "marks.sqlite", lambda: 0.0)
    assert [marks.admit("hive", "t", n) for n in (5, 4, 9, 9)] == [0, 5, 5, 9]
    assert marks.admit("pi", "t", 1) == 0
    # As a kill leaves it: not closed.
    again = DiskMarks(tmp_path / "deep" / "marks.sqlite", lambda: 0.0)
    assert again.admit("hive", "t", 1) == 9
    assert again.admit("hive", "u", 1) == 0


def test_marks_are_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "m", lambda: 0.0, max_marks=3)
    for n in (4, 1, 3, 2):
        marks.admit("hive", f"t{n}", n)
    assert [marks.admit("hive", f"t{n}", n) for n in (4, 3, 2)] == [4, 3, 2]
    assert marks.admit("hive", "t1", 1) == 0


def test_the_counter_follows_the_clock_and_never_goes_back(tmp_path: Path) -> None:
    now = [1_000.0]
    marks = DiskMarks(tmp_path / "m", lambda: now[0])
    assert [marks.issue(), marks.issue()] == [1_000_000, 1_000_001]
    now[0] = 10.0
    assert marks.issue() == 1_000_002
    now[0] = 2_000.0
    last = marks.issue()
    assert last == 2_000_000
    # Killed, and the clock came up in 1970: still larger than anything said before, by a minute at most.
    now[0] = 0.0
    again = DiskMarks(tmp_path / "m", lambda: now[0])
    assert last < again.issue() <= last + AHEAD_MS + 1


def test_many_restarts_with_a_dead_clock_only_go_up(tmp_path: Path) -> None:
    said = []
    for _ in range(5):
        marks = DiskMarks(tmp_path / "m", lambda: 0.0)
        said += [marks.issue() for _ in range(3)]
        marks.close()
    assert said == sorted(set(said))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(StoreError, match=r"cannot keep what was signed in .*/m"):
        DiskMarks(tmp_path / "m", lambda: 0.0)


def test_a_torn_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"not a database" * 100)
    marks = DiskMarks(path, lambda: 0.0)
    assert marks.admit("hive", "t", 1) == 0
    assert "set aside" in caplog.text
    assert (tmp_path / "m.torn").is_file()


def test_a_disk_that_refuses_the_counter_stops_nobody_from_speaking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [100.0]
    marks = DiskMarks(tmp_path / "marks.sqlite", lambda: clock[0])
    marks._db.execute("PRAGMA query_only=ON")
    assert [marks.issue(), marks.issue()] == [100_000, 100_001]
    clock[0] += RETRY_MS / 1000 + 1
    assert marks.issue() == 106_000
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]
    assert "marks.sqlite: attempt to write a readonly database" in caplog.messages[0]
    marks._db.execute("PRAGMA query_only=OFF")
    clock[0] += RETRY_MS / 1000 + 1
    assert marks.issue() == 112_000 and len(caplog.records) == 2
    marks.close()
    clock[0] = 1.0
    assert DiskMarks(tmp_path / "marks.sqlite", lambda: clock[0]).issue() >= 112_000
