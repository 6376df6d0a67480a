"""How the nodes of a simulated fleet differ: pace, link, drop-outs.

Given as medians and spreads, or taken from a profile of a real fleet.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary.errors import DataError
from apiary.text_files import read_text
from apiary.wire.messages.base import MAX_LABELS, Label, Name, first_error
from apiary_cli.simulation.network import SimulatedLink

MAX_NODES: Final = 20_000
"""As many as a coordinator's roster holds."""
_BYTES_A_MBIT: Final = 125_000
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FleetModel(_Model):
    """The nodes' paces and links. Two thirds of the nodes are within a spread, a factor, of the median."""

    start_s: Seconds = Field(3.0, description="seconds before a node's first step: start and pictures")
    pace_s: float = Field(
        0.02, gt=0, le=3600, description="seconds a node computes for each sample and epoch (median)"
    )
    pace_spread: float = Field(
        1.5, ge=1, le=100, description="how far the nodes' paces differ; 1: not at all"
    )
    up_mbit: float = Field(10.0, gt=0, le=1e6, description="megabits a second from a node (median)")
    down_mbit: float = Field(20.0, gt=0, le=1e6, description="megabits a second to a node (median)")
    link_spread: float = Field(
        1.5, ge=1, le=100, description="how far the nodes' links differ; 1: not at all"
    )
    latency_s: float = Field(0.03, ge=0, le=60, description="seconds from a node to the broker, one way")
    drop_out: float = Field(
        0.0, ge=0, le=0.95, description="chance that a drawn node vanishes while it trains"
    )
    away_s: float = Field(300.0, gt=0, le=1e7, description="seconds that it stays away then")
    server_s: Seconds = Field(0.0, description="seconds the coordinator takes to evaluate a model")


class ProfiledNode(_Model):
    """One node of a real fleet. What was not observed is None."""

    id: Name
    labels: Annotated[dict[Label, Annotated[int, Field(ge=0, le=2**24)]], Field(max_length=MAX_LABELS)]
    start_s: Seconds | None = None
    pace_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    up_bytes_s: Rate | None = None
    down_bytes_s: Rate | None = None
    runtime: str | None = None
    version: str | None = None


class FleetProfile(_Model):
    """What `apiary nodes --profile` writes."""

    v: int = Field(1, ge=1, le=1)
    federation: str = ""
    server_s: Seconds | None = None
    nodes: Annotated[list[ProfiledNode], Field(min_length=1, max_length=MAX_NODES)]


@dataclass(frozen=True, slots=True)
class NodeTraits:
    """One simulated node. Training takes `start_s`, and `pace_s` for each sample of each step."""

    name: str
    start_s: float
    pace_s: float
    link: SimulatedLink


def read_profile(path: Path) -> FleetProfile:
    """A profile from a file. Raises SettingsError, DataError naming what is wrong."""
    try:
        profile = FleetProfile.model_validate(json.loads(read_text(path, what="profile")))
    except ValidationError as e:
        raise DataError(f"profile {path}: {first_error(e, 'profile')}") from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"profile {path} is not JSON: {str(e)[:80]}") from None
    ids = [node.id for node in profile.nodes]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"profile {path}: node {twice} more than once, expected each node once")
    return profile


def traits(
    names: Sequence[str], model: FleetModel, *, seed: int, profile: FleetProfile | None = None
) -> list[NodeTraits]:
    """Each node's pace and link by seed: log-normal around the medians, or those of the profile's nodes.

    A node takes those of its own name in the profile; a name that is not there, those of one drawn by seed.
    """
    rng = np.random.default_rng([seed, 4])
    count = len(names)
    paces = model.pace_s * _spread(model.pace_spread, count, rng)
    links = _spread(model.link_spread, count, rng)
    known = {node.id: node for node in profile.nodes} if profile is not None else {}
    drawn = rng.integers(0, max(1, len(known)), count)
    found = []
    for i, name in enumerate(names):
        like = known.get(name)
        if like is None and profile is not None:
            like = profile.nodes[int(drawn[i])]
        up = model.up_mbit * _BYTES_A_MBIT * links[i]
        down = model.down_mbit * _BYTES_A_MBIT * links[i]
        start, pace = model.start_s, float(paces[i])
        if like is not None:
            start = like.start_s if like.start_s is not None else start
            pace = like.pace_s or pace
            up, down = like.up_bytes_s or up, like.down_bytes_s or down
        link = SimulatedLink(model.latency_s, float(up), float(down))
        found.append(NodeTraits(name, start, pace, link))
    return found


def _spread(factor: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = np.exp(math.log(factor) * rng.standard_normal(count))
    return drawn
