from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apiary.errors import StoreError
from apiary.identity.replay_guard import AHEAD_MS, RETRY_MS, DiskMarks


def test_marks_outlive_the_process(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "very" / "deep" / "marks.sqlite", lambda: 0.0)
    assert [marks.admit("hive", "t", n) for n in (5, 4, 9, 9)] == [0, 5, 5, 9]
    assert marks.admit("pi", "t", 1) == 0
    # As a kill leaves it: not closed.
    again = DiskMarks(tmp_path / "very" / "deep" / "marks.sqlite", lambda: 0.0)
    assert again.admit("hive", "t", 1) == 9
    assert again.admit("hive", "u", 1) == 0


def test_marks_are_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "m", lambda: 0.0, max_marks=3)
    for n in (4, 1, 3, 2):
        marks.admit("hive", f"t{n}", n)
    assert [marks.admit("hive", f"t{n}", n) for n in (4, 3, 2)] == [4, 3, 2]
    for _ in range(3):
        assert [marks.admit("hive", f"t{n}", n + 5) > 0 for n in (4, 3, 2)] == [True] * 3, "no new ones"
    assert marks.admit("hive", "t1", 1) == 0
    for n in range(10, 30):
        marks.admit("hive", f"t{n}", n, key="k", since=1)
    assert [marks.admit("hive", f"t{n}", n, key="k", since=1) for n in (29, 28, 27)] == [29, 28, 27]
    assert [rows(marks, table) for table in ("mark", "certified")] == [3, 3]


def rows(marks: DiskMarks, table: str) -> int:
    (count,) = marks._db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    return int(count)


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
    for times in (1, 3, 1, 1, 3):
        marks = DiskMarks(tmp_path / "m", lambda: 0.0)
        said += [marks.issue() for _ in range(times)]
        marks.close()
    assert said == sorted(set(said))


@pytest.mark.parametrize("clock", [-5.0, -3.0 * 86_400])
def test_a_clock_before_1970_numbers_from_0(clock: float) -> None:
    assert DiskMarks(None, lambda: clock).issue() == 0


def test_a_clock_that_is_right_restarts_above_a_long_life(tmp_path: Path) -> None:
    now = [1_000.0]
    marks = DiskMarks(tmp_path / "m", lambda: now[0])
    for _ in range(20):
        now[0] += 61.0
        last = marks.issue()
    assert rows(marks, "counter") == 1
    now[0] -= 3600.0
    assert DiskMarks(tmp_path / "m", lambda: now[0]).issue() > last


def test_a_number_that_is_a_day_ahead_to_the_millisecond_counts(tmp_path: Path) -> None:
    now = [200.0 * DAY_S]
    last = DiskMarks(tmp_path / "m", lambda: now[0]).issue()
    now[0] += AHEAD_MS / 1000 - DAY_S
    assert DiskMarks(tmp_path / "m", lambda: now[0]).issue() > last


def test_what_is_said_and_heard_again_writes_nothing(tmp_path: Path) -> None:
    """A node writes its card less: the counter once a minute, a mark where it is newer."""
    marks = DiskMarks(tmp_path / "m", lambda: 100.0)
    marks.issue()
    marks.admit("pi", "t", 9, key="a", since=10)
    done: list[str] = []
    marks._db.set_trace_callback(done.append)
    assert marks.issue() == 100_001
    marks.admit("pi", "t", 9, key="a", since=10)
    assert [s for s in done if not s.strip().startswith("SELECT")] == []
    marks.admit("pi", "t", 10, key="a", since=10)
    (written,) = [s for s in done if not s.strip().startswith("SELECT")]
    assert written.startswith("INSERT OR REPLACE INTO mark")


def test_a_mark_and_its_key_are_written_together(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "m", lambda: 100.0)
    done: list[str] = []
    marks._db.set_trace_callback(done.append)
    marks.admit("pi", "t", 9, key="a", since=10)
    begin, commit = done.index("BEGIN"), done.index("COMMIT")
    assert [s.split()[4] for s in done[begin + 1 : commit]] == ["mark", "certified"]


def test_the_file_takes_many_small_writes(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "m", lambda: 100.0)
    assert marks._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    normal = 1
    assert marks._db.execute("PRAGMA synchronous").fetchone() == (normal,)


def test_who_is_closed_takes_no_more(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "m", lambda: 100.0)
    marks.close()
    with pytest.raises(StoreError, match=r"cannot keep what was signed in .*/m: "):
        marks.admit("pi", "t", 9)


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


def test_what_belonged_to_a_torn_file_is_not_taken_for_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "m"
    DiskMarks(path, lambda: 0.0).close()
    marks = DiskMarks(path, lambda: 0.0)
    marks.admit("hive", "t", 9)
    left = {name: (tmp_path / name).read_bytes() for name in ("m-wal", "m-shm")}
    marks.close()
    for name, data in left.items():
        (tmp_path / name).write_bytes(data)
    path.write_bytes(b"not a database" * 1000)
    assert DiskMarks(path, lambda: 0.0).admit("hive", "t", 1) == 0


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


DAY_S = 86_400


def test_a_key_that_was_certified_later_begins_anew_and_the_one_before_does_not_come_back(
    tmp_path: Path,
) -> None:
    marks = DiskMarks(tmp_path / "m", lambda: 100.0)
    old: dict[str, Any] = {"key": "a", "since": 10}
    new: dict[str, Any] = {"key": "b", "since": 20}
    assert marks.admit("pi", "t", 50_000, **old) == 0
    assert marks.admit("pi", "t", 7, **new) == 0  # lower, and counts
    assert marks.admit("pi", "t", 6, **new) == 7
    marks.close()
    again = DiskMarks(tmp_path / "m", lambda: 100.0)
    assert again.admit("pi", "t", 6, **old) == 7
    assert again.admit("pi", "t", 6, **new) == 7
    # The same key with a new certificate goes on where it was.
    assert again.admit("pi", "t", 6, key="b", since=30) == 7
    # Certified within the same second, or by an authority whose clock was set back: the number decides.
    for since in (20, 5):
        assert again.admit("pi", "t", 6, key="c", since=since) == 7
    assert again.admit("pi", "t", 8, key="c", since=5) == 7


def test_marks_of_the_version_before_count_for_every_key(tmp_path: Path) -> None:
    marks = DiskMarks(tmp_path / "m", lambda: 100.0)
    marks.admit("pi", "t", 9)
    assert marks.admit("pi", "t", 8, key="a", since=10) == 9
    assert marks.admit("pi", "t", 10, key="a", since=10) == 9
    assert marks.admit("pi", "t", 3, key="b", since=11) == 0


def test_a_mark_from_the_far_future_binds_nobody(tmp_path: Path) -> None:
    """The version before took it, or this machine's own clock was ahead then."""
    now = [200.0 * DAY_S]
    marks = DiskMarks(tmp_path / "m", lambda: now[0])
    marks.admit("pi", "t", int(now[0] * 1000), key="a", since=1)
    now[0] = 20.0 * DAY_S
    here = int(now[0] * 1000)
    assert marks.admit("pi", "t", here, key="a", since=1) == 0
    assert marks.admit("pi", "t", here - 1, key="a", since=1) == here
    # Within a day both clocks can be meant.
    marks.admit("pi", "u", here + DAY_S * 1000)
    assert marks.admit("pi", "u", here) == here + DAY_S * 1000


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_was_far_ahead_and_is_right_again_speaks_at_once(tmp_path: Path, restart: bool) -> None:
    now = [200.0 * DAY_S]
    marks = DiskMarks(tmp_path / "m", lambda: now[0])
    marks.issue()
    now[0] = 20.0 * DAY_S
    if restart:
        marks.close()
        marks = DiskMarks(tmp_path / "m", lambda: now[0])
    said = [marks.issue() for _ in range(3)]
    assert said == [int(now[0] * 1000) + n for n in range(3)]
    # From here on it never goes back, over restarts too.
    marks.close()
    now[0] -= 3600
    assert DiskMarks(tmp_path / "m", lambda: now[0]).issue() > said[-1]


def test_a_clock_that_was_dead_for_a_while_loses_no_number(tmp_path: Path) -> None:
    now = [200.0 * DAY_S]
    marks = DiskMarks(tmp_path / "m", lambda: now[0])
    last = marks.issue()
    for dead in (0.0, 5.0, 0.0):
        marks.close()
        now[0] = dead
        marks = DiskMarks(tmp_path / "m", lambda: now[0])
        assert marks.issue() < last
    marks.close()
    now[0] = 200.0 * DAY_S - 3600  # set again, an hour too early
    assert DiskMarks(tmp_path / "m", lambda: now[0]).issue() > last


def test_a_clock_that_jumps_about_fills_no_disk(tmp_path: Path) -> None:
    now = [0.0]
    marks = DiskMarks(tmp_path / "m", lambda: now[0])
    for day in range(400, 0, -4):
        now[0] = day * DAY_S
        marks.issue()
    assert marks._db.execute("SELECT count(*) FROM counter").fetchone()[0] == 8


def test_how_far_messages_are_numbered_is_on_the_disk_before_the_first_is_said(tmp_path: Path) -> None:
    """With less than a full sync the power takes it, and a clock of yesterday numbers from there again."""
    marks = DiskMarks(tmp_path / "m", lambda: 100.0)
    done: list[str] = []
    marks._db.set_trace_callback(done.append)
    marks.issue()
    begin, commit = done.index("BEGIN"), done.index("COMMIT")
    assert [s for s in done[:begin] if "synchronous" in s] == ["PRAGMA synchronous=FULL"]
    assert any(s.startswith("INSERT INTO counter") for s in done[begin:commit])
    assert "synchronous" not in " ".join(done[begin:commit])
    assert done[-1] == "PRAGMA synchronous=NORMAL", "marks, which may be lost, are not worth a sync each"
