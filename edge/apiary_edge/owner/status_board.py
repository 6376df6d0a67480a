"""What a node's own messages say of it, folded together for the owner who stands before it. Pure."""

from collections import deque
from typing import Any, Final

from apiary.wire.messages import (
    Announcement,
    CoordinatorStatus,
    Message,
    NodeHealth,
    NodeStatus,
    Notice,
    Offer,
    Progress,
    Receipt,
)

MAX_LAST: Final = 10
"""Rounds that are remembered."""


class Board:
    """Takes every message that the node sends or takes; `picture` is what its owner looks at.

    Times are monotonic seconds; whoever reads the picture later works out how long ago they were.
    """

    def __init__(self) -> None:
        self._status: NodeStatus | None = None
        self._round: tuple[str, int, int] | None = None
        self._progress: tuple[Progress, float] | None = None
        self._offers: dict[str, Offer] = {}
        self._health: NodeHealth | None = None
        self._coordinator: CoordinatorStatus | None = None
        self._last: deque[dict[str, Any]] = deque(maxlen=MAX_LAST)
        self._broker: dict[str, Any] = {"connected": False}

    def take(self, message: Message, now: float) -> None:
        """A message that the node sent, or one for it."""
        match message:
            case NodeStatus():
                self._status = message
                if message.state not in {"training", "paused"}:
                    self._progress = None
                if message.declined and message.run is not None and message.round is not None:
                    self._over(message.run, message.round, "declined", why=message.why)
            case Announcement():
                self._round = (message.run, message.round, message.rounds)
            case Notice(announcement=Announcement() as announcement):
                self._round = (announcement.run, announcement.round, announcement.rounds)
            case Progress():
                self._progress = (message, now)
            case Offer():
                # Bounded: a node has one update at a time, and few wait.
                self._offers = {**dict(list(self._offers.items())[-3:]), message.update.digest: message}
            case Receipt() if message.state != "missing":
                self._answered(message)
            case NodeHealth():
                self._health = message
            case CoordinatorStatus():
                self._coordinator = message

    def linked(self, now: float) -> None:
        """The broker took us in."""
        self._broker = {"connected": True, "since_s": round(now, 1)}

    def unlinked(self, why: str, now: float) -> None:
        """It is gone, or was not there."""
        since = self._broker.get("since_s", now) if not self._broker["connected"] else now
        self._broker = {"connected": False, "since_s": round(since, 1), "why": why}

    def picture(self) -> dict[str, Any]:
        """Plain JSON values."""
        status = self._status
        ours = status is not None and status.run is not None
        of = (
            self._round[2]
            if self._round and status and self._round[:2] == (status.run, status.round)
            else None
        )
        return {
            "state": status.state if status else "init",
            "why": status.why if status else None,
            "round": {"run": status.run, "number": status.round, "of": of} if status and ours else None,
            "progress": self._shown(),
            "samples": status.samples if status else None,
            "labels": status.labels if status else None,
            "waiting": status.waiting if status else None,
            "also_held_out": status.also_held_out if status else None,
            "runtimes": status.runtimes if status else [],
            "broker": self._broker,
            "coordinator": _plain(self._coordinator),
            "health": _plain(self._health),
            "last": list(self._last),
        }

    def line(self) -> str:
        """What the node is at, in one line."""
        status = self._status
        if status is None:
            return "starting"
        words: list[str] = [status.state]
        if status.run is not None:
            words.append(f"round {status.round} of run {status.run}")
        if self._progress is not None:
            words.append(f"epoch {self._progress[0].epoch} of {self._progress[0].epochs}")
        if status.why:
            words.append(status.why)
        return ", ".join(words) + ("" if self._broker["connected"] else ", no broker")

    def _shown(self) -> dict[str, Any] | None:
        if self._progress is None:
            return None
        progress, at = self._progress
        shown = progress.model_dump(
            exclude_none=True, include={"epoch", "epochs", "loss", "accuracy", "left_s"}
        )
        return {**shown, "at_s": round(at, 1)}

    def _answered(self, receipt: Receipt) -> None:
        offer = self._offers.pop(receipt.digest, None)
        more: dict[str, Any] = {}
        if offer is not None:
            more = {"samples": offer.samples, **offer.metrics.model_dump(include={"seconds", "accuracy"})}
        self._over(receipt.run, receipt.round, receipt.state, why=receipt.why, **more)

    def _over(self, run: str, number: int, outcome: str, **more: Any) -> None:
        if any((r["run"], r["round"]) == (run, number) for r in self._last):
            return
        known = {k: v for k, v in more.items() if v is not None}
        self._last.append({"run": run, "round": number, "outcome": outcome, **known})


def _plain(message: Message | None) -> dict[str, Any] | None:
    return message.model_dump(mode="json", exclude_none=True, exclude={"v"}) if message is not None else None
