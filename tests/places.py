"""Where things lie in the checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ROOT / "tests" / "stand_ins" / "colours"
"""A small trained model of colours, with its int8 form and the script that made both."""
AXE = Path(os.environ.get("AXE_MIN_JS") or ROOT / "build/browser/node_modules/axe-core/axe.min.js")
"""axe-core, as `make test` has npm fetch it where there is npm."""
