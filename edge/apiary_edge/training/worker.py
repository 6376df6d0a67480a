"""The training child: `python -m apiary_edge.training.worker JOB.json`. Pictures in, one update file out.

A process of its own, so that its memory goes back to the system after each round and a crash costs one
round at most. One thread of arithmetic: the same job gives the same bits each time. Whoever starts it
sets that in the environment, as `TrainingProcess` does; by hand: `OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1`.
"""

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apiary.errors import ApiaryError, DataError
from apiary.files import write_atomic
from apiary.wire.chunks import digest_of
from apiary.wire.messages import TrainMetrics
from apiary_edge.health.memory import address_limit
from apiary_edge.health.readings import MB
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.training.memory_guard import MemoryGuard, MemoryLimits, be_first_to_go, limits

if TYPE_CHECKING:
    from apiary.learn.runtimes.base import Runtime

Emit = Callable[[TrainingEvent], None]


def main(argv: list[str]) -> int:
    """Run one job; 0 done, 3 declined, 6 failed. Reports `TrainingEvent` lines on standard output."""
    job = TrainJob.model_validate_json(Path(argv[1]).read_bytes())

    def act(guard: MemoryGuard) -> None:
        train(job, TrainingEvent.report, awake=guard.awake)

    return run_guarded(act, limits(job.reserve_mb, job.max_memory_mb), "the round")


def run_guarded(act: Callable[[MemoryGuard], None], bounds: MemoryLimits, what: str) -> int:
    """Do `what` within its bounds of memory and report why it ended early; the exit code."""
    be_first_to_go()
    guard = MemoryGuard(bounds, give_up)
    guard.start()
    try:
        act(guard)
    except ApiaryError as e:
        kind: Literal["declined", "failed"] = "declined" if isinstance(e, DataError) else "failed"
        # A picture that was too large for what is left is said as one that cannot be read.
        limited = _under() if "not enough memory" in str(e) else ""
        TrainingEvent(kind=kind, text=f"{str(e)[: 500 - len(limited)]}{limited}").report()
        return e.exit_code
    except MemoryError:
        text = f"this node has not enough memory for {what}{_under()}"
        TrainingEvent(kind="declined", text=text).report()
        return DataError.exit_code
    finally:
        guard.stop()
    return 0


def train(
    job: TrainJob,
    emit: Emit,
    *,
    clock: Callable[[], float] = time.monotonic,
    awake: Callable[[], float] = time.monotonic,
    runtime: "Runtime | None" = None,
) -> None:
    """Load, train, and leave the update in `job.out`. Raises DataError, ModelError, StoreError.

    `awake` counts seconds, but not those while the process is frozen: the time left is computed with it.
    `runtime` takes the place of the one that the job names.
    """
    from apiary.learn.cache import ArrayCache
    from apiary.learn.fit import FitProgress, passes_of
    from apiary.learn.folder.labels import shown
    from apiary.learn.manifest import Manifest
    from apiary.learn.runtimes import choose
    from apiary.wire import blob
    from apiary_edge.training import pictures
    from apiary_edge.training.update import make_update

    began = clock()
    manifest = Manifest.decode(job.manifest.read_bytes())
    runtime = runtime or choose(job.runtime)
    cache = ArrayCache(job.cache_dir, job.cache_mb)
    found = pictures.find(job, manifest.labels, manifest.input)
    loaded = pictures.load(found, manifest, runtime, cache, base=job.base, base_digest=job.base_digest)
    data = pictures.without_held_out(job, found, loaded)
    for message in [
        *found.messages(),
        *(f"{shown(str(s.path))}: left out: {s.why}" for s in data.skipped[len(found.skipped) :]),
    ]:
        emit(TrainingEvent(kind="warning", text=message[:500]))
    also_held_out = pictures.also_held_out(job.held_out, job.store, data)
    if also_held_out:
        emit(TrainingEvent(kind="warning", text=f"{also_held_out} {pictures.ALSO_HELD_OUT}"))
    before = blob.decode(job.model.read_bytes(), who="the announced model").weights
    trainer = runtime.open_trainer(manifest, job.trainer, threads=job.threads)
    # A step is a millisecond; going through all that was imported, again and again, would be a tenth of it.
    gc.freeze()
    fitting, fitting_awake = clock(), awake()

    def progress(p: FitProgress) -> None:
        done = (p.epoch - 1 + p.fraction) / p.epochs
        left = round((awake() - fitting_awake) * (1 - done) / done, 1)
        emit(
            TrainingEvent(
                kind="progress", epoch=p.epoch, epochs=p.epochs, loss=p.loss, accuracy=p.accuracy, left_s=left
            )
        )

    def enough(epoch: int) -> bool:
        """Whether another epoch would end after the time that the round leaves."""
        per_epoch = (clock() - fitting) / epoch
        return job.time_s is not None and clock() - began + per_epoch > job.time_s

    document, result = make_update(
        trainer,
        manifest,
        job.plan,
        data,
        before,
        run=job.run,
        round_=job.round,
        node=job.node,
        max_norm=job.max_norm,
        progress=progress,
        enough=enough,
    )
    if result.epochs < (planned := passes_of(job.plan, result.samples)):
        emit(TrainingEvent(kind="warning", text=f"out of time after {result.epochs} of {planned} epochs"))
    for warning in result.warnings:
        emit(TrainingEvent(kind="warning", text=warning[:500]))
    write_atomic(job.out / "update.blob", document)
    emit(
        TrainingEvent(
            kind="done",
            digest=digest_of(document),
            bytes=len(document),
            samples=result.samples,
            also_held_out=also_held_out,
            metrics=TrainMetrics(
                loss=result.loss,
                accuracy=result.accuracy,
                accuracy_before=result.accuracy_before,
                seconds=round(clock() - began, 3),
                epochs=result.epochs,
            ),
        )
    )


def give_up(why: str, *, out: int = 1, end: Callable[[int], object] = os._exit) -> None:
    """End the process at once, from the guard's thread: a line this short goes into the pipe whole."""
    os.write(out, TrainingEvent(kind="declined", text=why[:500]).line().encode())
    end(DataError.exit_code)


def _under() -> str:
    limit = address_limit()
    return f": its address space is limited to {limit // MB} MB (RLIMIT_AS, ulimit -v)" if limit else ""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
