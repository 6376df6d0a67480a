"""What is said of a wrong option."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from apiary.options import StageOptions, bounds, expected, no_option


class Some(StageOptions):
    share: float = Field(0.5, gt=0, lt=1)
    steps: int | None = Field(None, ge=1, le=1000)
    kind: Literal["sgd", "adam"] = "sgd"
    name: str = ""


FIELDS = Some.model_fields


def test_bounds_in_words() -> None:
    assert bounds(FIELDS["share"]) == "over 0, under 1"
    assert bounds(FIELDS["steps"]) == "1 to 1_000"
    assert bounds(FIELDS["kind"]) == "sgd, adam"
    assert bounds(FIELDS["name"]) == ""


def test_what_is_expected() -> None:
    assert expected(FIELDS["share"]) == "a number over 0, under 1"
    assert expected(FIELDS["steps"]) == "a whole number 1 to 1_000"
    assert expected(FIELDS["kind"]) == "sgd, adam"


def test_an_unknown_one() -> None:
    assert no_option("shar", FIELDS) == (
        "no option 'shar'; did you mean 'share'? There are: share, steps, kind, name"
    )
    assert no_option("x", ()) == "no option 'x'. There are: none"


@pytest.mark.parametrize("share", [True, "0.5", float("nan"), 0, 1])
def test_only_finite_numbers_within_the_bounds_are_taken(share: object) -> None:
    with pytest.raises(ValidationError):
        Some.model_validate({"share": share})


def test_a_table_is_closed_and_frozen() -> None:
    with pytest.raises(ValidationError):
        Some.model_validate({"shares": 0.5})
    with pytest.raises(ValidationError):
        Some().share = 0.7  # type: ignore[misc] # that is what it refuses
