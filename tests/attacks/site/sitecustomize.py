"""Python imports this at the start of each process that has this folder in PYTHONPATH, children included.

`ATTACK_AHEAD_S`: by how much its clock is ahead. `ATTACK_WITHOUT`: the mend that is taken out of it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

if ahead := os.environ.get("ATTACK_AHEAD_S"):
    _right, _ahead_s = time.time, float(ahead)
    time.time = lambda: _right() + _ahead_s

if without := os.environ.get("ATTACK_WITHOUT"):
    try:
        sys.path.insert(0, str(Path(__file__).parents[3]))
        from tests.attacks.unmended import MENDS

        MENDS[without]()
    except BaseException:
        # `site` would go on without a word, and the row would hold with the mend in its place.
        traceback.print_exc()
        os._exit(99)
