"""Runs the export in a child process, so that TensorFlow's 700 MB never enter the coordinator."""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apiary.errors import ApiaryError, DataError, ExportError, ModelError, SettingsError
from apiary.files import sha256_of, write_atomic
from apiary.learn.manifest import Manifest, controls_of
from apiary.process.child import ChildProcess, how_ended, start
from apiary.tensors import Weights
from apiary.wire.blob import decode
from apiary_coordinator.export.job import READ, REVISION, BuildJob, FinishJob, ReadJob, sealed

log = logging.getLogger(__name__)

_BY_EXIT: Final[dict[int, type[ApiaryError]]] = {2: SettingsError, 3: DataError, 6: ModelError}
_KEPT_LINES: Final = 40
MAX_KILLED: Final = 3
"""A child that was killed (by an operator, or by a kernel short of memory) is started again this often."""
PAUSE_S: Final = 5.0
"""What took its memory may be gone by then."""
MAX_KEPT: Final = 16
"""Builds kept for the next run of the same recipe, options, labels and seed: 2 to 40 MB each."""
_KEY: Final = "key"


@dataclass(frozen=True, slots=True)
class Built:
    """A recipe's build on disk. `base` is None unless pictures go through a frozen base."""

    folder: Path
    manifest: Manifest
    manifest_file: Path
    trainer: Path
    base: Path | None
    initial: Weights


def build_in_child(job: BuildJob, *, cache: Path | None = None, timeout_s: float = 600) -> Built:
    """Export a recipe into `job.out`, from the folder `cache` where the same job was done before.

    What the child prints is logged. Raises what the child raised (SettingsError for options, ModelError,
    ExportError), ExportError on time-out; interrupts end the child.
    """
    kept = cache / cache_key(job) if cache else None
    if sealed(job.out) is None or not _same_job(job):
        shutil.rmtree(job.out, ignore_errors=True)
        if kept is not None and sealed(kept) is not None:
            shutil.copytree(kept, job.out)
            os.utime(kept)
        else:
            write_atomic(job.out / _KEY, cache_key(job).encode())
            _run("build", job, job.out, timeout_s)
            if kept is not None:
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(job.out, kept)
                os.utime(kept)  # copytree gives it the time of what it copied
                evict(kept.parent)
    return read_build(job.out)


def evict(cache: Path, most: int = MAX_KEPT) -> None:
    """Remove the builds of `cache` that were not used for longest, down to `most`."""
    used = sorted((p for p in cache.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for folder in used[:-most]:
        shutil.rmtree(folder, ignore_errors=True)


def read_build(folder: Path) -> Built:
    """A complete build. Raises ExportError where files are missing or were changed."""
    if sealed(folder) is None:
        raise ExportError(f"{folder} is not a complete export: remove it, it will be built again")
    manifest_file = folder / "manifest.json"
    base = folder / "base.tflite"
    return Built(
        folder=folder,
        manifest=Manifest.decode(manifest_file.read_bytes()),
        manifest_file=manifest_file,
        trainer=folder / "trainer.tflite",
        base=base if base.is_file() else None,
        initial=decode((folder / "initial.blob").read_bytes(), who=str(folder)).weights,
    )


def finish_in_child(job: FinishJob, *, timeout_s: float = 600) -> None:
    """Write the files `FINISHED` into `job.out`. Raises as `build_in_child`."""
    _run("finish", job, job.out, timeout_s)


def read_in_child(job: ReadJob, *, timeout_s: float = 600) -> Weights:
    """The tensors of a `.keras` file. Raises as `build_in_child`."""
    _run("read", job, job.out, timeout_s)
    return decode((job.out / READ).read_bytes(), who=str(job.file)).weights


def cache_key(job: BuildJob) -> str:
    """sha256 over everything that a build depends on, the versions of TensorFlow and Keras among it."""
    versions = [_version(name) for name in ("tensorflow", "keras", "numpy")]
    weights = None
    if job.base_weights is not None:
        try:
            weights = sha256_of(job.base_weights)
        except OSError as e:
            raise ModelError(f"base_weights {job.base_weights}: {e.strerror}") from None
    plan = [job.plan.optimizer, job.plan.momentum, job.plan.batch_size]
    what = [REVISION, versions, job.recipe, job.options, job.labels, plan, job.seed, weights]
    what += [controls_of(job.plan), job.train] if controls_of(job.plan) or job.train else []
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "tensorflow":
            raise ExportError(
                "exporting a model needs TensorFlow on the coordinator: pip install 'apiary-fl[coordinator]'"
            ) from None
        return ""


def _same_job(job: BuildJob) -> bool:
    try:
        return (job.out / _KEY).read_text(encoding="utf-8") == cache_key(job)
    except OSError:
        return False


class KilledError(ExportError):
    """The child was ended by SIGKILL: no fault of the job's."""


def _run(task: str, job: BuildJob | FinishJob | ReadJob, out: Path, timeout_s: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{task}.job.json"
    write_atomic(file, job.model_dump_json(indent=2).encode())
    command = [sys.executable, "-m", "apiary_coordinator.export", task, str(file)]
    run_again_where_killed(lambda: _run_once(task, command, out, timeout_s))


def run_again_where_killed(run: Callable[[], None], pause: Callable[[float], None] = time.sleep) -> None:
    """`run`, and again after a pause where its child was killed, `MAX_KILLED` times in all."""
    for attempt in range(1, MAX_KILLED + 1):
        try:
            run()
            return
        except KilledError as e:
            if attempt == MAX_KILLED:
                raise
            log.warning("%s; starting it again in %.0f s (%d of %d)", e, PAUSE_S, attempt + 1, MAX_KILLED)
            pause(PAUSE_S)


def _run_once(task: str, command: list[str], out: Path, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    child = ChildProcess(start(command, env=os.environ | {"PYTHONUNBUFFERED": "1"}), _text, name="export")
    try:
        for lines in child.batches():
            for line in lines:
                kept.append(line)
                log.debug("export: %s", line)
            if time.monotonic() >= until:
                raise ExportError(f"the export ({task}) was stopped after {timeout_s:.0f} s")
        code = child.poll() or 0
    finally:
        child.end()
    if code == 0 and sealed(out) is not None:
        return
    message = next((line.removeprefix("error: ") for line in kept if line.startswith("error: ")), None)
    if message:
        raise _BY_EXIT.get(code, ExportError)(message)
    killed = code == -signal.SIGKILL
    last = " | ".join(list(kept)[-3:])[:500]
    raise (KilledError if killed else ExportError)(f"the export ({task}) {how_ended(code)}: {last}")


def _text(line: bytes) -> str | None:
    return line.decode(errors="replace").rstrip()[:2000] or None
