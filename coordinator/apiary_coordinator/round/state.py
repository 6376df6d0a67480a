"""The round as a state table: `handle(round, event, now)` gives the next round and what to do.

    phase        event                 next          commands
    open         Accepted              collecting    Announce
    open,        Rejected, Left        same          Invite a reserve node, where there is one
    collecting   Joined                same          Invite it (again), where a place is free
                 enough, or all heard  aggregating   Announce, Aggregate
                 deadline, quorum      aggregating   Announce, Aggregate
                 deadline, no quorum   failed        Fail
                 AskedAgain            same          Invite it, where it gave up this round
                 Abandoned             failed        Fail
    aggregating  Aggregated            evaluating    Announce, Evaluate
    evaluating   Evaluated             closed        Close
    closed, failed                     same          -

"Enough" is the goal; "all heard" means that every node of the cohort was accepted, rejected or gave up.
The service performs the commands and decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TypeVar, assert_never

from apiary.wire import NodeId
from apiary.wire.messages import Contributor
from apiary_coordinator.fleet.reasons import commonest

_V = TypeVar("_V")


class Phase(Enum):
    """Where a round stands."""

    OPEN = "open"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    CLOSED = "closed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class UpdateAccepted:
    """An update was screened and journaled."""

    node: NodeId
    contributor: Contributor


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """An update was refused; its node is not invited again in this round."""

    node: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Left:
    """A node of the cohort vanished or paused (`final` False: it may come back), or declined."""

    node: NodeId
    why: str
    final: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """A node is here and fit: one that came back, or one that could fill a place."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """An operator had a node forget that it gave up this round."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class RoundTick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The run is to end: a round that still collects is given up."""

    why: str


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The next model exists."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """It was evaluated."""


Event = (
    UpdateAccepted
    | UpdateRejected
    | Left
    | Joined
    | AskedAgain
    | RoundTick
    | Abandoned
    | Aggregated
    | Evaluated
)


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish the round as it stands now."""


@dataclass(frozen=True, slots=True)
class Invite:
    """Notify one more node that it belongs to the cohort; journal the cohort first."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Compute the next model from what was accepted."""


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the next model."""


@dataclass(frozen=True, slots=True)
class Close:
    """Write the result down and publish it."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Write down that the round failed; the next one goes on from the last good model."""

    why: str


Command = Announce | Invite | Aggregate | Evaluate | Close | Fail
Outcome = tuple["Round", list[Command]]


class Cohort(tuple[NodeId, ...]):
    """The nodes of a round in the order they were drawn; asking for one does not go through all of them."""

    @cached_property
    def _members(self) -> frozenset[NodeId]:
        return frozenset(self)

    def __contains__(self, node: object) -> bool:
        return node in self._members


@dataclass(frozen=True, slots=True)
class Round:
    """One round. Times are monotonic seconds."""

    run: str
    number: int
    cohort: tuple[NodeId, ...]
    reserve: tuple[NodeId, ...]
    goal: int
    quorum: int
    deadline_at: float
    lost_grace_s: float = 60.0
    phase: Phase = Phase.OPEN
    accepted: Mapping[NodeId, Contributor] = field(default_factory=dict)
    rejected: Mapping[NodeId, str] = field(default_factory=dict)
    gone: Mapping[NodeId, str] = field(default_factory=dict)
    """Nodes that will not answer any more, and why."""
    lost: Mapping[NodeId, tuple[float, str]] = field(default_factory=dict)
    """Nodes that vanished or paused, when, and why; within the grace their places are kept."""
    away: frozenset[NodeId] = frozenset()
    """Of `gone`, those that did not decline: they may join again while there is a place for them."""

    def __post_init__(self) -> None:
        if not isinstance(self.cohort, Cohort):
            object.__setattr__(self, "cohort", Cohort(self.cohort))

    @property
    def collecting(self) -> bool:
        """Whether updates are still taken."""
        return self.phase in (Phase.OPEN, Phase.COLLECTING)

    @property
    def awaited(self) -> list[NodeId]:
        """Cohort members that may still answer."""
        return [n for n in self.cohort if self.awaits(n)]

    @property
    def open_places(self) -> int:
        """How many are awaited, without a look at each: a member is in one of the three at most."""
        return len(self.cohort) - len(self.accepted) - len(self.rejected) - len(self.gone)

    def awaits(self, node: NodeId) -> bool:
        """Whether this node belongs to the cohort and may still answer."""
        settled = node in self.accepted or node in self.rejected or node in self.gone
        return node in self.cohort and not settled

    def welcomes(self, node: NodeId) -> bool:
        """Whether an update of this node would count: also of one whose place another may have taken."""
        return self.awaits(node) or (node in self.away and self.collecting)

    @property
    def missing(self) -> dict[NodeId, str]:
        """Cohort members without an update, and why."""
        late = {n: self.lost[n][1] if n in self.lost else "no update in time" for n in self.awaited}
        return {**self.gone, **late}


def handle(round_: Round, event: Event, now: float) -> Outcome:
    """What an event makes of a round. Events that do not fit the phase change nothing."""
    if not round_.collecting:
        return _after(round_, event)
    match event:
        case UpdateAccepted(node, contributor):
            if node not in round_.cohort or node in round_.accepted or node in round_.rejected:
                return round_, []
            first = round_.phase is Phase.OPEN
            accepted = {**round_.accepted, node: contributor}
            round_ = replace(
                round_,
                phase=Phase.COLLECTING,
                accepted=accepted,
                lost=_without(round_.lost, node),
                gone=_without(round_.gone, node),
                away=round_.away - {node},
            )
            return _settle(round_, [Announce()] if first else [], now)
        case UpdateRejected(node, why):
            if node not in round_.cohort or node in round_.accepted or node in round_.rejected:
                return round_, []
            # Also of a node that had left: it has had its answer, and a second update is not looked at.
            rejected = {**round_.rejected, node: why}
            lost, gone = _without(round_.lost, node), _without(round_.gone, node)
            round_ = replace(round_, rejected=rejected, lost=lost, gone=gone, away=round_.away - {node})
            return _replace_node(round_, now)
        case Left(node, why, final):
            if not round_.awaits(node):
                return round_, []
            if final:
                round_ = replace(round_, gone={**round_.gone, node: why}, lost=_without(round_.lost, node))
                return _replace_node(round_, now)
            if node in round_.lost:
                return round_, []
            return replace(round_, lost={**round_.lost, node: (now, why)}), []
        case Joined(node):
            return _join(round_, node)
        case AskedAgain(node):
            if node not in round_.gone:
                return round_, []
            gone, away = _without(round_.gone, node), round_.away - {node}
            return replace(round_, gone=gone, away=away), [Invite(node)]
        case RoundTick():
            return _tick(round_, now)
        case Abandoned(why):
            return replace(round_, phase=Phase.FAILED), [Fail(why)]
        case Aggregated() | Evaluated():
            return round_, []
        case _:
            assert_never(event)


def _after(round_: Round, event: Event) -> Outcome:
    match round_.phase, event:
        case Phase.AGGREGATING, Aggregated():
            return replace(round_, phase=Phase.EVALUATING), [Announce(), Evaluate()]
        case Phase.EVALUATING, Evaluated():
            return replace(round_, phase=Phase.CLOSED), [Close()]
        case _:
            return round_, []


def _join(round_: Round, node: NodeId) -> Outcome:
    if node in round_.lost:
        return replace(round_, lost=_without(round_.lost, node)), []
    if round_.open_places + len(round_.accepted) >= round_.goal:
        return round_, []
    if node in round_.away:
        return replace(round_, gone=_without(round_.gone, node), away=round_.away - {node}), [Invite(node)]
    return _invite(round_, node) if node not in round_.cohort else (round_, [])


def _invite(round_: Round, node: NodeId) -> Outcome:
    reserve = tuple(n for n in round_.reserve if n != node)
    return replace(round_, cohort=(*round_.cohort, node), reserve=reserve), [Invite(node)]


def _replace_node(round_: Round, now: float) -> Outcome:
    commands: list[Command] = []
    while round_.reserve and round_.open_places + len(round_.accepted) < round_.goal:
        round_, invited = _invite(round_, round_.reserve[0])
        commands += invited
    return _settle(round_, commands, now)


def _tick(round_: Round, now: float) -> Outcome:
    # All at once: a site that loses its link may be half the fleet.
    over = {n: why for n, (since, why) in round_.lost.items() if now - since >= round_.lost_grace_s}
    if not over:
        return _settle(round_, [], now)
    round_ = replace(
        round_,
        lost={n: since for n, since in round_.lost.items() if n not in over},
        gone={**round_.gone, **over},
        away=round_.away | over.keys(),
    )
    return _replace_node(round_, now)


def _settle(round_: Round, commands: list[Command], now: float) -> Outcome:
    enough = len(round_.accepted) >= round_.goal
    over = not round_.open_places or now >= round_.deadline_at
    if not enough and not over:
        return round_, commands
    if enough or len(round_.accepted) >= round_.quorum:
        # The announcement of this phase replaces one of an earlier phase that was due in the same breath.
        kept = [c for c in commands if not isinstance(c, Announce)]
        return replace(round_, phase=Phase.AGGREGATING), [*kept, Announce(), Aggregate()]
    sent = f"{len(round_.accepted)} of {len(round_.cohort)} nodes sent a good update"
    why = f"{sent}, the quorum is {round_.quorum}"
    if (common := commonest({**round_.rejected, **round_.missing})) is not None:
        why += f"; {common}"
    return replace(round_, phase=Phase.FAILED), [*commands, Fail(why)]


def _without(mapping: Mapping[NodeId, _V], key: NodeId) -> dict[NodeId, _V]:
    return {k: v for k, v in mapping.items() if k != key}
