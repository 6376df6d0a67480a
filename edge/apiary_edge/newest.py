"""Which announcement is out of date: one of an earlier round than the run's present one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from apiary.wire.messages import Announcement

TRUST_S: Final = 300.0
"""For so long after a round was heard of, earlier ones of its run are not believed. Later they are: a
coordinator whose journal was restored from a backup begins at an earlier round."""


@dataclass(slots=True)
class Newest:
    """The newest round that was heard of. Epochs do not help here, they have no order."""

    heard: tuple[str, int, float] | None = None

    def take(self, told: Announcement, now: float) -> bool:
        """Whether to follow it; False where a broker held it back, or somebody repeated it."""
        if self.heard is not None:
            run, number, heard_at = self.heard
            if told.run == run and told.round < number and now - heard_at < TRUST_S:
                return False
        self.heard = (told.run, told.round, now)
        return True
