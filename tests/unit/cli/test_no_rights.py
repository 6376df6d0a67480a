"""Commands of a user who may not read or write what they are given; root without its own rights stands in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOTS = "-dac_override,-dac_read_search"
AS_USER = ["setpriv", f"--bounding-set={_ROOTS}", f"--inh-caps={_ROOTS}"] if os.geteuid() == 0 else []
needs_user = pytest.mark.skipif(
    bool(AS_USER) and shutil.which("setpriv") is None, reason="root reads everything: setpriv is missing"
)


@pytest.fixture
def shut(tmp_path: Path) -> Iterator[Path]:
    """A folder of pictures by label, of which neither it nor `cat` may be read."""
    folder = tmp_path / "shut"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.png").write_bytes(b"never read")
    (folder / "cat").chmod(0)
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)
    (folder / "cat").chmod(0o700)


def said(cwd: Path, *words: str) -> tuple[int, str]:
    """Exit code and standard error of `apiary WORDS`."""
    command = [*AS_USER, sys.executable, "-m", "apiary_cli", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@needs_user
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("samples import shut", 3, "shut may not be read by this user"),
        ("edge --data shut", 3, "data folder shut may not be read by this user"),
        ("rounds shut", 8, "shut/history.jsonl: Permission denied: this user has no right there"),
        (
            "coordinator --state-dir shut/state",
            8,
            "the state folder shut/state: Permission denied",
        ),
        ("broker --state-dir shut/b --port 0", 8, "cannot use the state folder shut/b: Permission denied"),
    ],
)
def test_a_folder_that_is_shut_is_named(shut: Path, words: str, code: int, says: str) -> None:
    got, err = said(shut.parent, *words.split())
    assert got == code and says in err
    assert "Traceback" not in err


@needs_user
def test_a_label_whose_folder_is_shut_is_named(shut: Path) -> None:
    shut.chmod(0o700)
    code, err = said(shut.parent, "edge", "--data", "shut")
    assert code == 3 and "data folder shut/cat: Permission denied; let this user read it (chmod" in err
    assert "Traceback" not in err
