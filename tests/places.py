"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ROOT / "tests" / "stand_ins" / "colours"
"""A small trained model of colours, with its int8 form and the script that made both."""
