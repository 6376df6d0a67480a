"""Which predictions are worth a message. Pure: the time comes as an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Changes:
    """A message at most every `every_s`, and only for news.

    News is another label, a probability that moved by `least` or more, another model, or nothing said for
    `repeat_s`: who came later has not heard the last one, because predictions are not retained.
    """

    every_s: float
    least: float
    repeat_s: float
    _said: tuple[str, str | None] | None = None
    _probability: float = 0.0
    _said_at: float = 0.0

    def due(self, model: str, label: str | None, probability: float, now: float) -> bool:
        """Whether to say it; then it counts as said. `now` is monotonic."""
        if self._said is not None:
            past = now - self._said_at
            if past < self.every_s:
                return False
            same = self._said == (model, label) and abs(probability - self._probability) < self.least
            if same and past < self.repeat_s:
                return False
        self._said, self._probability, self._said_at = (model, label), probability, now
        return True
