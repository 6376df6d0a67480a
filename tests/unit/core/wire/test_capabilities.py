"""What a plan needs of a node, and what nodes of each version can do."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.wire.capabilities import VERSION_0, needed, of_this_version
from apiary.wire.messages import NodeStatus, Plan
from apiary.wire.messages.node import MAX_CAPABILITIES


@pytest.mark.parametrize(
    ("plan", "rules"),
    [
        ({}, set()),
        ({"proximal_mu": 0.01}, {"rule.proximal"}),
        ({"class_weights": True}, {"rule.class_weights"}),
        ({"flip": True}, {"rule.augment"}),
        ({"shift": 0.1}, {"rule.augment"}),
        ({"partial": True}, {"rule.partial"}),
        ({"steps": 16}, {"rule.steps"}),
        ({"weight_decay": 0.01}, {"rule.weight_decay"}),
        ({"gradient_clip": 1.0}, {"rule.gradient_clip"}),
        ({"partial": True, "proximal_mu": 1.0}, {"rule.partial", "rule.proximal"}),
    ],
)
def test_a_plan_needs_the_rules_that_it_uses(plan: dict[str, Any], rules: set[str]) -> None:
    assert needed(Plan(**plan)) == {"codec.raw_f32", *rules}


def test_a_run_of_parts_needs_nodes_that_send_parts() -> None:
    assert needed(Plan(), parts=True) == {"codec.raw_f32", "rule.parts"}


def test_a_plan_needs_its_codec() -> None:
    assert needed(Plan(codec="int8")) == {"codec.int8"}
    assert needed(Plan(codec="sparse")) == {"codec.sparse"}


def test_what_nodes_without_a_list_can_stays_as_it_is() -> None:
    assert {
        "codec.f16",
        "codec.int8",
        "codec.raw_f32",
        "rule.augment",
        "rule.class_weights",
        "rule.partial",
        "rule.proximal",
    } == VERSION_0


def test_this_version_can_all_that_the_one_before_could() -> None:
    assert set(of_this_version()) >= VERSION_0
    assert len(of_this_version()) <= MAX_CAPABILITIES
    NodeStatus(state="ready", capabilities=of_this_version())
