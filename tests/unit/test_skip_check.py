"""A skip that nobody allowed fails a session, one that is in the list does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.places import ROOT
from tests.skips import ALLOWED, AllowedSkip, why_allowed

SKIPPED = "import pytest\n\n\ndef test_it():\n    pytest.skip('it is not installed')\n"
SKIPPED_AS_A_WHOLE = "import pytest\n\npytest.importorskip('no_such_package')\n"
EXPECTED_TO_FAIL = "import pytest\n\n\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"


def session(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the check, and without this project's settings, over one file."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_one.py").write_text(text)
    check = ["-p", "tests.skip_check", "-c", str(folder / "pytest.ini")]
    words = [sys.executable, "-m", "pytest", *check, str(folder)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("text", [SKIPPED, SKIPPED_AS_A_WHOLE])
def test_a_skip_that_is_not_in_the_list_fails_the_session_and_is_named(tmp_path: Path, text: str) -> None:
    done = session(tmp_path, text)
    assert done.returncode == 1, done.stdout
    assert "skips that tests/skips.py does not allow" in done.stdout
    assert "test_one.py::" in done.stdout and "no" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert session(tmp_path, EXPECTED_TO_FAIL).returncode == 0


def test_a_skip_is_allowed_by_its_pattern_and_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = AllowedSkip(("tests/a.py::*",), "as this machine is", lambda: True)
    elsewhere = AllowedSkip(("tests/b.py::*",), "on others", lambda: False)
    monkeypatch.setattr("tests.skips.ALLOWED", (here, elsewhere))
    assert [why_allowed(f"tests/{n}.py::test_it[x]") for n in "abc"] == [here.why, None, None]


def test_the_list_names_tests_that_are_there_and_why() -> None:
    for allowed in ALLOWED:
        assert allowed.why
        for pattern in allowed.tests:
            file = ROOT / pattern.split("::")[0]
            assert file.is_file() or (file.name == "*" and file.parent.is_dir()), pattern
