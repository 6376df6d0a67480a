"""What operators may ask of releases: `release.*`. Slow work goes to the worker; the answer follows it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from apiary.errors import ApiaryError, RequestRefused
from apiary.settings import Settings
from apiary.tags import parse_rule
from apiary.wire.messages import Name, Release
from apiary_coordinator.operators.requests import Arguments, Call, OperatorRequests
from apiary_coordinator.releases import build
from apiary_coordinator.releases.build import BuiltRelease, ReleaseRequest
from apiary_coordinator.releases.rollout import Rollout
from apiary_coordinator.releases.service import ReleaseService
from apiary_coordinator.resources import Resources
from apiary_coordinator.run.finished import find_run

MAX_LISTED: Final = 500
"""Nodes named in one answer, those that failed first; the counts are of all."""


class CreateRelease(ReleaseRequest):
    """Of a run (its name, or `latest`) or of a file on the coordinator's machine."""

    run: str | None = None
    file: Path | None = None


class RollbackRelease(Arguments):
    """To the release before, or to the one named."""

    release: Name | None = None


class PinRelease(Arguments):
    """A node, or a rule on tags such as `site=north`; `release` None takes the pin away."""

    node: Name | None = None
    tag: str | None = None
    release: Name | None = None


def register(
    operators: OperatorRequests, releasing: ReleaseService, settings: Settings, resources: Resources
) -> None:
    """Answer the requests of `apiary release`."""
    operators.register("release.list", Arguments, lambda call, _: call.done(listed(releasing)), reads=True)
    operators.register("release.status", Arguments, lambda call, _: call.done(status(releasing)), reads=True)
    operators.register(
        "release.create",
        CreateRelease,
        lambda call, args: _create(call, args, releasing, settings, resources),
    )
    for name in ("pause", "resume", "abort"):
        act: Callable[[], Rollout] = getattr(releasing, name)
        operators.register(f"release.{name}", Arguments, _doing(act))
    operators.register(
        "release.rollback",
        RollbackRelease,
        lambda call, args: call.done(in_short(releasing.rollback(args.release))),
    )
    operators.register(
        "release.key", Arguments, lambda call, _: call.done({"key": releasing.key()}), reads=True
    )
    operators.register("release.pin", PinRelease, lambda call, args: _pin(call, args, releasing))


def listed(releasing: ReleaseService) -> dict[str, Any]:
    """All releases that are remembered, the newest last."""
    book = releasing.standing.book
    current = book.rollout.release.name if book.rollout is not None else None
    return {
        "releases": [
            {**described(entry.release), "outcome": entry.outcome, "current": name == current}
            for name, entry in book.entries.items()
        ]
    }


def status(releasing: ReleaseService) -> dict[str, Any]:
    """The roll-out, each node's standing, the pins and what happened lately."""
    standing = releasing.standing
    rollout, book = standing.rollout, standing.book
    history = [{"at": n.at, "text": n.text, "bad": n.bad} for n in book.history[-20:]]
    if rollout is None:
        return {"rollout": None, "nodes": {}, "counts": {}, "history": history}
    nodes = {}
    order = {"failed": 0, "unfit": 1, "waiting": 2, "healthy": 3}
    for node in sorted(rollout.fleet, key=lambda n: (order[rollout.verdict(n)], n))[:MAX_LISTED]:
        member, report = rollout.fleet[node], rollout.fleet[node].report
        nodes[node] = {
            "verdict": rollout.verdict(node),
            "here": member.here,
            "in_wave": node in rollout.members,
            "pinned": rollout.is_pinned(node),
        }
        if report is not None:
            nodes[node] |= report.model_dump(exclude_none=True, exclude={"v", "digest", "serial"})
    return {
        "rollout": in_short(rollout),
        "counts": dict(Counter(rollout.verdict(n) for n in rollout.fleet)),
        "nodes": nodes,
        "pins": {"nodes": dict(rollout.pins.nodes), "tags": dict(rollout.pins.tags)},
        "history": history,
    }


def in_short(rollout: Rollout) -> dict[str, Any]:
    """A roll-out in short."""
    return {
        "release": described(rollout.release),
        "state": rollout.state,
        "wave": rollout.wave + 1,
        "waves": len(rollout.policy.waves),
        "members": len(rollout.members),
        "healthy": len(rollout.having("healthy", rollout.members)),
        "stable": rollout.stable.name if rollout.stable is not None else None,
        "why": rollout.why or None,
    }


def described(release: Release) -> dict[str, Any]:
    """A release as JSON for people."""
    return release.model_dump(exclude_none=True, exclude={"labels"}) | {"labels": len(release.labels)}


def _doing(act: Callable[[], Rollout]) -> Callable[[Call, Arguments], None]:
    return lambda call, _: call.done(in_short(act()))


def _create(
    call: Call, args: CreateRelease, releasing: ReleaseService, settings: Settings, resources: Resources
) -> None:
    if (args.run is None) == (args.file is None):
        raise RequestRefused("release.create: give either a run or a file")

    def make() -> BuiltRelease | ApiaryError:
        try:
            if args.file is not None:
                made = build.from_file(args.file, args, settings, resources.clocks.wall())
            else:
                folder = find_run(args.run or "latest", settings.coordinator.runs_dir, anywhere=False)
                made = build.from_run(folder, args, settings, resources.clocks.wall())
            return releasing.keep(made)
        except ApiaryError as e:
            return e

    def then(made: BuiltRelease | ApiaryError) -> None:
        try:
            if isinstance(made, ApiaryError):
                raise made
            call.done(in_short(releasing.begin(made.release)))
        except ApiaryError as e:
            call.refuse(str(e))

    call.working()
    resources.worker.submit(make, then)


def _pin(call: Call, args: PinRelease, releasing: ReleaseService) -> None:
    if (args.node is None) == (args.tag is None):
        raise RequestRefused("release.pin: give either a node or a tag")
    if args.tag is not None:
        try:
            parse_rule(args.tag)
        except ValueError as e:
            raise RequestRefused(str(e)) from None
    pins = releasing.pin(node=args.node, rule=args.tag, name=args.release)
    call.done({"nodes": dict(pins.nodes), "tags": dict(pins.tags)})
