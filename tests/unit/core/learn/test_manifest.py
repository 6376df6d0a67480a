"""Which tensors a pattern names, and which an update holds."""

from __future__ import annotations

import json

import pytest

from apiary.errors import SettingsError
from apiary.learn.manifest import Manifest, PictureInput, Tensor, controls_of, parts
from apiary.wire.messages import Plan

NAMES = [
    "block1_conv/kernel",
    "block1_norm/gamma",
    "block2_conv/kernel",
    "classes/kernel",
    "classes/bias",
    "scale",
]


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        ([], NAMES),
        (["classes"], NAMES[3:5]),
        (["classes/bias"], NAMES[4:5]),
        (["block?_conv"], [NAMES[0], NAMES[2]]),
        (["*/kernel", "scale"], [NAMES[0], NAMES[2], NAMES[3], NAMES[5]]),
        (["scale", "block1_*"], [NAMES[0], NAMES[1], NAMES[5]]),
    ],
)
def test_a_pattern_names_layers_and_tensors(patterns: list[str], named: list[str]) -> None:
    assert parts(patterns, NAMES) == named


@pytest.mark.parametrize("pattern", ["class", "Classes", "kernel", "block3_conv", "classes/"])
def test_a_pattern_that_names_nothing_is_refused_with_what_there_is(pattern: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parts(["classes", pattern], NAMES)
    assert str(refused.value) == (
        f"run.train: {pattern!r} names nothing of the model; "
        "its layers are: block1_conv, block1_norm, block2_conv, classes, scale"
    )


def manifest(*tensors: Tensor) -> Manifest:
    side = PictureInput(height=4, width=4, channels=1)
    return Manifest(recipe="x", input=side, labels=("a", "b"), tensors=tensors, batch_size=8, optimizer="sgd")


def test_an_update_holds_what_is_sent() -> None:
    made = manifest(
        Tensor(name="a", shape=(2,), argument="p0", sent=False), Tensor(name="b", shape=(3,), argument="p1")
    )
    assert (made.shapes, made.update_shapes) == ({"a": (2,), "b": (3,)}, {"b": (3,)})
    assert Manifest.decode(made.encode()) == made


def test_a_manifest_of_a_whole_model_is_that_of_the_version_before() -> None:
    made = json.loads(manifest(Tensor(name="a", shape=(2,), argument="p0")).encode())
    assert set(made["tensors"][0]) == {"name", "shape", "argument", "trainable"}
    assert "controls" not in made


def test_a_trainer_has_the_controls_that_its_plan_uses() -> None:
    assert controls_of(Plan()) == ()
    assert controls_of(Plan(weight_decay=0.1)) == ("weight_decay",)
    assert controls_of(Plan(weight_decay=0.1, gradient_clip=1)) == ("weight_decay", "gradient_clip")


def test_what_a_step_moves_without_a_gradient_are_statistics_where_it_is_sent() -> None:
    made = manifest(
        Tensor(name="kernel", shape=(2,), argument="p0"),
        Tensor(name="norm/moving_mean", shape=(2,), argument="p1", trainable=False),
        Tensor(name="still/moving_mean", shape=(2,), argument="p2", trainable=False, sent=False),
    )
    assert made.statistics == {"norm/moving_mean"}


def test_a_manifest_without_dropout_has_the_bytes_that_it_had() -> None:
    made = manifest(Tensor(name="b", shape=(3,), argument="p1"))
    assert "noise" not in json.loads(made.encode())
    noisy = made.model_copy(update={"noise": 12})
    assert Manifest.decode(noisy.encode()).noise == 12
