"""Defaults and ranges of the options of combiners and server rules, as docs/strategies.md has them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError
from tests.places import ROOT

from apiary.plugins import load

UNDER_1 = ((0, 0.999), (-0.001, 1))
RATE = ((1e-9, 10), (0, 10.001))
HALF = ((1e-9, 0.499), (0, 0.5, 1.2))
OPTIONS: dict[str, dict[str, tuple[float, tuple[tuple[float, ...], tuple[float, ...]]]]] = {
    "combiners.trimmed_mean": {"trim": (0.2, HALF)},
    "combiners.geometric_median": {"steps": (8, ((1, 100), (0, 101)))},
    "combiners.multi_krum": {"byzantine": (0.2, HALF)},
    "server_rules.fedavgm": {"server_momentum": (0.5, UNDER_1), "server_rate": (1.0, RATE)},
    "server_rules.fedacg": {"server_momentum": (0.7, UNDER_1)},
    **{
        f"server_rules.{name}": {
            "server_rate": (0.01, RATE),
            "beta1": (beta1, UNDER_1),
            "tau": (1e-3, ((1e-9, 1), (0, 1.001))),
            **({} if beta2 is None else {"beta2": (beta2, UNDER_1)}),
        }
        for name, beta1, beta2 in (("fedadam", 0.9, 0.99), ("fedyogi", 0.9, 0.99), ("fedadagrad", 0.0, None))
    },
}
"""By stage and option: the default, values at the ends of its range, and values past them."""


def options_of(stage: str) -> Any:
    kind, _, name = stage.partition(".")
    return load(f"apiary_coordinator.{kind}", name).Options


@pytest.mark.parametrize("stage", OPTIONS)
def test_a_stage_has_these_options_defaults_and_ranges(stage: str) -> None:
    made = options_of(stage)
    assert made().model_dump() == {name: default for name, (default, _) in OPTIONS[stage].items()}
    for name, (_, (within, past)) in OPTIONS[stage].items():
        assert [getattr(made(**{name: value}), name) for value in within] == list(within)
        for value in past:
            with pytest.raises(ValidationError):
                made(**{name: value})


def test_every_option_is_in_the_manual() -> None:
    text = (ROOT / "docs" / "strategies.md").read_text()
    for stage, options in OPTIONS.items():
        assert f"`{stage.partition('.')[2]}`" in text
        assert all(re.search(rf"\| .*`{name}`.* \|", text) for name in options), stage
