"""How many more pictures of each label would help: a rule of thumb that fits into a sentence. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

ENOUGH: Final = 30
"""Trained pictures that a label should have: with a frozen base, tens a class is where curves flatten."""
BALANCE: Final = 3
"""A label should have at least this part of the largest one's, or the model learns to say the largest."""
RULE: Final = (
    f"A label should have {ENOUGH} pictures to train on, and at least a third as many as the largest label. "
    "Held-out pictures test the model and do not count. It is a rule of thumb: more variety helps more than "
    "more of the same."
)


def needed(trainable: Mapping[str, int], labels: Sequence[str], held_out_share: float) -> dict[str, int]:
    """More pictures to label, by label; those that will be held out are added to what is missing."""
    aim = max(ENOUGH, math.ceil(max(trainable.values(), default=0) / BALANCE))
    kept = max(0.1, 1 - held_out_share)
    return {label: math.ceil(max(0, aim - trainable.get(label, 0)) / kept) for label in labels}
