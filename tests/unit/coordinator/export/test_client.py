"""An export whose child was killed is started again, a few times; one that failed by itself is not."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from apiary.errors import ExportError
from apiary.wire.messages import Plan
from apiary_coordinator.export import client
from apiary_coordinator.export.client import (
    MAX_KEPT,
    MAX_KILLED,
    _run_once,
    build_in_child,
    run_again_where_killed,
)
from apiary_coordinator.export.job import BuildJob, seal

CHILD = """
import os, pathlib, signal, sys
from apiary_coordinator.export.job import seal
out, deaths = pathlib.Path(sys.argv[1]), int(sys.argv[2])
tries = out / "tries"
tries.write_text((tries.read_text() if tries.exists() else "") + "x")
if len(tries.read_text()) <= deaths:
    os.kill(os.getpid(), int(sys.argv[3]))
seal(out, ["tries"])
"""


def export(out: Path, deaths: int, by: int, pauses: list[float]) -> int:
    """How often the child was started, of which the first `deaths` end by this signal."""
    command = [sys.executable, "-c", CHILD, str(out), str(deaths), str(by)]
    run_again_where_killed(partial(_run_once, "build", command, out, 60.0), pauses.append)
    return len((out / "tries").read_text())


def test_a_killed_child_is_started_again_after_a_pause(tmp_path: Path) -> None:
    pauses: list[float] = []
    assert export(tmp_path, MAX_KILLED - 1, 9, pauses) == MAX_KILLED
    assert len(pauses) == MAX_KILLED - 1
    assert min(pauses) > 0


def test_one_that_is_killed_each_time_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"ended by signal 9 \(out of memory\?\)"):
        export(tmp_path, MAX_KILLED, 9, [])
    assert (tmp_path / "tries").read_text() == "x" * MAX_KILLED


def test_one_that_crashed_of_itself_is_not_started_again(tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(ExportError, match="by signal 6"):
        export(tmp_path, 1, 6, pauses)
    assert pauses == []
    assert (tmp_path / "tries").read_text() == "x"


def test_kept_builds_are_bounded_and_the_one_used_longest_ago_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with another seed is another build: a coordinator that stays up for years keeps some."""
    built: list[int] = []

    def build(task: str, job: BuildJob, out: Path, *_: object) -> None:
        built.append(job.seed)
        (out / "trainer.tflite").write_bytes(b"%d" % job.seed)
        seal(out, ["trainer.tflite"])

    monkeypatch.setattr(client, "_run", build)
    monkeypatch.setattr(client, "read_build", lambda folder: None)
    cache = tmp_path / "exports"

    def want(seed: int) -> None:
        job = BuildJob(recipe="edge_cnn", labels=["a", "b"], plan=Plan(), seed=seed, out=tmp_path / "build")
        build_in_child(job, cache=cache)
        for age, folder in enumerate(sorted(cache.iterdir(), key=lambda p: p.stat().st_mtime)):
            os.utime(folder, (age, age))  # ages that no clock's resolution blurs, all in the past

    for seed in range(MAX_KEPT):
        want(seed)
    want(0)
    want(MAX_KEPT)
    assert len(list(cache.iterdir())) == MAX_KEPT
    assert built == [*range(MAX_KEPT), MAX_KEPT]
    want(0)
    assert built[-1] == MAX_KEPT, "it was used later than the others, and is still there"
    want(1)
    assert built[-1] == 1, "it had gone"
