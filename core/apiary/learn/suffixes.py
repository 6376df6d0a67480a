"""Which files are samples, by their names: cheap to ask, without loading what reads them."""

from __future__ import annotations

from typing import Final

PICTURES: Final = (".jpg", ".jpeg", ".png")
TEXTS: Final = (".txt",)
"""One short text a file, such as a name."""
