"""What may happen to a roll-out, what is known of nodes, and how careful it is: the words of `rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from apiary.wire.messages import NodeRelease, Release


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """How careful a roll-out is; the fields are those of the settings section `release`."""

    waves: tuple[float, ...] = (0.1, 0.5, 1.0)
    canaries: tuple[str, ...] = ()
    wave_s: float = 3600.0
    soak_s: float = 60.0
    min_healthy: float = 0.8
    max_failed: float = 0.1
    max_accuracy_drop: float = 0.05
    max_inference_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a node: whether it is here, its tags, and the last it said of releases."""

    here: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    report: NodeRelease | None = None


@dataclass(frozen=True, slots=True)
class Pins:
    """Releases by node and by rule on tags (`site=north`), and the pinned releases themselves by name."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    releases: Mapping[str, Release] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of these nodes now: many at once, because each makes the whole fleet's map anew."""

    members: Mapping[str, Member]


@dataclass(frozen=True, slots=True)
class RolloutTick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class PauseRollout:
    """Open no further wave."""


@dataclass(frozen=True, slots=True)
class ResumeRollout:
    """Go on; after a halt or an abort, begin again."""


@dataclass(frozen=True, slots=True)
class AbortRollout:
    """Give the release up: everyone goes back to the stable one."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """From now on these pins hold."""

    pins: Pins


Event = Known | RolloutTick | PauseRollout | ResumeRollout | AbortRollout | Pinned


@dataclass(frozen=True, slots=True)
class Publish:
    """Journal the roll-out as it stands, then say it to the fleet; `note` is for its history."""

    note: str
    bad: bool = False
