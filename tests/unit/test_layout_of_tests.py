"""How tests are laid out: unit tests mirror the packages, and what tests share is a module of its own.

Tests directly in tests/unit concern several packages and mirror none.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.places import ROOT

UNIT = ROOT / "tests" / "unit"
PACKAGES = {
    "benchmarks": ROOT / "benchmarks",
    "cli": ROOT / "cli" / "apiary_cli",
    "coordinator": ROOT / "coordinator" / "apiary_coordinator",
    "core": ROOT / "core" / "apiary",
    "edge": ROOT / "edge" / "apiary_edge",
}
OF_SEVERAL_MODULES = {
    "cli/commands/test_tables.py": "nodes, rounds, run and node print tables of one kind",
    "cli/pki/test_revoked_stays.py": "index, folder, enrolment, device and broker files: one promise",
    "cli/terminal/test_once_and_stopping.py": "once.py and stopping.py: how a service ends",
    "cli/test_no_rights.py": "any command that may not read or write",
    "cli/test_wrong_words.py": "any command with arguments that it does not take",
    "coordinator/strategies/test_options.py": "combiners and server rules: what they may be given",
    "edge/labelling/test_coming_in.py": "web/gate.py and web/token.py, through the labelling page",
    "edge/labelling/test_labellers.py": "folder.py and terminal.py do the same for an owner",
    "edge/samples/test_labels.py": "the store: labels",
    "edge/samples/test_leaving.py": "the store: what leaves it",
    "edge/samples/test_power_cuts.py": "the store: power cuts and full disks",
    "edge/samples/test_sharing.py": "the store: several processes at once",
    "edge/samples/test_taking_in.py": "the store: what comes in, and clean.py",
}
"""Test files that are not named after one module or its package, and what they cover instead."""
IMPORTS_A_TEST = re.compile(r"\b(?:from|import) tests(?:\.\w+)*\.(?:test_\w+|conftest)\b")


def mirrored(test: Path) -> list[Path]:
    """What a test file may be named after: a module, a package, or the package that its folder mirrors."""
    side, *folders = test.parent.relative_to(UNIT).parts
    package = PACKAGES[side].joinpath(*folders)
    name = test.stem.removeprefix("test_")
    return [package / f"{name}.py", package / name, *([package] if package.name == name else [])]


TESTS = sorted(t for side in PACKAGES for t in (UNIT / side).rglob("test_*.py"))


@pytest.mark.parametrize("test", TESTS, ids=lambda t: str(t.relative_to(UNIT)))
def test_a_test_file_is_named_after_what_it_tests(test: Path) -> None:
    name = str(test.relative_to(UNIT))
    named = any(place.exists() for place in mirrored(test))
    assert named != (name in OF_SEVERAL_MODULES), f"no module for {name}, and no reason in the list, or both"


def test_every_folder_of_unit_tests_has_its_package() -> None:
    folders = {t.parent for side in PACKAGES for t in (UNIT / side).rglob("*.py")}
    for side, *below in (folder.relative_to(UNIT).parts for folder in folders):
        assert PACKAGES[side].joinpath(*below).is_dir(), f"no package for {'/'.join((side, *below))}"


def test_the_list_names_files_that_are_there() -> None:
    assert [name for name in OF_SEVERAL_MODULES if not (UNIT / name).is_file()] == []


def test_no_test_imports_a_test_file_or_a_conftest() -> None:
    """A test file may be moved or removed without a look at others; what they share has a name of its own."""
    files = [p for p in (ROOT / "tests").rglob("*.py") if IMPORTS_A_TEST.search(p.read_text())]
    assert files == []
