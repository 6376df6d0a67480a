"""The job of a capture child and the events that it reports: JSON, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from apiary.settings import CameraSettings, CaptureSettings, EdgeSettings, StoreSettings
from apiary_edge.samples.model import StoreBounds


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CaptureJob(_Part):
    """Everything a capture child needs."""

    camera: CameraSettings
    capture: CaptureSettings
    store: StoreSettings
    store_dir: Path
    cache_dir: Path


class CaptureEvent(_Part):
    """One line of the child.

    `kept` a frame became sample `id`; `gone` the camera is not there, and tried again in `retry_s`; `back` it
    is there (again); `trouble` the store took nothing, and why; `alive` sent every few seconds, with what was
    `kept` and what was `dropped` for which reason so far; `ended` a file was read to its end; `failed` the
    settings cannot be meant.
    """

    kind: Literal["kept", "gone", "back", "trouble", "alive", "ended", "failed"]
    text: str = ""
    id: str = ""
    retry_s: float = 0.0
    kept: int = 0
    dropped: dict[str, int] = {}


def job_of(edge: EdgeSettings) -> CaptureJob:
    """The job that follows from a node's settings."""
    return CaptureJob(
        camera=edge.camera,
        capture=edge.capture,
        store=edge.store,
        store_dir=store_dir(edge),
        cache_dir=edge.state_dir / "cache",
    )


def store_dir(edge: EdgeSettings) -> Path:
    """Where a node keeps its samples."""
    return edge.state_dir / "samples"


def bounds_of(settings: StoreSettings) -> StoreBounds:
    """The store's bounds as the settings have them."""
    return StoreBounds(
        max_count=settings.max_count,
        max_bytes=settings.max_mb * 2**20,
        max_per_label=settings.max_per_label,
        min_free_bytes=settings.min_free_mb * 2**20,
        held_out=settings.held_out,
    )


def parse(line: bytes) -> CaptureEvent | None:
    """A line of the child, or None for anything that a library printed."""
    try:
        return CaptureEvent.model_validate_json(line)
    except ValidationError:
        return None
