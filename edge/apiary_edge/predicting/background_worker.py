"""The background child: `python -m apiary_edge.predicting.background_worker JOB.json`, between rounds.

It tunes the newest model's head to this node, where that is wanted and not done, and then notes suggestions.
It reports events as a training child does, and ends.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from apiary.errors import ApiaryError, DataError, StoreError
from apiary_edge.predicting import model_files
from apiary_edge.predicting.job import BackgroundJob
from apiary_edge.training.job import TrainingEvent
from apiary_edge.training.memory_guard import limits
from apiary_edge.training.worker import run_guarded


def main(argv: list[str]) -> int:
    """Do one job; what happened is on standard output as `TrainingEvent` lines."""
    job = BackgroundJob.model_validate_json(Path(argv[1]).read_bytes())
    guest = job.edge.guest
    bounds = limits(guest.min_memory_mb // 2, guest.max_memory_mb)
    return run_guarded(lambda guard: do(job, TrainingEvent.report), bounds, "it")


def do(job: BackgroundJob, emit: Callable[[TrainingEvent], None]) -> None:
    """Tune, then suggest. Raises ModelError, StoreError."""

    def warn(text: str) -> None:
        emit(TrainingEvent(kind="warning", text=text[:500]))

    newest = model_files.newest(job.edge.state_dir)
    if job.edge.personal.enabled and newest is not None:
        done = model_files.personal(job.edge.state_dir)
        if model_files.stale(done, newest, job.counted):
            warn(_tune(job, newest, warn))
    noted = 0
    found = model_files.chosen(job.edge.state_dir)
    if job.suggests and job.store is not None and found is not None:
        from apiary_edge.predicting.suggesting import suggest

        noted, failed = suggest(job.store, job.edge.store, found, warn)
        if noted or failed:
            warn(f"suggestions for {noted} pictures by {found.name}")
    emit(TrainingEvent(kind="done", samples=noted))


def _tune(job: BackgroundJob, newest: model_files.ModelFile, warn: Callable[[str], None]) -> str:
    from apiary_edge.predicting import personal

    try:
        result = personal.tune(job, newest, warn)
    except StoreError:
        raise
    except (DataError, ApiaryError, MemoryError) as e:
        result = personal.not_now(job, newest, str(e) or "not enough memory")
    if result.accuracy_global is None or result.accuracy_personal is None:
        return f"no personal model: {result.why}"
    return (
        f"on {result.held_out} held-out pictures the federation's model is right in "
        f"{result.accuracy_global:.1%}, the tuned one in {result.accuracy_personal:.1%}; "
        f"predicting with the {'tuned' if result.better else 'federation’s'} one"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
