"""A picture on its way into the store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incoming:
    """A JPEG or PNG file's bytes, and where they come from (a camera's name, or the name of a file).

    `captured_at` None means now. `automatic` pictures (a camera's) do not come back once their owner deleted
    them. `likeness` is the perceptual hash of a captured frame, `who` gave the label.
    """

    data: bytes
    source: str
    label: str | None = None
    captured_at: float | None = None
    automatic: bool = False
    likeness: int | None = None
    who: str = "import"
