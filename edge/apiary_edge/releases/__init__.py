"""Releases on the node: fetched, verified, tested on its own pictures, swapped in, and rolled back.

`current(state_dir)` is the slot to predict with, for any process.
"""

from apiary_edge.releases.slot import Slot
from apiary_edge.releases.store import current

__all__ = ["Slot", "current"]
