"""One warning about all nodes that run another version than the coordinator. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from apiary.wire import NodeId
from apiary_coordinator.fleet.demands import some

SETTLE_S: Final = 10.0
"""Nodes come one after another: the warning waits until no other has come for so long."""
AGAIN_S: Final = 600.0
"""Between two warnings: during an upgrade nodes change one by one."""


class VersionWarning:
    """Collects nodes of other versions, and says when to warn of them all."""

    def __init__(self, version: str):
        self._version = version
        self._warned: dict[NodeId, str] = {}
        self._seen: dict[NodeId, str] = {}
        self._seen_at = 0.0
        self._warned_at: float | None = None

    def due(self, versions: Mapping[NodeId, str], now: float) -> str | None:
        """The warning, where it is time; `versions` are those of all nodes that are here."""
        differ = {node: v for node, v in versions.items() if v not in ("", self._version)}
        if differ != self._seen:
            self._seen, self._seen_at = differ, now
        if differ.items() <= self._warned.items() or now - self._seen_at < SETTLE_S:
            return None
        if self._warned_at is not None and now - self._warned_at < AGAIN_S:
            return None
        self._warned, self._warned_at = differ, now
        return describe(differ, self._version)


def describe(differ: Mapping[NodeId, str], version: str) -> str:
    """`2 nodes run another version than the coordinator (0.2.0): 0.1.0: pi-1, pi-2; ...`."""
    by_version: dict[str, list[str]] = {}
    for node, other in sorted(differ.items()):
        by_version.setdefault(other, []).append(node)
    named = "; ".join(f"{other}: {some(nodes)}" for other, nodes in sorted(by_version.items()))
    one = len(differ) == 1
    return (
        f"{len(differ)} {'node runs' if one else 'nodes run'} another version than the coordinator "
        f"({version}): {named}. How to upgrade: docs/operations.md"
    )
