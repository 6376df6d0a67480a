"""What every node rule owes coordinator and nodes, whichever file it comes from."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.plugins import load, names
from apiary.wire.capabilities import needed, of_this_version
from apiary.wire.messages import Plan

PACKAGE = "apiary.learn.node_rules"
NAMES = names(PACKAGE)


@pytest.fixture(params=NAMES)
def rule(request: pytest.FixtureRequest) -> Any:
    return load(PACKAGE, request.param)


def test_there_are_those_that_the_manual_names() -> None:
    assert {"plain", "proximal"} <= set(NAMES)


@pytest.mark.parametrize("plan", [Plan(), Plan(proximal_mu=0.3, epochs=7, seed=5)])
def test_the_plan_says_all_and_can_be_announced(rule: Any, plan: Plan) -> None:
    made = rule.plan(plan, rule.Options())
    assert isinstance(made, Plan)
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_planning_twice_changes_nothing_more(rule: Any) -> None:
    """The exporter and each round plan for themselves; they must agree."""
    once = rule.plan(Plan(), rule.Options())
    assert rule.plan(once, rule.Options()) == once


def test_a_node_of_this_version_can_do_what_it_needs(rule: Any) -> None:
    assert needed(rule.plan(Plan(), rule.Options())) <= set(of_this_version())
