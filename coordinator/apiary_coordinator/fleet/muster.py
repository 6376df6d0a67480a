"""Which nodes the next round may draw, and why not the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apiary.settings import RunSettings
from apiary.tags import NODE, parse_rule
from apiary.wire import NodeId
from apiary_coordinator.fleet.demands import Demands, some
from apiary_coordinator.fleet.reasons import commonest
from apiary_coordinator.fleet.rests import Rest, Rests
from apiary_coordinator.fleet.roster import Roster


@dataclass(frozen=True, slots=True)
class Muster:
    """Every node that is known, by whether it may be drawn now."""

    ready: list[NodeId]
    """Sorted."""
    resting: Mapping[NodeId, Rest]
    """Fit by their status, and declined a short while ago, or missed several rounds."""
    unfit: Mapping[NodeId, str]

    def waits_for(self, min_nodes: int, least: int = 1) -> bool:
        """Whether a round cannot be opened, which takes `least` updates at least.

        Who rests is here: it keeps no others waiting.
        """
        return len(self.ready) < least or len(self.ready) + len(self.resting) < min_nodes

    @property
    def reasons(self) -> dict[NodeId, str]:
        """Why each node that is not ready is not."""
        return {**self.unfit, **{node: rest.why for node, rest in self.resting.items()}}

    def describe(self, run: RunSettings, roster: Roster) -> str:
        """What a coordinator waits for, in a line."""
        which = f" with {', '.join(run.only)}" if run.only else ""
        line = f"waiting for nodes{which}: {len(self.ready)} of {run.min_nodes} are ready"
        if (absent := _absent(run.only, roster)) is not None:
            return f"{line}; {absent}"
        if self.resting:
            line += f", {len(self.resting)} declined or sent nothing and are drawn again after a pause"
        common = commonest(self.reasons)
        return f"{line}; {common}" if common is not None else line


def muster(roster: Roster, demands: Demands, rests: Rests, now: float) -> Muster:
    """Look at every node."""
    ready: list[NodeId] = []
    resting: dict[NodeId, Rest] = {}
    unfit: dict[NodeId, str] = {}
    for node, known in roster.nodes.items():
        if (why := roster.unfit(node, demands)) is not None:
            unfit[node] = why
        elif (rest := rests.resting(node, known.status, now)) is not None:
            resting[node] = rest
        else:
            ready.append(node)
    return Muster(sorted(ready), resting, unfit)


def _absent(rules: Sequence[str], roster: Roster) -> str | None:
    """Rules on a tag of which no value is any node's, and the tags that there are."""
    there = roster.tags()
    if any(parse_rule(rule)[0] == NODE for rule in rules):
        there = [tag for tag in there if parse_rule(tag)[0] != NODE] + [f"{NODE}={n}" for n in roster.nodes]
    found = {parse_rule(rule)[0] for rule in rules if rule in there}
    missing = [rule for rule in rules if parse_rule(rule)[0] not in found]
    if not missing or not len(roster):
        return None
    names = {parse_rule(rule)[0] for rule in missing}
    of_name = [tag for tag in there if parse_rule(tag)[0] in names] or there
    return f"no node has {', '.join(missing)}; there are: {some(of_name) or 'no tags at all'}"
