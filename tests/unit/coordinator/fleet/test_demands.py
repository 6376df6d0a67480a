"""What a round needs of a node, on both sides of each bound."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.settings import RunSettings
from apiary.wire.capabilities import of_this_version
from apiary.wire.messages import NodeStatus, Plan
from apiary_coordinator.fleet.demands import Demands, some

MODEL = ("cat", "dog")


def status(**more: Any) -> NodeStatus:
    return NodeStatus.model_validate({"state": "ready", "samples": 10, **more})


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"cat": 7}, None),
        ({"cat": 1, "dog": 6}, None),
        ({"cat": 6, "bird": 90}, "has 6 samples, the plan asks for 7"),
        ({}, "has 0 samples, the plan asks for 7"),
        (None, None),
        (
            {"bird": 10},
            "none of its labels (bird) is one of the model's (cat, dog): "
            "rename its labels, or add them at the coordinator",
        ),
        (
            {"bird": 10, "Cat ": 4},
            "none of its labels (bird, Cat ) is one of the model's (cat, dog): "
            "set its edge.join_labels, or add them at the coordinator",
        ),
    ],
)
def test_labels_that_the_model_does_not_know_do_not_count(
    labels: dict[str, int] | None, why: str | None
) -> None:
    told = status(labels=labels, samples=sum(labels.values()) if labels is not None else 10)
    assert Demands(7, labels=MODEL).unmet(told) == why


def test_where_the_models_labels_are_not_known_any_sample_counts() -> None:
    assert Demands(7).unmet(status(labels={"bird": 10})) is None


def test_whatever_a_round_needs_it_is_a_sample_at_least() -> None:
    assert Demands().unmet(status(samples=1)) is None
    assert Demands().unmet(status(samples=0)) == "has 0 samples, the plan asks for 1"


def test_a_node_without_a_list_can_what_its_version_could() -> None:
    old = status(version="0.1.0")
    assert Demands.of(RunSettings(), Plan(codec="int8", partial=True)).unmet(old) is None
    assert Demands(capabilities=frozenset({"judge.1", "codec.int8"})).unmet(old) == (
        "cannot do what the round needs (version 0.1.0): judge.1; upgrade the node"
    )


def test_a_node_can_what_its_list_says_and_may_say_more() -> None:
    told = status(capabilities=["codec.raw_f32", "something.new"])
    assert Demands.of(RunSettings(), Plan()).unmet(told) is None
    assert Demands.of(RunSettings(), Plan(codec="f16", proximal_mu=0.1)).unmet(told) == (
        "cannot do what the round needs: codec.f16, rule.proximal; upgrade the node"
    )
    assert Demands.of(RunSettings(), Plan()).unmet(status(capabilities=[])) is not None


@pytest.mark.parametrize(
    ("recipe", "options", "lacks"),
    [
        ("edge_cnn", {}, ""),
        ("maths_cnn", {}, "rule.dropout"),
        ("maths_cnn", {"dropout": 0.0}, ""),
        ("vgg_bn", {}, "rule.batch_statistics, rule.dropout"),
        ("vgg_bn", {"dropout": 0.0, "hidden_dropout": 0.0}, "rule.batch_statistics"),
        ("vgg_bn", {"dropout": 0.0, "hidden": []}, "rule.batch_statistics"),
        ("vgg_bn", {"dropout": 0.0, "hidden": [], "statistics": "frozen"}, "rule.parts"),
    ],
)
def test_a_recipe_needs_nodes_that_train_its_layers(recipe: str, options: dict[str, Any], lacks: str) -> None:
    run = RunSettings(recipe=recipe, recipe_options=options)
    why = Demands.of(run, Plan()).unmet(status(capabilities=["codec.raw_f32"]))
    assert why == (f"cannot do what the round needs: {lacks}; upgrade the node" if lacks else None)
    assert Demands.of(run, Plan()).unmet(status(capabilities=of_this_version())) is None


def test_many_names_are_cut() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some([str(i) for i in range(5)]) == "0, 1, 2, 3, 4"
    assert some([str(i) for i in range(6)]) == "0, 1, 2, 3, 4, ... (6)"


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (
            {"cat": 5, "fox": 12, "elk": 1},
            "13 pictures not trained, the model has no elk, fox: rename the label, or add it at the "
            "coordinator",
        ),
        ({"cat": 5, "Dog ": 12}, "12 pictures not trained, the model has no Dog : set its edge.join_labels"),
        ({"cat": 5, "dog": 3}, None),
        ({"cat": 5, "fox": 0}, None),
        ({"fox": 5}, None),  # it takes no part at all, which is another reason
        ({}, None),
    ],
)
def test_pictures_whose_label_the_model_has_not(labels: dict[str, int], why: str | None) -> None:
    told = status(labels=labels)
    assert Demands(labels=("cat", "dog")).left_out(told) == why
    assert Demands().left_out(told) is None
