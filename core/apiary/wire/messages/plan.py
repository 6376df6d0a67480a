"""How a round trains, and what its updates may hold. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from apiary.wire.messages.base import MAX_BLOB_BYTES, Name, Part


class Plan(Part):
    """How a node trains in this round.

    `learning_rate` > 0; `proximal_mu` >= 0 is FedProx's term (Li et al. 2020, arXiv:1812.06127);
    `validation_share` of a node's pictures never train; `shift` is a share of the picture's side. With
    `partial` a node that runs out of time sends what it has after a whole epoch (as FedProx allows).
    """

    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    optimizer: Literal["sgd", "adam"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    proximal_mu: Annotated[float, Field(ge=0, le=1000)] = 0.0
    class_weights: bool = False
    flip: bool = False
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    validation_share: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    min_samples: Annotated[int, Field(ge=1, le=2**24)] = 1
    partial: bool = False
    codec: Name = "raw_f32"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class Bounds(Part):
    """What an update may hold; part of the announcement, because the exact sum is built on it."""

    max_abs: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    max_norm: Annotated[float, Field(gt=0, le=1e9)] = 1e6
    max_samples: Annotated[int, Field(ge=1, le=2**24)] = 2**17
    max_bytes: Annotated[int, Field(ge=1, le=MAX_BLOB_BYTES)] = MAX_BLOB_BYTES
