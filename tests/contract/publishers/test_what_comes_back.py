"""What Edge Impulse sends back is stored only where it is the wanted program."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.publishers.parts import (
    LABELS,
    runs_here,
    settings,
)
from tests.stand_ins.eim_program import write_program

from apiary.errors import PublishError
from apiary_coordinator.publishers import edge_impulse
from apiary_coordinator.publishers._print_info import print_info
from apiary_coordinator.publishers.base import candidate


@runs_here
@pytest.mark.parametrize(
    ("fault", "says", "retry"),
    [
        ("html", "is a web page", True),
        ("empty", "is empty, expected a Linux program", True),
        ("truncated", "cut off: 32768 bytes came, its headers speak of 65536", True),
        ("armv7", "is a 32 bit program for armv7, expected 64 bit for x86_64", True),
        ("large", "is 3145728 bytes, expected at most 1048576", True),
        ("wrong_labels", "has the labels somebody, else, the run red, green, blue", False),
        ("wrong_input", "takes 10x9x3, the run's model 10x8x3", False),
        ("hang", "--print-info did not end within 1 s", False),
        ("die_at_start", r"--print-info ended with code 127: .*libexample", False),
    ],
)
def test_what_is_not_the_wanted_program_is_not_stored(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fault: str, says: str, retry: bool
) -> None:
    program = write_program(
        tmp_path / "x.eim",
        machine="armv7" if fault == "armv7" else "x86_64",
        size=3 * 2**20 if fault == "large" else 65536,
        labels=list(LABELS),
        width=10,
        height=9 if fault == "wrong_input" else 8,
        mode=fault if fault in ("wrong_labels", "hang", "die_at_start") else "",
    )
    data = {"html": b"<!doctype html>" * 9999, "empty": b""}.get(fault, program.read_bytes())
    data = data[: len(data) // 2] if fault == "truncated" else data
    limit_s = 1 if fault == "hang" else 60
    monkeypatch.setattr(edge_impulse, "print_info", lambda p: print_info(p, timeout_s=limit_s))
    with pytest.raises(PublishError, match=says) as caught:
        edge_impulse._store(candidate(run, "float32"), settings(run, max_mb=1).publish, data, tmp_path)
    assert caught.value.retry == retry
    assert not list(run.glob("*.eim"))


def test_other_targets_come_as_archives(run: Path, tmp_path: Path) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("library/model.h", "x" * 5000)
    chosen = settings(run, target="zip").publish
    told = edge_impulse._store(candidate(run, "float32"), chosen, buffer.getvalue(), tmp_path)
    assert list(told["files"]) == ["model-zip.zip"]
    for data in (buffer.getvalue()[:-30], b"<html>", b""):
        with pytest.raises(PublishError, match="is not a whole zip archive"):
            edge_impulse._store(candidate(run, "float32"), chosen, data, tmp_path)
    broken = bytearray(buffer.getvalue())
    broken[60] ^= 1
    with pytest.raises(PublishError, match=r"model.h in the archive is damaged"):
        edge_impulse._store(candidate(run, "float32"), chosen, bytes(broken), tmp_path)
