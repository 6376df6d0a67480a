"""Looks at the fleet as a whole from time to time: who is silent, does not fit, runs another version."""

import logging
from typing import Final

from apiary import __version__
from apiary.bus.bus import Bus
from apiary.wire import NodeId
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.fleet.demands import Demands, some
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.fleet.versions import VersionWarning
from apiary_coordinator.journal import Journal
from apiary_coordinator.run.host import RunHost

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 2.0
_STALLED_S: Final = 10.0
"""A turn that comes so late was no node's silence: the loop stood still, or the machine slept."""
_COUNT_EVERY_S: Final = 60.0
_NODES: Final = "fleet.nodes"
_MAX_LINES: Final = 20
"""Reasons that one look logs."""


class FleetWatch(CoordinatorFeature):
    """Called on the loop. Remembers over restarts how many nodes there are: `coordinator/status` has it."""

    def __init__(self, bus: Bus, host: RunHost, roster: Roster, journal: Journal):
        self._bus = bus
        self._host = host
        self._roster = roster
        self._journal = journal
        self._looked_at: float | None = None
        self._count_at = 0.0
        self._versions = VersionWarning(__version__)
        self._demands: Demands | None = None
        self._misfits: dict[NodeId, str] = {}
        self._checked: dict[NodeId, tuple[object, object]] = {}

    def start(self, now: float) -> None:
        """Recall how many nodes there were. Raises StoreError."""
        known = self._journal.recall(_NODES)
        self._host.nodes_before = known if isinstance(known, int) else 0
        self._count_at = now + _COUNT_EVERY_S

    def tick(self, now: float) -> None:
        """Look, every other second. Raises StoreError."""
        passed = now - self._looked_at if self._looked_at is not None else _LOOK_EVERY_S
        if passed < _LOOK_EVERY_S:
            return
        self._looked_at = now
        if not self._bus.connected:
            self._roster.deaf(passed)
            return
        if passed > _STALLED_S:
            self._roster.deaf(passed - _LOOK_EVERY_S)
        self._silent(now)
        self._fitting()
        here = {n.id: n.status.version for n in self._roster.nodes.values() if n.status.state != "lost"}
        if (warning := self._versions.due(here, now)) is not None:
            log.warning("%s", warning)
        self._count(now)

    def _silent(self, now: float) -> None:
        found = self._roster.look(now)
        if found:
            why = self._roster.silent[found[0]]
            log.warning("nodes=%d %s: %s", len(found), some(sorted(found)), why)
        for node in found:
            if (runner := self._host.runner) is not None:
                runner.node_status(node, self._roster[node].status, self._roster, now)

    def _fitting(self) -> None:
        """Warn of nodes that will not be drawn, before anybody wonders; once for each node and reason."""
        demands = self._host.demands
        if demands != self._demands:
            self._demands, self._checked = demands, {}
        news: dict[str, list[NodeId]] = {}
        for node, known in self._roster.nodes.items():
            status = known.status
            about = (status.labels, status.capabilities)
            if status.state == "lost" or self._checked.get(node) == about:
                continue
            self._checked[node] = about
            why = demands.misfit(status)
            if why is None:
                self._misfits.pop(node, None)
            elif self._misfits.get(node) != why:
                self._misfits[node] = why
                news.setdefault(why, []).append(node)
        for why, nodes in list(news.items())[:_MAX_LINES]:
            log.warning("nodes=%d not drawn: %s: %s", len(nodes), some(sorted(nodes)), why)
        if len(news) > _MAX_LINES:
            log.warning("and %d more nodes are not drawn: apiary nodes", len(news) - _MAX_LINES)

    def _count(self, now: float) -> None:
        """Keep how many nodes there are, where that has changed by much. Raises StoreError."""
        if now < self._count_at:
            return
        self._count_at = now + _COUNT_EVERY_S
        known, before = len(self._roster), self._host.nodes_before
        if abs(known - before) > before // 10:
            self._journal.remember(_NODES, known)
            self._host.nodes_before = known
