"""The events and commands of the state table in `rollout`, and what it knows of nodes and pins. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from apiary.wire.messages import NodeRelease, Release


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a node: whether it is here, its tags, and its last report of a release."""

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
    """Journal the roll-out as it stands, then publish it to the fleet; `note` is for its history."""

    note: str
    bad: bool = False
