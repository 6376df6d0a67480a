"""What a Pi's Python must do with a recipe: train as Keras does, the same bits twice, on its own pictures.

Each check returns what it found in a few words, and raises `DiffersError` where that is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from tests.aarch64.owner import label_in_terminal, samples
from tests.aarch64.tree import Tree

from apiary.process.child import light_environment
from apiary.tensors import Weights
from apiary.wire import blob
from apiary.wire.chunks import digest_of
from apiary.wire.messages import Plan
from apiary_coordinator.export import parity as gate
from apiary_coordinator.export.client import Built, build_in_child
from apiary_coordinator.export.job import BuildJob
from apiary_edge.training.job import TrainingEvent, TrainJob

LABELS: Final = ["dark", "light"]
PLAN: Final = Plan(epochs=2, batch_size=8, learning_rate=0.001, seed=3, validation_share=0.2)
SHOTS, FILED = 24, 40
MOST_APART: Final = 0.02
"""Between two runtimes' weights: Adam turns the last bits into up to a learning rate a step."""


class DiffersError(Exception):
    """Something is not as it should be; the message says what."""


def exported(recipe: str, options: dict[str, Any], folder: Path) -> Built:
    """The recipe as the coordinator exports it, by a child with TensorFlow on this machine."""
    out = folder / "-".join([recipe, *map(str, options.values())])
    job = BuildJob(recipe=recipe, options=options, labels=LABELS, plan=PLAN, seed=1, out=out)
    return build_in_child(job)


def parity(tree: Tree, built: Built, folder: Path) -> str:
    """The gate's probe there, against Keras here."""
    there = _probe(tree, built, folder / "first")
    command = [sys.executable, "-m", "apiary_coordinator.export.parity", str(built.folder), str(there)]
    done = subprocess.run(command, capture_output=True, timeout=600, check=True)
    found = json.loads(done.stdout)
    if "error" in found:
        raise DiffersError(found["error"])
    return ", ".join(f"{name} {found[name]:.0e}" for name in ("gradient", "optimizer", "prox", "loss"))


def bits(tree: Tree, built: Built, folder: Path) -> str:
    """The gate's probe there in two processes."""
    first, second = (_arrays(_probe(tree, built, folder / name)) for name in ("first", "second"))
    if unlike := [n for n, t in first.items() if not np.array_equal(t, second[n])]:
        raise DiffersError(f"two processes gave other bits in {', '.join(unlike)}")
    here = _arrays(gate.ask(built.folder, built.manifest, "litert", folder / "here").folder)
    same = all(np.array_equal(t, here[n]) for n, t in first.items())
    return f"{len(first)} arrays; {'also' if same else 'not'} those of this machine's runtime"


def pictures(tree: Tree, built: Built, folder: Path) -> str:
    """Camera, store, labels, training, update; then the same job once more there, and here."""
    state = folder / "state"
    shots, filed = folder / "camera", folder / "filed"
    _shoot(shots, SHOTS, seed=1)
    for label in LABELS:
        _shoot(filed / label, FILED // 2, seed=2, only=label)
    apiary = ["-m", "apiary_cli"]
    at: list[str | Path] = ["--state-dir", state]
    tree.run([*apiary, "capture", "--camera", "folder", "--source", shots, "--count", str(SHOTS), *at])
    if (waiting := len(samples(tree, state))) != SHOTS:
        raise DiffersError(f"{waiting} of {SHOTS} pictures were captured")
    tree.run([*apiary, "samples", "import", filed, *at])
    if (labelled := label_in_terminal(tree, state, _seen)) != SHOTS:
        raise DiffersError(f"{labelled} of {SHOTS} were labelled")
    stats = json.loads(tree.run([*apiary, "samples", "stats", "--json", *at]))
    half = (SHOTS + FILED) // 2
    if stats["labelled"] != {"dark": half, "light": half}:
        raise DiffersError(f"the store counts {stats['labelled']}, expected {half} each")
    job = _job(built, state, folder)
    told, there = _train(job, folder / "a", tree)
    _, again = _train(job, folder / "b", tree)
    if again != there:
        raise DiffersError("two trainings gave other updates")
    _, here = _train(job, folder / "c", None)
    trains = sum(stats["labelled"].values()) - sum(stats["held_out"].values())
    if told.metrics is None or not 0 < told.samples < trains:  # a fifth of them validates
        raise DiffersError(f"{told.samples} samples trained, {trains} may train")
    update, ours = _weights(there), _weights(here)
    if update.shapes != built.manifest.shapes or update.norm() == 0:
        raise DiffersError("the update has not the model's tensors, or is nothing")
    apart = max(float(np.abs(t - ours[n]).max()) for n, t in update.items())
    if not apart < MOST_APART:
        raise DiffersError(f"the update differs by {apart:.1e} from this machine's, at most {MOST_APART}")
    return (
        f"{SHOTS} captured, {labelled} labelled, {FILED} filed; {told.samples} trained, "
        f"loss {told.metrics.loss:.2f}; update {len(there)} bytes, {apart:.0e} from here"
    )


def _probe(tree: Tree, built: Built, out: Path) -> Path:
    if not out.exists():
        tree.run(["-m", "apiary_coordinator.export.probe", "litert", built.folder, out])
    return out


def _arrays(folder: Path) -> dict[str, Any]:
    """All that a probe holds, by file and name."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as kept:
            found |= {f"{file.stem}/{name}": kept[name] for name in kept.files}
    return found


def _job(built: Built, state: Path, folder: Path) -> TrainJob:
    model = folder / "model.blob"
    model.write_bytes(blob.encode(built.initial))
    return TrainJob(
        run="run",
        round=1,
        node="pi-1",
        plan=PLAN,
        manifest=built.manifest_file,
        trainer=built.trainer,
        base=built.base,
        base_digest=digest_of(built.base.read_bytes()) if built.base else None,
        model=model,
        store=state / "samples",
        cache_dir=folder / "cache",
        cache_mb=64,
        out=folder,
        runtime="litert",
        threads=1,
    )


def _train(job: TrainJob, out: Path, tree: Tree | None) -> tuple[TrainingEvent, bytes]:
    """The training child on that Pi, or here; its last word and its update."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    own = job.model_copy(update={"out": out, "cache_dir": out / "cache"})
    (out / "job.json").write_text(own.model_dump_json())
    arguments: list[str | Path] = ["-m", "apiary_edge.training.worker", out / "job.json"]
    if tree is not None:
        said = tree.run(arguments)
    else:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=True, env=light_environment()
        )
        said = done.stdout
    last = TrainingEvent.parse(said.splitlines()[-1].encode())
    if last is None or last.kind != "done":
        raise DiffersError(f"the training ended with: {said[-500:]}")
    return last, (out / "update.blob").read_bytes()


def _weights(document: bytes) -> Weights:
    return blob.decode(document, who="the update").weights


def _shoot(folder: Path, count: int, *, seed: int, only: str | None = None) -> None:
    """Sharp pictures of 240x180, every second one light: no two alike, as a camera's would be."""
    folder.mkdir(parents=True)
    for i in range(count):
        label = only or LABELS[i % 2]
        rng = np.random.default_rng([seed, i, LABELS.index(label)])
        blocks = rng.integers(-40, 40, (9, 12, 3)).repeat(20, 0).repeat(20, 1)
        noise = rng.normal(0, 12, (180, 240, 3))
        picture = ({"dark": 70, "light": 180}[label] + blocks + noise).clip(0, 255).astype(np.uint8)
        path = folder / f"{i:03d}.jpg"
        Image.fromarray(picture).save(path, quality=92)
        # Settled: a watched folder leaves alone what was written within the last second.
        os.utime(path, (1_700_000_000 + i, 1_700_000_000 + i))


def _seen(picture: Path) -> str:
    """What an owner sees in it."""
    with Image.open(picture) as opened:
        return "light" if np.asarray(opened.convert("L")).mean() > 125 else "dark"
