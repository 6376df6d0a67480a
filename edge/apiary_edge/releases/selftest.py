"""The testing child: `python -m apiary_edge.releases.selftest JOB.json`. Release and pictures in, result out.

A process of its own: a model that crashes its runtime, hangs or takes all memory costs this process only.
"""

from __future__ import annotations

import hashlib
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from apiary.errors import ApiaryError, DataError, ModelError
from apiary.files import write_atomic
from apiary.printable import printable
from apiary_edge.releases.job import TrialJob, TrialModel, TrialResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apiary.eim.protocol import EimModel
    from apiary.learn.images import Dataset, PictureRecord, Scan
    from apiary.learn.manifest import PictureInput
    from apiary.wire.messages import PictureShape

_LOOKED_AT: Final = 20
"""Files of a data folder that are read for each that is wanted, at most; a share of them is held out."""

Answer = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]


def main(argv: list[str]) -> int:
    """Run one job; the result lies in its `out`. 0, whatever the result is."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a program is closed in order
    job = TrialJob.model_validate_json(Path(argv[1]).read_bytes())
    try:
        result = run(job)
    except (ModelError, DataError) as e:
        # In the store it is named by its digest, which means nothing to an operator.
        result = TrialResult(failed=printable(str(e).replace(job.model.file.name, "the program"))[:400])
    except MemoryError:
        result = TrialResult(failed="this node has not enough memory for it")
    write_atomic(job.out, result.model_dump_json().encode(), sync=False)
    return 0


def run(job: TrialJob) -> TrialResult:
    """Raises ModelError where the release does not hold, whatever else is wrong only leaves a number out."""
    data = _pictures(job)
    if data is None:
        _, took = _ask(job.model, job.threads, _drawn(job.model))
        return TrialResult(inference_ms=took)
    answers, took = _ask(job.model, job.threads, data.x.astype(np.uint8, copy=False))
    right_before = None
    if job.before is not None and set(job.before.labels) == set(job.model.labels):
        right_before = _before(job, job.before, data)
    return TrialResult(
        pictures=len(data),
        right=int(np.sum(answers.argmax(axis=1) == data.y)),
        right_before=right_before,
        inference_ms=took,
    )


def _before(job: TrialJob, before: TrialModel, data: Dataset) -> int | None:
    """How many of the same pictures the present release has right, None where it gives no answer."""
    try:
        if before.input != job.model.input:
            data = _load(_scan(job, before.labels), before)
        answers, _ = _ask(before, job.threads, data.x.astype(np.uint8, copy=False))
    except ApiaryError as e:
        print(f"the present release: {e}", file=sys.stderr)
        return None
    order = np.array([before.labels.index(label) for label in data.labels])
    return int(np.sum(answers.argmax(axis=1) == order[data.y]))


def _ask(model: TrialModel, threads: int, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Its probabilities float32[N, C] in the order of its labels, and the median time of one in ms."""
    answers = np.empty((len(pictures), len(model.labels)), np.float32)
    times: list[float] = []
    answer, close = _open(model, threads)
    try:
        for i, picture in enumerate(pictures):
            began = time.perf_counter()
            answers[i] = answer(picture)
            times.append(1000 * (time.perf_counter() - began))
            if not np.isfinite(answers[i]).all():
                raise ModelError(f"it answers {answers[i][:5].tolist()}, expected probabilities")
    finally:
        close()
    return answers, round(statistics.median(times), 3)


def _open(model: TrialModel, threads: int) -> tuple[Answer, Callable[[], None]]:
    if model.kind == "tflite":
        from apiary.learn.classifier import Classifier

        classifier = Classifier(model.file, threads=threads)
        if classifier.classes != len(model.labels):
            raise ModelError(f"it has {classifier.classes} classes, its manifest {len(model.labels)} labels")
        _check_input(classifier.input, model.input)
        return classifier.predict, lambda: None
    from apiary_edge.eim.client import EimRunner

    runner = EimRunner(model.file, labels=model.labels)
    try:
        _check_input(runner.start(), model.input)
    except BaseException:
        runner.close()
        raise

    def ask(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = runner.classify(picture).probabilities
        return np.array([found[label] for label in model.labels], np.float32)

    return ask, runner.close


def _check_input(file: PictureInput | EimModel, manifest: PictureShape) -> None:
    took, expected = (f"{of.width}x{of.height}x{of.channels}" for of in (file, manifest))
    if took != expected:
        raise ModelError(f"it takes {took}, its manifest says {expected}")


def _drawn(model: TrialModel) -> NDArray[np.uint8]:
    """Black, white and noise: without pictures of its own a node still sees whether it answers."""
    shape = (model.input.height, model.input.width, model.input.channels)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def _pictures(job: TrialJob) -> Dataset | None:
    found = _scan(job, job.model.labels)
    if not found.records:
        return None
    try:
        return _load(found, job.model)
    except DataError as e:
        print(f"held-out pictures: {e}", file=sys.stderr)
        return None


def _load(found: Scan, model: TrialModel) -> Dataset:
    from apiary.learn import images
    from apiary.learn.manifest import PictureInput

    size = model.input.model_dump(exclude={"resize"}, exclude_none=True)
    return images.load(found, PictureInput.model_validate(size))


def _scan(job: TrialJob, labels: list[str]) -> Scan:
    """Up to `max_pictures` held-out ones, the same each time. Raises DataError."""
    from apiary.learn import images
    from apiary.learn.images import Scan
    from apiary_edge.training import pictures

    known = tuple(labels)
    records = (
        list(pictures.held_out(job.store, known, join_labels=job.join_labels).records)
        if job.store is not None
        else []
    )
    records = sorted(records, key=lambda r: r.path.name)[: job.max_pictures]  # named by digest: a fair draw
    if job.data_dir is not None and len(records) < job.max_pictures:
        try:
            folder = images.scan(job.data_dir, known, join_labels=job.join_labels)
        except DataError as e:
            print(f"{e}", file=sys.stderr)
        else:
            records += _validating(folder, job.folder_share, job.max_pictures - len(records))
    return Scan(job.data_dir or job.store or Path(), tuple(records), known, {}, ())


def _validating(folder: Scan, share: float, most: int) -> list[PictureRecord]:
    """Pictures of a data folder that no round trains: those whose digest lies in the validation share."""
    from apiary.learn import images

    order = sorted(folder.records, key=lambda r: hashlib.sha256(str(r.path).encode()).digest())
    chosen: list[PictureRecord] = []
    for record in order[: _LOOKED_AT * most]:
        if len(chosen) == most:
            break
        try:
            digest = hashlib.sha256(images.read(record.path)).hexdigest()
        except DataError:
            continue
        if int(digest[:13], 16) / 16**13 < share:
            chosen.append(record)
    return chosen


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
