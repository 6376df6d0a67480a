"""The table of exit codes (docs/operations.md), the errors, and the units of systemd say the same."""

from __future__ import annotations

import re

import pytest
from tests.places import ROOT

from apiary import errors
from apiary_cli.image import first_boot

SERVICES = {
    "apiary-coordinator.service.j2",
    "apiary-edge.service.j2",
    "apiary-enrolment.service.j2",
    "first_boot.py",
}
"""Units that run for years, as templates of the play and in the script of a card."""


def table() -> dict[int, str]:
    """Exit code to whether a service is started again."""
    text = (ROOT / "docs" / "operations.md").read_text().split("## Exit codes")[1].split("\n## ")[0]
    return {int(code): again for code, again in re.findall(r"^\| (\d+) \|.*\| (yes|no) \|$", text, re.M)}


def prevented(unit: str) -> set[int]:
    """What `RestartPreventExitStatus` names: codes after which systemd starts nothing again."""
    found = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.M)
    return {int(code) for line in found for code in line.split()}


def units() -> dict[str, str]:
    found = {p.name: p.read_text() for p in (ROOT / "deploy").rglob("*.service*.j2")}
    return {**found, "first_boot.py": first_boot._SCRIPT, "apiary-first-boot.service": first_boot.UNIT}


def every_error() -> list[type[errors.ApiaryError]]:
    kinds, left = [], [errors.ApiaryError]
    while left:
        kinds.append(kind := left.pop())
        left += kind.__subclasses__()
    return [kind for kind in kinds if kind.__module__ == "apiary.errors"]


def test_every_code_is_in_the_table_once() -> None:
    assert {kind.exit_code for kind in every_error()} | {0, 130, 143} == set(table())


@pytest.mark.parametrize("name", sorted(units()))
def test_systemd_starts_again_whatever_the_table_says(name: str) -> None:
    unit = units()[name]
    if name not in SERVICES:
        assert prevented(unit) == set()
        return
    # 143 is how a service ends that was told to stop: nothing is started again after that in any case.
    assert prevented(unit) == {code for code, again in table().items() if again == "no"} - {143}
    assert "SuccessExitStatus=143" in unit and "StartLimitIntervalSec=0" in unit


def test_no_other_file_keeps_systemd_from_starting_again() -> None:
    named = {
        path.name
        for folder in ("deploy", "cli", "broker", "core", "edge", "coordinator")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".j2", ".py", ".service", ".yml", ".conf")
        if "RestartPreventExitStatus" in path.read_text(errors="replace")
    }
    assert named == SERVICES


def test_what_a_minute_may_mend_is_no_error_of_the_settings() -> None:
    assert errors.NotReady.exit_code != errors.SettingsError.exit_code
    assert table()[errors.NotReady.exit_code] == "yes"
    assert table()[errors.SettingsError.exit_code] == "no"


def test_the_tree_of_errors_shows_the_codes_that_they_have() -> None:
    drawn = re.findall(r"[├└]── (\w+) .*exit (\d+)$", errors.__doc__ or "", re.M)
    assert len(drawn) >= 10
    for name, code in drawn:
        assert getattr(errors, name).exit_code == int(code)
