"""Which states faults fall into: the round's, and each node's session, as the parties say on the bus."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from apiary.wire.messages import (
    Announcement,
    Message,
    NodeStatus,
    Offer,
    Progress,
    Receipt,
    RoundResult,
    Want,
)

ROUND: Final = ("open", "collecting", "aggregating", "evaluating", "closed")
SESSION: Final = ("idle", "fetching", "training", "sending", "idle")
Row = tuple[str, str, str]
"""Table, state, and the state that it leads to."""


def rows() -> list[Row]:
    """The transitions of a round in which every node is waited for, and of a node that takes part in it."""
    return [
        (table, before, after)
        for table, states in (("round", ROUND), ("session", SESSION))
        for before, after in pairwise(states)
    ]


class SeenStates:
    """Follows the states, and counts the faults that fell into one before the next was reached."""

    def __init__(self, nodes: Sequence[str]):
        self.round = "closed"
        self.sessions = dict.fromkeys(nodes, "idle")
        self.hit: Counter[Row] = Counter()
        """Faults by transition."""
        self._number = 0
        self._fallen: Counter[tuple[str, str]] = Counter()
        """Faults since the present state of `round` or of a node was reached."""

    @property
    def missing(self) -> list[Row]:
        """Transitions during which no fault fell yet."""
        return [row for row in rows() if not self.hit[row]]

    def heard(self, node: str | None, message: Message) -> None:
        """A message that a party published now; `node` is who sent it, or whom it is for."""
        match message:
            case Announcement(state=state, round=number) if state in ROUND:
                if number >= self._number:
                    self._number = number
                    self._round_is(state)
            case RoundResult(round=number) if number >= self._number:
                self._round_is("closed")
            case Want() if node in self.sessions:
                self._node_is(node, "fetching")
            case Progress() if node in self.sessions:
                self._node_is(node, "training")
            case Offer() if node in self.sessions:
                self._node_is(node, "sending")
            case Receipt(state="accepted" | "duplicate" | "closed") if node in self.sessions:
                self._node_is(node, "idle")
            case NodeStatus(state="ready" | "sending" as state) if node in self.sessions:
                self._node_is(node, "idle" if state == "ready" else state)
            case _:
                return

    def trains(self, node: str) -> None:
        """A training child of this node runs: its first word on the bus may come much later."""
        if self.sessions[node] in ("idle", "fetching"):
            self._node_is(node, "training")

    def untouched(self, table: str, state: str) -> str | None:
        """Whom this state holds now without a fault since it was reached: a node, or "" for the round."""
        if table == "round":
            return "" if self.round == state and not self._fallen["round", ""] else None
        return next(
            (n for n, now in self.sessions.items() if now == state and not self._fallen["session", n]), None
        )

    def fault(self, victim: str) -> str:
        """A fault falls now; the states that it hits, in words: of the sessions one node's own, or all."""
        self._fallen["round", ""] += 1
        of = [victim] if victim in self.sessions else list(self.sessions)
        for node in of:
            self._fallen["session", node] += 1
        states = ", ".join(self.sessions[node] for node in of)
        return f"round {self.round}; {states}"

    def _round_is(self, state: str) -> None:
        before, self.round = self.round, state
        self._reached("round", "", before, state)

    def _node_is(self, node: str | None, state: str) -> None:
        if node is not None:
            before, self.sessions[node] = self.sessions[node], state
            self._reached("session", node, before, state)

    def _reached(self, table: str, of: str, before: str, after: str) -> None:
        if after != before:
            self.hit[table, before, after] += self._fallen.pop((table, of), 0)


def aimed_at(missing: Sequence[Row], states: SeenStates) -> tuple[str, str] | None:
    """A kind of fault and its victim that would fall into a transition which is missing, where one is due."""
    for table, before, _ in missing:
        if (of := states.untouched(table, before)) is not None:
            # A kill would send its victim back to the beginning: the transition would not come.
            return "link-reset", of or "coordinator"
    return None
