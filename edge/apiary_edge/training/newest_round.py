"""Which announcement is out of date: one of an earlier round than the run's present one. Pure."""

from dataclasses import dataclass
from typing import Final

from apiary.wire.messages import Announcement
from apiary_edge.training.session import OPEN_STATES

TRUST_S: Final = 300.0
"""For so long after a round was heard of, earlier ones of its run are not believed. Later they are: a
coordinator whose journal was restored from a backup begins at an earlier round."""


@dataclass(slots=True)
class NewestRound:
    """The newest round that was heard of. Epochs do not help here, they have no order."""

    heard: tuple[str, int, float] | None = None
    takes_updates: bool | None = None
    """Whether that round did when it was heard of; None before anything was."""

    def take(self, announcement: Announcement, now: float) -> bool:
        """Whether to follow it; False where a broker held it back, or somebody repeated it."""
        if self.heard is not None:
            run, number, heard_at = self.heard
            if announcement.run == run and announcement.round < number and now - heard_at < TRUST_S:
                return False
        self.heard = (announcement.run, announcement.round, now)
        self.takes_updates = announcement.state in OPEN_STATES
        return True

    def nothing_open(self) -> None:
        """The coordinator says that no round is."""
        self.takes_updates = False

    def over(self, run: str, number: int) -> bool:
        """Whether this round takes no update any more, by what was heard last; False where nothing was."""
        if self.takes_updates is None:
            return False
        return not self.takes_updates or self.heard is None or self.heard[:2] != (run, number)
