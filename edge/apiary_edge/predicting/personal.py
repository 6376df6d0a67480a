"""The head of the newest model, tuned to this node's own pictures. It stays here; rounds do not know of it.

Where pictures go through a frozen base, the trainer is the head, and it trains on the cached features. Else
the exported training step moves every tensor, so after each step all but the last layer are put back: the
features stay those of the federation, and the gradient of the next step is again that of the last layer
alone. Putting back empties the optimizer, so Adam takes steps of the learning rate's size; it falls to 0.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from apiary.errors import ModelError
from apiary.files import write_atomic
from apiary.learn.cache import ArrayCache
from apiary.learn.fit import fit, predict, split
from apiary.learn.images import Dataset, Scan
from apiary.learn.manifest import Manifest
from apiary.learn.metrics import accuracy
from apiary.learn.runtimes import choose
from apiary.learn.runtimes.base import Runtime, StepControls, Trainer
from apiary.settings import PersonalSettings
from apiary.tensors import Array, Weights
from apiary.wire import blob
from apiary.wire.messages import Plan
from apiary_edge.predicting import model_files
from apiary_edge.predicting.job import BackgroundJob
from apiary_edge.predicting.model_files import ModelFile, Personal
from apiary_edge.training import pictures

VALIDATION_SHARE: Final = 0.2
"""Of a folder's pictures, where no sample store holds any out."""


def tune(job: BackgroundJob, found: ModelFile, say: Callable[[str], None]) -> Personal:
    """Tune, compare, and write both down; what came of it. Raises DataError, ModelError, StoreError."""
    settings = job.edge.personal
    if found.manifest is None:
        raise ModelError(f"{found.name}: its description names no manifest")
    manifest = Manifest.decode(found.manifest.read_bytes())
    runtime = choose(job.edge.runtime)
    train, test = _pictures(job, manifest, found, runtime)
    short = _too_few(settings, len(train), len(test))
    if short is not None:
        return _write(job, Personal(of=found.digest, samples=len(train), held_out=len(test), why=short))
    before = blob.decode(found.file.read_bytes(), who=found.name).weights
    trainer = runtime.open_trainer(manifest, found.trainer, threads=1)
    trainer.set_weights(before)
    as_it_came = accuracy(predict(trainer, test), test.y)
    say(f"tuning the head of {found.name} to {len(train)} pictures")
    plan = Plan(
        epochs=settings.epochs,
        batch_size=manifest.batch_size,
        optimizer=manifest.optimizer,
        momentum=manifest.momentum,
        learning_rate=settings.learning_rate,
        validation_share=0.0,
        class_weights=True,
    )
    steps = settings.epochs * -(-len(train) // manifest.batch_size)
    head = set(manifest.shapes) if manifest.features is not None else last_layer(manifest)
    tuned = fit(HeadOnly(trainer, head, steps), manifest, plan, train, before, seed=job.seed).weights
    trainer.set_weights(tuned)
    as_tuned = accuracy(predict(trainer, test), test.y)
    document = blob.encode(tuned)
    digest = hashlib.sha256(document).hexdigest()
    # A name of its own: who reads the old description meanwhile finds the old file.
    file = model_files.folder(job.edge.state_dir) / f"personal-{digest[:16]}.blob"
    write_atomic(file, document)
    result = _write(
        job,
        Personal(
            of=found.digest,
            file=file.absolute(),
            digest=digest,
            samples=len(train),
            held_out=len(test),
            accuracy_global=as_it_came,
            accuracy_personal=as_tuned,
        ),
    )
    for old in file.parent.glob("personal-*.blob"):
        if old != file:
            old.unlink(missing_ok=True)
    return result


def last_layer(manifest: Manifest) -> set[str]:
    """Names of the tensors of the model's last layer: `classes/kernel`, `classes/bias`."""
    layer = manifest.tensors[-1].name.rpartition("/")[0]
    return {t.name for t in manifest.tensors if t.name.rpartition("/")[0] == layer}


class HeadOnly:
    """A trainer that moves the tensors of `head` alone, less and less over `steps` steps."""

    def __init__(self, inner: Trainer, head: set[str], steps: int):
        self._inner = inner
        self._head = head
        self._steps = steps
        self._done = 0
        self._before: Weights | None = None

    def set_weights(self, weights: Weights) -> None:
        """Begin with these."""
        self._before = weights
        self._inner.set_weights(weights)

    def get_weights(self) -> Weights:
        """As they are now."""
        return self._inner.get_weights()

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
        """One step of the head."""
        assert self._before is not None  # noqa: S101 - weights are set before a step
        rate = controls.learning_rate * max(0.0, 1 - self._done / self._steps)
        self._done += 1
        loss = self._inner.step(x, y, w, replace(controls, learning_rate=rate))
        if len(self._head) < len(self._before):
            moved = self._inner.get_weights()
            back = {name: moved[name] if name in self._head else t for name, t in self._before.items()}
            self._inner.set_weights(Weights(back))
        return loss

    def infer(self, x: Array) -> Array:
        """Class probabilities."""
        return self._inner.infer(x)


def _pictures(
    job: BackgroundJob, manifest: Manifest, found: ModelFile, runtime: Runtime
) -> tuple[Dataset, Dataset]:
    """What trains the head, and what no round and no tuning ever trains."""
    cache = ArrayCache(job.edge.cache_dir, job.edge.cache_mb)

    def load(scan: Scan) -> Dataset:
        base, digest = found.base, found.base_digest
        return pictures.load(scan, manifest, runtime, cache, base=base, base_digest=digest)

    scan = pictures.find(job, manifest.labels, manifest.input)
    every = pictures.without_held_out(job, scan, load(scan))
    kept = (
        pictures.held_out(job.store, manifest.labels, join_labels=job.join_labels)
        if job.store is not None
        else None
    )
    if kept is not None and kept.records:
        return every, load(kept)
    trains, tests = split(every.digests, VALIDATION_SHARE)
    return every.take(trains), every.take(tests)


def _too_few(settings: PersonalSettings, samples: int, held_out: int) -> str | None:
    if samples < settings.min_samples:
        return f"{samples} labelled pictures, {settings.min_samples} are needed (edge.personal.min_samples)"
    if held_out < settings.min_held_out:
        return (
            f"{held_out} held-out pictures, {settings.min_held_out} are needed to compare "
            "(edge.personal.min_held_out)"
        )
    return None


def _write(job: BackgroundJob, personal: Personal) -> Personal:
    personal = personal.model_copy(update={"counted": job.counted})
    file: Path = model_files.personal_file(job.edge.state_dir)
    write_atomic(file, personal.model_dump_json(indent=2).encode())
    return personal


def not_now(job: BackgroundJob, found: ModelFile, why: str) -> Personal:
    """Write down that this model was not tuned, and why; the next one is tried again."""
    return _write(job, Personal(of=found.digest, why=why[:500]))
