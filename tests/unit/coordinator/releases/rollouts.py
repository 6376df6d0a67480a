"""A roll-out over ten nodes, its reports, and who holds the new release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apiary.settings import ReleaseSettings
from apiary.wire.messages import BlobRef, NodeRelease, PictureShape, Release, ReleaseCurrent
from apiary_coordinator.releases import rollout as table
from apiary_coordinator.releases import rollout_events as words
from apiary_coordinator.releases.rollout import Rollout
from apiary_coordinator.releases.rollout_events import Member

NODES = [f"pi-{i}" for i in range(10)]

POLICY = ReleaseSettings(waves=[0.2, 0.5, 1.0], wave_s=100.0, soak_s=10.0)


def release(name: str = "two", **more: Any) -> Release:
    digest = ("2" if name == "two" else "1") * 64
    shape = PictureShape(height=8, width=10, channels=3)
    return Release(
        name=name,
        file=BlobRef(digest=digest, bytes=999),
        kind="tflite",
        labels=["a", "b"],
        input=shape,
        **more,
    )


ONE = release("one")


def fleet(nodes: list[str] = NODES) -> dict[str, Member]:
    return {n: Member(here=True) for n in nodes}


def begun(policy: ReleaseSettings = POLICY, nodes: list[str] = NODES, **more: Any) -> Rollout:
    rollout, commands = table.begin(release(), ONE, policy, 0.0, fleet=fleet(nodes), **more)
    assert len(commands) == 1
    return rollout


def report(rollout: Rollout, state: str = "healthy", **more: Any) -> NodeRelease:
    told = rollout.release
    return NodeRelease(
        state=state,
        release=told.name,
        digest=told.file.digest,
        attempt=told.attempt,
        current=told.name,
        **more,
    )


def known(rollout: Rollout, node: str, **news: Any) -> words.Known:
    """What was heard of one node."""
    return words.Known({node: replace(rollout.fleet.get(node, Member()), **news)})


def reported(rollout: Rollout, nodes: Any, state: str = "healthy", **more: Any) -> Rollout:
    for node in nodes:
        rollout, commands = table.handle(
            rollout, known(rollout, node, report=report(rollout, state, **more)), 0.0
        )
        assert commands == []
    return rollout


def ticked(rollout: Rollout, now: float) -> tuple[Rollout, list[str]]:
    rollout, commands = table.handle(rollout, words.RolloutTick(), now)
    return rollout, [c.note for c in commands]


def holders(rollout: Rollout, nodes: list[str] = NODES) -> set[str]:
    """Who is told to have the new release, by the message itself."""
    told = ReleaseCurrent(
        serial=1,
        state=rollout.state,
        release=rollout.release,
        share=rollout.share,
        canaries=list(rollout.canaries),
        stable=rollout.stable,
        pins=dict(rollout.pins.nodes),
        tag_pins=dict(rollout.pins.tags),
        pinned=list(rollout.pins.releases.values()),
    )
    return {n for n in nodes if told.wanted(n, {}) == rollout.release}
