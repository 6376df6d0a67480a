"""What a chores child is asked to do, in its spare time."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from apiary.settings import EdgeSettings, PersonalSettings
from apiary_edge.capture.job import store_dir


class BackgroundJob(BaseModel):
    """`out` is where it may write what is not kept; pictures come as for a round.

    It gives up where the machine has less than `reserve_mb` left, or it would take more than `max_memory_mb`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path
    out: Path
    store: Path | None
    data_dir: Path | None
    cache_dir: Path
    cache_mb: int
    runtime: str
    personal: PersonalSettings
    suggest: bool
    counted: int = 0
    """Labelled pictures of this node."""
    seed: int = 0
    reserve_mb: int = 0
    max_memory_mb: int | None = None


def chores_job(edge: EdgeSettings, *, store: bool) -> BackgroundJob:
    """The job that the settings of a node ask for."""
    return BackgroundJob(
        state_dir=edge.state_dir,
        out=edge.state_dir / "chores",
        store=store_dir(edge) if store else None,
        data_dir=edge.data_dir,
        cache_dir=edge.state_dir / "cache",
        cache_mb=edge.cache_mb,
        runtime=edge.runtime,
        personal=edge.personal,
        suggest=edge.predict.suggest and store,
        reserve_mb=edge.guest.min_memory_mb // 2,
        max_memory_mb=edge.guest.max_memory_mb,
    )
