"""A release's way through the fleet, as a state table: `handle(rollout, event, now)` -> the next, commands.

    state     event                                            next      commands
    rolling   Tick: the wave is healthy for `soak_s`           rolling   Publish the next wave's share
    rolling   Tick: the same, in the last wave                 done      Publish
    rolling,  Tick: too many failed, or the fleet's accuracy   halted    Publish: all back to stable
    paused    fell by more than is allowed
    rolling   Tick: the wave took longer than `wave_s`         halted    the same
    rolling   Pause                                            paused    Publish
    paused    Resume                                           rolling   Publish; the wave's time begins anew
    halted,   Resume                                           rolling   Publish the first wave again, as the
    aborted                                                              next attempt
    rolling,  Abort                                            aborted   Publish: all back to stable
    paused
    any       Pinned                                           same      Publish the pins
    any       Known                                            same      -

A wave is a cut in the order in which `place` puts the nodes; nodes that were off find their side of it when
they come. Those who were there when the wave opened are its members, and it is their reports that count.
The service performs the commands and decides nothing. Times are monotonic seconds.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from apiary.settings import ReleaseSettings
from apiary.wire.messages import NodeRelease, Release, RolloutState
from apiary.wire.messages.releases import pinned_to, place
from apiary_coordinator.releases.rollout_events import (
    AbortRollout,
    Event,
    Known,
    Member,
    PauseRollout,
    Pinned,
    Pins,
    Publish,
    ResumeRollout,
    RolloutTick,
)
from apiary_coordinator.updates.limits import weight_cap

Outcome = tuple["Rollout", list[Publish]]

ENOUGH: Final = 3
"""In a wave of so many no single member decides: its word is a claim, and its own test keeps it safe.

Where an operator allows no failure at all (`max_failed` 0, `min_healthy` 1), each does.
"""
_PICTURES_RATIO: Final = 3.0
"""A node's pictures count for at most so many times those of the median node, as samples do in a round."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One release on its way. `members` are the nodes that this wave's verdict is about."""

    release: Release
    stable: Release | None
    policy: ReleaseSettings
    state: RolloutState = "rolling"
    wave: int = 0
    share: float = 0.0
    canaries: tuple[str, ...] = ()
    members: frozenset[str] = frozenset()
    why: str = ""
    pins: Pins = field(default_factory=Pins)
    fleet: Mapping[str, Member] = field(default_factory=dict)
    since: float = 0.0
    healthy_since: float | None = None

    def about(self, node: str) -> NodeRelease | None:
        """A node's report, where it is of this attempt at this release."""
        report = self.fleet[node].report if node in self.fleet else None
        return report if report is not None and report.about(self.release) else None

    def is_pinned(self, node: str) -> bool:
        """Whether a pin says what this node has; it belongs to no wave then."""
        tags = self.fleet[node].tags if node in self.fleet else {}
        return pinned_to(node, tags, self.pins.nodes, self.pins.tags) is not None

    def verdict(self, node: str) -> str:
        """`healthy`, `failed`, `unfit` or `waiting`: how a node stands to this release."""
        report = self.about(node)
        if report is None:
            return "waiting"
        slow = self.policy.max_inference_ms
        if report.state == "healthy" and slow is not None and (report.inference_ms or 0.0) > slow:
            return "failed"
        return report.state if report.state in ("healthy", "failed", "unfit") else "waiting"

    def having(self, verdict: str, among: Iterable[str] | None = None) -> list[str]:
        """The nodes with this verdict, by name."""
        return sorted(n for n in (self.fleet if among is None else among) if self.verdict(n) == verdict)


def begin(
    release: Release,
    stable: Release | None,
    policy: ReleaseSettings,
    now: float,
    *,
    pins: Pins | None = None,
    fleet: Mapping[str, Member] | None = None,
) -> Outcome:
    """Start to roll a release out."""
    fresh = Rollout(release, stable, policy, pins=pins or Pins(), fleet=fleet or {})
    return _open(fresh, 0, now, f"{release.name} begins")


def restore(
    release: Release,
    policy: ReleaseSettings,
    now: float,
    *,
    pins: Pins | None = None,
    fleet: Mapping[str, Member] | None = None,
) -> Outcome:
    """Give the whole fleet a release that was good before, at once."""
    back = Rollout(
        release, release, policy, "done", len(policy.waves) - 1, 1.0, pins=pins or Pins(), fleet=fleet or {}
    )
    back = replace(back, since=now, members=frozenset(_eligible(back)))
    return back, [Publish(f"back to {release.name}, all at once")]


def taken_up(rollout: Rollout, now: float) -> Rollout:
    """A journaled roll-out after a restart: its wave has its full time again."""
    return replace(rollout, since=now, healthy_since=None)


def handle(rollout: Rollout, event: Event, now: float) -> Outcome:
    """What an event makes of a roll-out. Events that do not fit the state change nothing."""
    match event:
        case Known(members):
            return replace(rollout, fleet={**rollout.fleet, **members}), []
        case RolloutTick():
            return _settle(rollout, now)
        case PauseRollout():
            if rollout.state != "rolling":
                return rollout, []
            return replace(rollout, state="paused"), [Publish(f"{rollout.release.name} paused")]
        case ResumeRollout():
            return _resume(rollout, now)
        case AbortRollout():
            if rollout.state not in ("rolling", "paused"):
                return rollout, []
            return _back(rollout, "aborted", "aborted by an operator")
        case Pinned(pins):
            return replace(rollout, pins=pins), [Publish("pins changed")]
        case _:
            assert_never(event)


def _resume(rollout: Rollout, now: float) -> Outcome:
    name = rollout.release.name
    if rollout.state == "paused":
        going = replace(rollout, state="rolling", since=now, healthy_since=None)
        return going, [Publish(f"{name} goes on")]
    if rollout.state in ("halted", "aborted"):
        again = rollout.release.model_copy(update={"attempt": rollout.release.attempt + 1})
        fresh = replace(rollout, release=again, state="rolling", why="")
        return _open(fresh, 0, now, f"{name} is tried again")
    return rollout, []


def _settle(rollout: Rollout, now: float) -> Outcome:
    """Whether the wave is over, well or badly."""
    if rollout.state not in ("rolling", "paused"):
        return rollout, []
    if (why := _too_bad(rollout)) is not None:
        return _back(rollout, "halted", why)
    if rollout.state == "paused":
        return rollout, []
    members = [n for n in rollout.members if rollout.verdict(n) != "unfit" and not rollout.is_pinned(n)]
    if not members:
        return _nobody(rollout, now)
    healthy = rollout.having("healthy", members)
    needed = math.ceil(rollout.policy.min_healthy * len(members))
    if len(members) >= ENOUGH and rollout.policy.min_healthy < 1:
        needed = min(needed, len(members) - 1)
    if len(healthy) < needed:
        if now - rollout.since < rollout.policy.wave_s:
            return replace(rollout, healthy_since=None), []
        waiting = ", ".join(rollout.having("waiting", members)[:10]) or "none waits"
        why = (
            f"{len(healthy)} of {len(members)} nodes of wave {rollout.wave + 1} reported healthy within "
            f"{rollout.policy.wave_s:g} s (waiting: {waiting})"
        )
        return _back(rollout, "halted", why)
    since = now if rollout.healthy_since is None else rollout.healthy_since
    rollout = replace(rollout, healthy_since=since)
    if now - since < rollout.policy.soak_s:
        return rollout, []
    outcome = f"{len(healthy)} of {len(members)} nodes healthy"
    if rollout.wave + 1 < len(rollout.policy.waves):
        return _open(rollout, _next_wave(rollout), now, f"wave {rollout.wave + 1}: {outcome}")
    return replace(rollout, state="done"), [Publish(f"{rollout.release.name} is out: {outcome}")]


def _nobody(rollout: Rollout, now: float) -> Outcome:
    """A wave that found nobody whom the release is for: wait for nodes, but not for ever for named ones."""
    if not _eligible(rollout):
        return rollout, []
    opened, commands = _open(rollout, rollout.wave, now, "")
    if opened.members:
        return opened, commands
    if now - rollout.since < rollout.policy.wave_s:
        return replace(opened, since=rollout.since), commands
    named = ", ".join(rollout.canaries[:10])
    return _back(rollout, "halted", f"no canary ({named}) was here within {rollout.policy.wave_s:g} s")


def _too_bad(rollout: Rollout) -> str | None:
    """Why to go back, where there is a reason."""
    judging = [n for n in rollout.members if not rollout.is_pinned(n)]
    failed, many = rollout.having("failed", judging), len(rollout.members)
    share = rollout.policy.max_failed
    if len(failed) > max(share * many, 1 if share and many >= ENOUGH else 0):
        report = rollout.about(failed[0])
        why = (report.why if report is not None else None) or "too slow"
        return f"{len(failed)} of {len(rollout.members)} nodes failed; {failed[0]}: {why}"
    compared = [
        report
        for node in rollout.having("healthy", judging)
        if (report := rollout.about(node)) is not None
        and report.accuracy_before is not None
        and report.pictures
    ]
    if len(compared) < 2:
        return None  # one node's own test has judged its own pictures
    # A report is a claim: no node counts for more than half of the others, and one alone moves no median.
    cap = weight_cap([r.pictures for r in compared], len(compared), _PICTURES_RATIO)
    drops = [((r.accuracy_before or 0.0) - (r.accuracy or 0.0), min(r.pictures, cap)) for r in compared]
    lost, pictures = _weighted_median(drops), sum(weight for _, weight in drops)
    if lost > rollout.policy.max_accuracy_drop:
        return (
            f"on {pictures} held-out pictures of {len(compared)} nodes it is {100 * lost:.1f} points worse, "
            "by the median node"
        )
    return None


def _weighted_median(values: list[tuple[float, int]]) -> float:
    """The lower weighted median of (value, weight)."""
    half, below = sum(weight for _, weight in values) / 2, 0
    for value, weight in sorted(values):
        below += weight
        if below >= half:
            return value
    return 0.0


def _back(rollout: Rollout, state: RolloutState, why: str) -> Outcome:
    """Everyone to the stable release; a node that has the new one has kept the old one."""
    to = rollout.stable.name if rollout.stable is not None else "no release"
    back = replace(
        rollout, state=state, why=why, share=0.0, canaries=(), members=frozenset(), healthy_since=None
    )
    return back, [Publish(f"{rollout.release.name} {state}, back to {to}: {why}", bad=True)]


def _eligible(rollout: Rollout) -> list[str]:
    """Nodes that are here and may take the release, in the order in which it reaches them."""
    digest = rollout.release.file.digest
    fit = [
        node
        for node, member in rollout.fleet.items()
        if member.here and rollout.verdict(node) != "unfit" and not rollout.is_pinned(node)
    ]
    return sorted(fit, key=lambda node: place(node, digest))


def _open(rollout: Rollout, wave: int, now: float, before: str) -> Outcome:
    """Open a wave for the nodes that are here; `before` is what led to it, for the history."""
    policy, order = rollout.policy, _eligible(rollout)
    share, canaries = policy.waves[wave], rollout.canaries
    if wave == 0 and policy.canaries:
        members = [n for n in policy.canaries if n in order]
        cut, canaries = 0.0, tuple(policy.canaries)
    elif share >= 1:
        members, cut = order, 1.0
    else:
        count = _count(rollout, wave, len(order))
        members, cut = order[:count], _between(rollout, order, count, share)
        members += [n for n in canaries if n in order and n not in members]
    opened = replace(
        rollout,
        wave=wave,
        share=cut,
        canaries=canaries,
        members=frozenset(members),
        since=now,
        healthy_since=None,
    )
    if not before and (opened.share, opened.canaries) == (rollout.share, rollout.canaries) and not members:
        return opened, []
    many = f"{len(members)} of {len(order)} nodes"
    note = f"{before}; " if before else ""
    return opened, [Publish(f"{note}wave {wave + 1} of {len(policy.waves)} opens for {many}")]


def _next_wave(rollout: Rollout) -> int:
    """The next wave that has more nodes than this one: half of two nodes is the canary once more."""
    last, here = len(rollout.policy.waves) - 1, len(_eligible(rollout))
    following = range(rollout.wave + 1, last)
    return next((w for w in following if _count(rollout, w, here) > len(rollout.members)), last)


def _count(rollout: Rollout, wave: int, here: int) -> int:
    return max(1, math.ceil(rollout.policy.waves[wave] * here - 1e-9))


def _between(rollout: Rollout, order: list[str], count: int, share: float) -> float:
    """A share that lets just the first `count` in."""
    if not order:
        return share
    digest = rollout.release.file.digest
    last = place(order[count - 1], digest)
    following = place(order[count], digest) if count < len(order) else 1.0
    return (last + following) / 2
