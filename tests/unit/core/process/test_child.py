"""Child processes: what they print is read, and they end with everything they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apiary.process.child import (
    MAX_LINE_BYTES,
    ChildProcess,
    ProcessLimits,
    end,
    how_ended,
    light_environment,
    run_to_end,
    start,
)

WAIT_S = 20.0


def python(code: str) -> list[str]:
    return [sys.executable, "-uc", code]


def numbers(line: bytes) -> int | None:
    return int(line) if line.strip().isdigit() else None


@contextmanager
def child(code: str, *, job: bytes | None = None, separate: bool = False) -> Iterator[ChildProcess[int]]:
    process = start(
        python(code),
        stdin=subprocess.DEVNULL if job is None else subprocess.PIPE,
        stderr=subprocess.PIPE if separate else subprocess.STDOUT,
    )
    made = ChildProcess(process, numbers, job=job or b"")
    try:
        yield made
    finally:
        made.end()


def all_of(made: ChildProcess[int]) -> list[int]:
    return [number for batch in made.batches(0.05) for number in batch]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waited for has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_lines_are_parsed_and_the_last_others_are_kept() -> None:
    with child("for i in range(9): print(i); print('noise', i)") as made:
        assert all_of(made) == list(range(9))
        assert made.poll() == 0
        assert made.printed == " | ".join(f"noise {i}" for i in range(4, 9))


@pytest.mark.parametrize("separate", [False, True])
def test_standard_error_is_never_parsed_where_it_is_a_pipe_of_its_own(separate: bool) -> None:
    with child("import sys; print(1); print(2, file=sys.stderr)", separate=separate) as made:
        assert all_of(made) == ([1] if separate else [1, 2])
        assert made.printed == ("2" if separate else "")


def test_a_line_without_end_comes_in_parts() -> None:
    parts: list[int] = []

    def size(line: bytes) -> int:
        parts.append(len(line))
        return len(line)

    process = start(python(f"print('x' * {2 * MAX_LINE_BYTES}, end='')"))
    made = ChildProcess(process, size)
    assert sum(all_of(made)) == sum(parts) == 2 * MAX_LINE_BYTES
    assert max(parts) == MAX_LINE_BYTES
    made.end()


def test_a_job_is_written_and_one_that_nobody_reads_is_no_error() -> None:
    with child("import sys; print(len(sys.stdin.read()))", job=b"x" * 100_000) as made:
        assert all_of(made) == [100_000]
    with child("print(1)", job=b"x" * 1_000_000) as made:
        assert all_of(made) == [1]


def test_the_loop_is_woken_for_a_line_and_at_the_end() -> None:
    woken = threading.Event()
    made = ChildProcess(start(python("print(1); input()"), stdin=subprocess.DEVNULL), numbers, wake=woken.set)
    assert woken.wait(WAIT_S)
    until = time.monotonic() + WAIT_S
    while made.poll() is None and time.monotonic() < until:
        woken.wait(WAIT_S)
    assert made.poll() == 1 and made.collect() == [1]
    assert "EOFError" in made.printed


def test_a_child_has_time_to_end_and_no_more() -> None:
    kind = "import signal, time, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print(1)"
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1)"
    for code, grace_s, ended in ((kind, WAIT_S, 5), (deaf, 0.2, -9), (kind, 0.0, -9)):
        with child(f"{code}\ntime.sleep(600)") as made:
            assert next(b for b in made.batches() if b) == [1]
            assert end(made.process, grace_s) == ended


def test_a_frozen_child_is_ended() -> None:
    with child("import time; print(1); time.sleep(600)") as made:
        assert next(b for b in made.batches() if b) == [1]
        made.signal(signal.SIGSTOP)
    assert made.process.returncode == -signal.SIGKILL


def test_what_a_child_has_started_ends_with_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)\n"
        "time.sleep(600)"
    )
    with child(code) as made:
        (grandchild,) = next(b for b in made.batches() if b)
        assert not gone(grandchild)
    until = time.monotonic() + WAIT_S
    while not gone(grandchild) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(grandchild)


def test_a_run_has_a_code_and_last_words_and_a_limit() -> None:
    assert run_to_end(python("print('one'); raise SystemExit('two')"), timeout_s=WAIT_S) == (1, "one | two")
    assert run_to_end(python("import time; time.sleep(600)"), timeout_s=0.2) == (None, "")
    with pytest.raises(OSError, match="no-such-program"):
        run_to_end(["/no-such-program"], timeout_s=1)


def test_limits_hold_in_the_child() -> None:
    code = (
        "import os, resource\n"
        "print(os.nice(0), len(os.sched_getaffinity(0)), *resource.getrlimit(resource.RLIMIT_FSIZE),"
        " *resource.getrlimit(resource.RLIMIT_CORE), os.getsid(0) == os.getpid())"
    )
    process = start(python(code), limits=ProcessLimits(nice=3, max_cores=1, max_file_bytes=4096))
    printed, _ = process.communicate(timeout=WAIT_S)
    assert printed.split() == f"{min(19, os.nice(0) + 3)} 1 4096 4096 0 0 True".encode().split()


def test_a_light_environment_leaves_what_the_owner_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    environment = light_environment(MALLOC_ARENA_MAX="1")
    assert environment["OMP_NUM_THREADS"] == environment["MALLOC_ARENA_MAX"] == "1"
    assert environment["OPENBLAS_NUM_THREADS"] == "3"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with code 0"), (3, "ended with code 3"), (-6, "was ended by signal 6"),
     (-9, "was ended by signal 9 (out of memory?)")],
)  # fmt: skip
def test_how_it_ended_in_words(code: int, words: str) -> None:
    assert how_ended(code) == words
