"""The training child's work with a trainer that only counts: what it sends, says, and when it ends early."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apiary.errors import DataError, ModelError, SettingsError
from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.learn.runtimes.base import StepControls
from apiary.tensors import Array, Weights
from apiary.wire import blob
from apiary.wire.held_out import encode
from apiary.wire.messages import Plan
from apiary_edge.health.readings import MB
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.training.memory_guard import MemoryGuard, MemoryLimits
from apiary_edge.training.process import scratch
from apiary_edge.training.worker import give_up, main, run_guarded, train

BATCH = 4
PICTURES = 2 * BATCH
START = Weights({"w": np.array([1.0, -2.0], np.float32)})
STEP = np.array([0.25, -0.5], np.float32)
PLAN = Plan(epochs=2, batch_size=BATCH, validation_share=0.0)


class Counting:
    """A runtime and its trainer: a step takes a second and adds the same; opening it takes ten."""

    def __init__(self, *, frozen_s: float = 0.0, open_s: float = 10.0, step_s: float = 1.0):
        self.now, self.frozen_s = 1000.0, frozen_s
        self._open_s, self._step_s = open_s, step_s
        self.threads = 0
        self.opened: list[Path | None] = []
        self._weights = Weights({})

    def clock(self) -> float:
        return self.now

    def awake(self) -> float:
        return self.now - self.frozen_s

    def unavailable(self) -> str | None:
        return None

    def open_trainer(self, manifest: Manifest, trainer: Path | None, *, threads: int = 1) -> Counting:
        self.now += self._open_s
        self.threads = threads
        self.opened.append(trainer)
        return self

    def open_base(self, base: Path) -> Counting:
        self.opened.append(base)
        return self

    def features(self, picture: Array) -> Array:
        return picture.reshape(-1)[:3].astype(np.float32)

    def set_weights(self, weights: Weights) -> None:
        self._weights = weights

    def get_weights(self) -> Weights:
        return self._weights

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
        self.now += self._step_s
        self._weights = Weights({"w": self._weights["w"] + STEP})
        return 0.5

    def infer(self, x: Array) -> Array:
        return np.full((len(x), 2), 0.5, np.float32)


def manifest(**more: Any) -> Manifest:
    fields: dict[str, Any] = {
        "recipe": "none",
        "input": PictureInput(height=4, width=4, channels=1),
        "labels": ("cat", "dog"),
        "tensors": (Tensor(name="w", shape=(2,), argument="p0"),),
        "batch_size": BATCH,
        "optimizer": "adam",
    }
    return Manifest(**{**fields, **more})


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    for i in range(PICTURES):
        place = tmp_path / "pictures" / ("cat", "dog")[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 20 * i).save(place)
    (tmp_path / "manifest").write_bytes(manifest().encode())
    (tmp_path / "model").write_bytes(blob.encode(START))
    scratch(tmp_path).mkdir()
    return TrainJob(
        run="r",
        round=4,
        node="pi-1",
        plan=PLAN,
        manifest=tmp_path / "manifest",
        trainer=tmp_path / "trainer",
        base=None,
        base_digest=None,
        model=tmp_path / "model",
        data_dir=tmp_path / "pictures",
        cache_dir=tmp_path / "cache",
        cache_mb=10,
        out=scratch(tmp_path),
        runtime="none",
        threads=3,
    )


def events(job: TrainJob, runtime: Counting | None = None, **changed: Any) -> list[TrainingEvent]:
    """What the child reports of a job, with some of its fields changed."""
    told: list[TrainingEvent] = []
    counting = runtime or Counting()
    todo = job.model_copy(update=changed)
    train(todo, told.append, clock=counting.clock, awake=counting.awake, runtime=counting)
    return told


def warnings(told: list[TrainingEvent]) -> list[str]:
    return [e.text for e in told if e.kind == "warning"]


def sent(job: TrainJob) -> blob.WeightsBlob:
    return blob.decode((job.out / "update.blob").read_bytes(), who="test")


def test_an_update_is_new_minus_old_says_whose_it_is_and_is_the_file_that_is_reported(job: TrainJob) -> None:
    runtime = Counting()
    done = events(job, runtime)[-1]
    document = (job.out / "update.blob").read_bytes()
    assert (done.kind, done.digest, done.bytes) == (
        "done",
        hashlib.sha256(document).hexdigest(),
        len(document),
    )
    assert done.samples == PICTURES and done.also_held_out is None
    found = sent(job)
    assert found.weights["w"].tolist() == (4 * STEP).tolist(), "two epochs of two batches"
    assert dict(found.about) == {"run": "r", "round": 4, "node": "pi-1", "samples": PICTURES}
    assert found.codec == "raw_f32"
    assert (runtime.opened, runtime.threads) == ([job.trainer], 3)
    assert done.metrics is not None
    assert (done.metrics.loss, done.metrics.seconds, done.metrics.epochs) == (0.5, 14.0, 2)
    assert done.metrics.accuracy is None and done.metrics.accuracy_before is None


def test_the_same_job_gives_the_same_bytes(job: TrainJob) -> None:
    assert events(job)[-1].digest == events(job)[-1].digest


def test_an_update_is_written_by_the_plans_codec_and_clipped_where_the_round_has_a_bound(
    job: TrainJob,
) -> None:
    whole = float(np.linalg.norm(4 * STEP))
    events(job, max_norm=whole / 2, plan=PLAN.model_copy(update={"codec": "f16"}))
    assert sent(job).codec == "f16"
    assert sent(job).weights.norm() == pytest.approx(whole / 2, rel=1e-3)
    events(job, max_norm=2 * whole)
    assert sent(job).weights.norm() == pytest.approx(whole)


def test_the_time_that_is_left_follows_the_steps_that_were_awake(job: TrainJob) -> None:
    told = [e for e in events(job, Counting(frozen_s=300.0)) if e.kind == "progress"]
    assert [e.left_s for e in told] == [3.0, 2.0, 1.0, 0.0]
    assert [(e.epoch, e.epochs) for e in told] == [(1, 2), (1, 2), (2, 2), (2, 2)]
    assert [e.loss for e in told] == [0.5] * 4


def test_times_are_rounded_as_far_as_somebody_reads_them(job: TrainJob) -> None:
    told = events(job, Counting(open_s=10.12345, step_s=1.26))
    assert [e.left_s for e in told if e.kind == "progress"] == [3.8, 2.5, 1.3, 0.0]
    assert told[-1].metrics is not None and told[-1].metrics.seconds == 15.163


def test_what_was_imported_is_not_collected_again_and_again(job: TrainJob) -> None:
    gc.unfreeze()
    try:
        events(job)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_job_names_its_runtime(job: TrainJob) -> None:
    with pytest.raises(SettingsError, match="runtimes: no 'none'"):
        train(job, lambda event: None)


@pytest.mark.parametrize(
    ("time_s", "epochs"), [(0.0, 1), (15.9, 2), (16.0, 3), (19.0, 4), (20.0, 5), (None, 5)]
)
def test_training_ends_after_the_last_epoch_that_fits_the_first_always(
    job: TrainJob, time_s: float | None, epochs: int
) -> None:
    """Ten seconds to load, two an epoch."""
    told = events(job, time_s=time_s, plan=PLAN.model_copy(update={"epochs": 5}))
    assert told[-1].metrics is not None and told[-1].metrics.epochs == epochs
    assert sent(job).weights["w"][0] == pytest.approx(epochs * 2 * 0.25)
    assert warnings(told) == ([f"out of time after {epochs} of 5 epochs"] if epochs < 5 else [])


def test_what_is_left_out_is_said_once_each(job: TrainJob) -> None:
    pictures = job.data_dir
    assert pictures is not None
    (pictures / "bird").mkdir()
    Image.new("L", (4, 4)).save(pictures / "bird" / "1.png")
    (pictures / "cat" / "torn.png").write_bytes(b"\x89PNG no more")
    (pictures / "cat" / "empty.png").write_bytes(b"")
    Image.new("L", (4, 4)).save(pictures.parent / "elsewhere.png")
    (pictures / "cat" / "link.png").symlink_to(pictures.parent / "elsewhere.png")
    said = warnings(events(job))
    assert len(said) == 4
    for text in ("label 'bird' are", "torn.png: left out", "empty.png: left out", "link.png: left out"):
        assert sum(text in line for line in said) == 1


def test_a_warning_is_a_short_line(job: TrainJob) -> None:
    pictures = job.data_dir
    assert pictures is not None
    long = tuple("x" * 200 + str(i) for i in range(3))
    job.manifest.write_bytes(manifest(labels=("cat", "dog", *long)).encode())
    (pictures / "bird").mkdir()
    Image.new("L", (4, 4)).save(pictures / "bird" / "1.png")
    runtime = Counting()
    runtime.infer = lambda x: np.full((len(x), 5), 0.2, np.float32)  # type: ignore[method-assign]
    (said,) = warnings(events(job, runtime))
    assert len(said) == 500


def test_what_the_server_holds_out_too_is_said_and_counted(job: TrainJob, tmp_path: Path) -> None:
    pictures = job.data_dir
    assert pictures is not None
    same = [hashlib.sha256((pictures / "cat" / f"{i}.png").read_bytes()).hexdigest() for i in (0, 2)]
    (tmp_path / "held-out").write_bytes(encode([*same, "0" * 64]))
    told = events(job, held_out=tmp_path / "held-out")
    assert told[-1].also_held_out == 2
    assert [text.split(":")[0] for text in warnings(told)] == [
        "2 pictures are in the server's held-out set as well"
    ]
    (tmp_path / "held-out").write_bytes(encode(["0" * 64]))
    told = events(job, held_out=tmp_path / "held-out")
    assert told[-1].also_held_out == 0 and warnings(told) == []


def test_a_model_on_a_frozen_base_trains_on_its_features_and_its_warnings_are_passed_on(
    job: TrainJob, tmp_path: Path
) -> None:
    (tmp_path / "base").write_bytes(b"base")
    job.manifest.write_bytes(manifest(features=3).encode())
    runtime = Counting()
    base: dict[str, Any] = {"base": tmp_path / "base", "base_digest": "b" * 64}
    told = events(job, runtime, plan=PLAN.model_copy(update={"flip": True}), **base)
    assert runtime.opened == [tmp_path / "base", job.trainer]
    (said,) = warnings(told)
    assert "ignored: the recipe none trains on features" in said
    job.manifest.write_bytes(manifest(features=3, recipe="x" * 600).encode())
    (said,) = warnings(events(job, plan=PLAN.model_copy(update={"flip": True}), **base))
    assert len(said) == 500
    with pytest.raises(DataError, match="the model needs a frozen base"):
        events(job)


def test_weights_of_another_model_are_an_error_that_names_what_differs(job: TrainJob) -> None:
    job.model.write_bytes(blob.encode(Weights({"v": np.zeros(2, np.float32)})))
    with pytest.raises(ModelError, match="the weights are not those of the model none"):
        events(job)


@pytest.fixture
def oom_score() -> Iterator[Path]:
    """This process's own, put back afterwards."""
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    yield score
    score.write_text(before)


def guarded() -> bool:
    return any(t.name == "memory-guard" for t in threading.enumerate())


def told(capture: pytest.CaptureFixture[bytes]) -> list[TrainingEvent | None]:
    return [TrainingEvent.parse(line) for line in capture.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("error", "code", "event"),
    [
        (None, 0, None),
        (DataError("y" * 600), 3, TrainingEvent(kind="declined", text="y" * 500)),
        (ModelError("y" * 600), 6, TrainingEvent(kind="failed", text="y" * 500)),
        (
            MemoryError(),
            3,
            TrainingEvent(kind="declined", text="this node has not enough memory for the round"),
        ),
    ],
)
def test_what_ends_a_child_is_one_short_line_and_a_code(
    error: Exception | None,
    code: int,
    event: TrainingEvent | None,
    oom_score: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    def act(guard: MemoryGuard) -> None:
        assert guarded() and guard.awake() > 0 and oom_score.read_text() == "600\n"
        if error is not None:
            raise error

    assert run_guarded(act, MemoryLimits(0), "the round") == code
    assert told(capsysbinary) == ([event] if event else [])
    ends = time.monotonic() + 20
    while guarded() and time.monotonic() < ends:
        time.sleep(0.02)
    assert not guarded()


def test_a_lack_of_memory_under_a_limit_names_it(
    oom_score: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def act(guard: MemoryGuard) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit_mb * MB, most))
        raise MemoryError

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit_mb = 64 * 10**6  # far above what this process has
    try:
        assert run_guarded(act, MemoryLimits(0), "the round") == 3
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    (event,) = told(capsysbinary)
    assert event is not None and event.text.endswith(
        f"for the round: its address space is limited to {limit_mb} MB (RLIMIT_AS, ulimit -v)"
    )


def test_a_child_does_the_job_in_its_file(
    job: TrainJob, tmp_path: Path, oom_score: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    gone = job.model_copy(update={"data_dir": tmp_path / "gone", "runtime": "litert"})
    (tmp_path / "job.json").write_text(gone.model_dump_json())
    assert main(["worker", str(tmp_path / "job.json")]) == 3
    (event,) = told(capsysbinary)
    assert event is not None and event.kind == "declined"
    assert event.text.startswith(f"data folder {tmp_path}/gone does not exist")


def test_a_child_that_gives_up_says_why_in_one_write_and_ends(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    ended: list[int] = []
    give_up("no", end=ended.append)
    assert told(capfdbinary) == [TrainingEvent(kind="declined", text="no")]
    ended.clear()
    here, there = os.pipe()
    give_up("z" * 600, out=there, end=ended.append)
    assert ended == [3]
    assert TrainingEvent.parse(os.read(here, 4096)) == TrainingEvent(kind="declined", text="z" * 500)
    for end in (here, there):
        os.close(end)
