"""How a round trains, and what its updates may hold. Pure."""

from typing import Final, Literal

from pydantic import Field

from apiary.wire.messages.base import MAX_BLOB_BYTES, Name, Part


class Plan(Part):
    """How a node trains in this round; `proximal_mu` and `partial` as in FedProx (arXiv:1812.06127)."""

    epochs: int = Field(2, ge=1, le=1000, description="passes over a node's samples")
    steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="training steps in place of epochs: as many on each node, however much it holds",
    )
    batch_size: int = Field(16, ge=1, le=1024, description="samples of one training step")
    optimizer: Literal["sgd", "adam"] = Field("adam", description="how gradients become steps")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="size of the optimizer's steps")
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="AdamW: share of a kernel that a step takes off, times the learning rate",
    )
    gradient_clip: float = Field(
        0.0, ge=0, le=1e6, description="largest norm of a step's whole gradient; 0: no bound"
    )
    proximal_mu: float = Field(
        0.0, ge=0, le=1000, description="weight of FedProx's proximal term, against client drift"
    )
    class_weights: bool = Field(False, description="weigh rare labels of a node higher")
    flip: bool = Field(False, description="augment: mirror pictures left to right at random")
    shift: float = Field(
        0.0, ge=0, le=0.5, description="augment: move pictures at random by up to this share of their side"
    )
    rotate: float = Field(0.0, ge=0, le=180, description="augment: turn pictures by up to so many degrees")
    zoom: float = Field(
        0.0, ge=0, lt=1, description="augment: scale pictures by up to this share, in and out"
    )
    brightness: float = Field(0.0, ge=0, le=1, description="augment: up to this share of white more or less")
    contrast: float = Field(0.0, ge=0, le=1, description="augment: up to this share more or less of it")
    erase: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="augment: grey out up to this share of half of the pictures",
    )
    mix: float = Field(
        0.0, ge=0, le=10, description="augment: mix pictures and labels in pairs, by Beta(mix, mix)"
    )
    label_smoothing: float = Field(
        0.0, ge=0, le=0.9, description="share of a label that is spread over all labels"
    )
    validation_share: float = Field(
        0.1, ge=0, le=0.9, description="share of a node's samples that tests and never trains"
    )
    min_samples: int = Field(
        1, ge=1, le=2**24, description="a node with fewer samples to train on takes no part"
    )
    partial: bool = Field(
        False, description="a node that runs out of time sends what it has after a whole epoch"
    )
    codec: Name = Field("raw_f32", description="how updates are written for the wire: raw_f32, f16 or int8")
    seed: int = Field(0, ge=0, lt=2**63, description="set from run.seed")


LATER: Final = (
    "steps", "weight_decay", "gradient_clip",
    "rotate", "zoom", "brightness", "contrast", "erase", "mix", "label_smoothing",
)  # fmt: skip
"""Fields that nodes of 0.1 do not know: announced where a plan uses them, to nodes that can do it."""


class Bounds(Part):
    """What an update may hold; part of the announcement, because the exact sum is built on it.

    A round narrows what the settings allow: to what its cohort, its model and the round before give.
    """

    max_abs: float = Field(64.0, gt=0, le=1e6, description="largest magnitude of a value")
    max_norm: float = Field(1e6, gt=0, le=1e9, description="largest norm of an update; nodes clip to it")
    max_samples: int = Field(2**17, ge=1, le=2**24, description="samples that one update counts for at most")
    max_bytes: int = Field(MAX_BLOB_BYTES, ge=1, le=MAX_BLOB_BYTES, description="bytes on the wire")
