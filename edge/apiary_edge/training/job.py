"""The job of a training child and the events that it reports: JSON, a line each."""

from pathlib import Path
from typing import Literal

from apiary.wire.messages import Plan, TrainMetrics
from apiary_edge.child_messages import ChildEvent, ChildMessage


class TrainJob(ChildMessage):
    """Everything a child needs; `out` is where it leaves `update.blob`.

    Pictures come from the sample store in `store`, from the folders of `data_dir`, or from both. With
    `time_s` it ends after the last whole epoch that fits into so many seconds, the first always. It gives up
    where the machine has less than `reserve_mb` left, or where it would take more than `max_memory_mb`.
    The update is clipped to `max_norm`.
    """

    run: str
    round: int
    node: str
    plan: Plan
    manifest: Path
    trainer: Path | None
    base: Path | None
    base_digest: str | None
    model: Path
    data_dir: Path | None = None
    join_labels: bool = False
    held_out: Path | None = None
    store: Path | None = None
    cache_dir: Path
    cache_mb: int
    out: Path
    runtime: str
    threads: int
    time_s: float | None = None
    max_norm: float | None = None
    reserve_mb: int = 0
    max_memory_mb: int | None = None


class TrainingEvent(ChildEvent):
    """One line of the child: progress, a warning, the end, or why there is none.

    `declined` is a reason of the node's own (too few pictures), `failed` one that the operator should see;
    `crashed` is added by the service when the child ended without a conclusion, and is worth another try.
    """

    kind: Literal["progress", "warning", "done", "declined", "failed", "crashed"]
    text: str = ""
    signal: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    accuracy: float | None = None
    left_s: float | None = None
    digest: str = ""
    bytes: int = 0
    samples: int = 0
    also_held_out: int | None = None
    metrics: TrainMetrics | None = None
