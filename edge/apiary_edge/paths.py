"""Where a node keeps what it has: places in its state folder that several of its processes use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from apiary.settings import EdgeSettings


def store_dir(edge: EdgeSettings) -> Path:
    """The sample store."""
    return edge.state_dir / "samples"


def cache_dir(edge: EdgeSettings) -> Path:
    """The caches of decoded pictures and features."""
    return edge.state_dir / "cache"
