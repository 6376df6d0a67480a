"""Releases on the node: fetched, verified, tested on its own pictures, swapped in, and rolled back.

`current(state_dir)` is the slot to predict with, for any process.
"""

from apiary_edge.slots.shelf import current
from apiary_edge.slots.slot import Slot

__all__ = ["Slot", "current"]
