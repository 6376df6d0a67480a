"""Rules on tags: what they look like, and whom they pick."""

from __future__ import annotations

import pytest

from apiary.errors import SettingsError
from apiary.settings import load_settings
from apiary.tags import as_text, matches, parse_rule

NORTH = {"site": "north", "hardware": "pi4"}


@pytest.mark.parametrize(
    ("rules", "picked"),
    [
        ([], True),
        (["site=north"], True),
        (["site=south"], False),
        (["site=south", "site=north"], True),
        (["site=north", "hardware=pi4"], True),
        (["site=north", "hardware=pi3"], False),
        (["colour=red"], False),
    ],
)
def test_whom_rules_pick(rules: list[str], picked: bool) -> None:
    assert matches(NORTH, rules) is picked


@pytest.mark.parametrize(
    "text", ["", "site", "=north", "site=", "a b=c", "site=north=x", "-a=b", "a=" + "b" * 65]
)
def test_what_is_no_rule_is_told_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected TAG=VALUE, such as site=north"):
        parse_rule(text)


def test_for_people() -> None:
    assert as_text(NORTH) == "hardware=pi4 site=north"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("edge.tags", {"site": "the north"}, "'site=the north' is no rule on tags"),
        ("edge.tags", {f"t{i}": "x" for i in range(17)}, "at most 16 items"),
        ("run.only", ["north"], "'north' is no rule on tags"),
        ("run.only", ["a=b"] * 33, "at most 32 items"),
    ],
)
def test_settings_are_checked(key: str, value: object, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load_settings(None, {key: value})
