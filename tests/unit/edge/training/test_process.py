"""The training child as a real process: what it says, how it dies, how it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apiary.errors import StoreError
from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.settings import GuestSettings
from apiary.tensors import Weights
from apiary.wire import blob
from apiary.wire.messages import Plan
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.training.memory_guard import OOM_SCORE
from apiary_edge.training.process import TrainingProcess, scratch

WAIT_S = 20.0


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """A job whose model fits no trainer file: the child gets as far as its pictures, and no further."""
    manifest = Manifest(
        recipe="none",
        input=PictureInput(height=4, width=4, channels=1),
        labels=("cat", "dog"),
        tensors=(Tensor(name="w", shape=(2,), argument="p0"),),
        batch_size=4,
        optimizer="adam",
    )
    (tmp_path / "manifest").write_bytes(manifest.encode())
    (tmp_path / "model").write_bytes(blob.encode(Weights({"w": np.zeros(2, np.float32)})))
    (tmp_path / "trainer").write_bytes(b"no flatbuffer")
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "pictures" / label / "1.png")
    return TrainJob(
        run="r",
        round=1,
        node="pi-1",
        plan=Plan(),
        manifest=tmp_path / "manifest",
        trainer=tmp_path / "trainer",
        base=None,
        base_digest=None,
        model=tmp_path / "model",
        data_dir=tmp_path / "pictures",
        cache_dir=tmp_path / "cache",
        cache_mb=10,
        out=scratch(tmp_path),
        runtime="auto",
        threads=1,
    )


def pictures_of(job: TrainJob) -> Path:
    assert job.data_dir is not None
    return job.data_dir


class Running:
    """A training process and everything it told."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.process = TrainingProcess(self.woken.set, GuestSettings(nice=0))
        self.told: list[TrainingEvent] = []

    def until(self, kind: str) -> TrainingEvent:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            self.told += self.process.collect()
            if self.told and self.told[-1].kind == kind:
                return self.told[-1]
            assert not self.told or self.told[-1].kind in ("progress", "warning"), self.told
            self.woken.wait(0.2)
            self.woken.clear()
        raise AssertionError(f"no {kind}: {self.told}")

    @property
    def pid(self) -> int:
        child = self.process._child
        assert child is not None
        return child.pid


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.process.stop()


@pytest.fixture
def stuck(job: TrainJob, tmp_path: Path) -> TrainJob:
    """A job that waits for its manifest for ever."""
    os.mkfifo(tmp_path / "fifo")
    return job.model_copy(update={"manifest": tmp_path / "fifo"})


def until(found: Callable[[], bool], within_s: float = WAIT_S) -> bool:
    end = time.monotonic() + within_s
    while not found() and time.monotonic() < end:
        time.sleep(0.02)
    return found()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_node_without_pictures_declines_with_the_reason(running: Running, job: TrainJob) -> None:
    running.process.start(job.model_copy(update={"data_dir": pictures_of(job) / "gone"}))
    told = running.until("declined")
    assert told.text.startswith(f"data folder {job.data_dir}/gone does not exist; expected a folder for each")


def test_only_labels_that_the_model_does_not_know_are_declined_by_name(
    running: Running, job: TrainJob, tmp_path: Path
) -> None:
    (tmp_path / "other" / "bird").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "other" / "bird" / "1.png")
    running.process.start(job.model_copy(update={"data_dir": tmp_path / "other"}))
    told = running.until("declined")
    assert "holds no picture of a label that the model knows" in told.text
    assert "1 pictures of label 'bird' are left out: the model knows cat, dog" in told.text


def test_what_is_left_out_is_told_before_the_model_fails(running: Running, job: TrainJob) -> None:
    (pictures_of(job) / "bird").mkdir()
    Image.new("L", (4, 4)).save(pictures_of(job) / "bird" / "1.png")
    (pictures_of(job) / "cat" / "torn.png").write_bytes(b"\x89PNG no more")
    running.process.start(job)
    failed = running.until("failed")
    warnings = [t.text for t in running.told if t.kind == "warning"]
    assert any("label 'bird' are left out" in text for text in warnings)
    assert any("torn.png: left out: not a readable picture" in text for text in warnings)
    assert failed.text


def test_noise_on_standard_output_is_not_taken_for_words(
    running: Running, job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries print: here at the start of every Python, bytes that are no text among it."""
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "sitecustomize.py").write_text(
        "import sys\n"
        f"open({str(tmp_path / 'was here')!r}, 'w').close()\n"
        "sys.stdout.buffer.write(b'INFO: Created a delegate\\n\\xff\\xfe\\n{\"kind\": 1}\\n[]\\n')\n"
        "sys.stdout.flush(); sys.stderr.write('x' * 100_000 + '\\n')\n"
    )
    path = os.pathsep.join([str(tmp_path / "noise"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    running.process.start(job.model_copy(update={"data_dir": pictures_of(job) / "gone"}))
    running.until("declined")
    assert (tmp_path / "was here").exists()
    assert [t.kind for t in running.told] == ["declined"]


def test_kill_9_is_told_as_a_crash_with_its_signal(running: Running, stuck: TrainJob) -> None:
    running.process.start(stuck)
    os.kill(running.pid, signal.SIGKILL)
    told = running.until("crashed")
    assert told.text.startswith("the training child was ended by signal 9 (out of memory?)")
    assert told.signal == signal.SIGKILL


def test_a_child_that_breaks_is_told_with_its_last_words(running: Running, job: TrainJob) -> None:
    running.process.start(job.model_copy(update={"manifest": job.manifest.parent / "no-such-file"}))
    told = running.until("crashed")
    assert told.text.startswith("the training child ended with code 1: ")
    assert "FileNotFoundError" in told.text and "no-such-file" in told.text
    assert told.signal == 0


def test_a_damaged_manifest_is_a_failure_that_says_so(running: Running, job: TrainJob) -> None:
    job.manifest.write_bytes(b"{}")
    running.process.start(job)
    assert running.until("failed").text.startswith("the model's manifest does not hold")


def test_stop_ends_the_child_at_once_and_nothing_is_told_any_more(running: Running, stuck: TrainJob) -> None:
    running.process.start(stuck)
    pid = running.pid
    running.process.stop()
    assert gone(pid)
    assert running.process.collect() == []
    running.process.stop()


def test_a_new_job_ends_the_old_one(running: Running, stuck: TrainJob, job: TrainJob) -> None:
    running.process.start(stuck)
    pid = running.pid
    running.process.start(job.model_copy(update={"data_dir": pictures_of(job) / "gone"}))
    assert gone(pid)
    running.until("declined")
    assert [t.kind for t in running.told] == ["declined"]


def test_a_frozen_child_rests_with_its_memory_and_goes_on(running: Running, stuck: TrainJob) -> None:
    running.process.start(stuck)
    assert until(lambda: figure(running.pid, "State") == "S (sleeping)")
    running.process.freeze()
    assert until(lambda: figure(running.pid, "State") == "T (stopped)")
    assert running.process.resident() == int(figure(running.pid, "VmRSS").split()[0]) * 1024
    running.process.thaw()
    assert until(lambda: figure(running.pid, "State") == "S (sleeping)")
    # It waits for its manifest: now it gets one, and goes on to its end.
    stuck.manifest.write_bytes(b"{}")
    assert running.until("failed").text.startswith("the model's manifest does not hold")


def test_a_frozen_child_is_ended_by_stop(running: Running, stuck: TrainJob) -> None:
    running.process.start(stuck)
    pid = running.pid
    running.process.freeze()
    running.process.stop()
    assert gone(pid)
    running.process.freeze()
    running.process.thaw()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_child_dies_with_its_service(stuck: TrainJob, tmp_path: Path, frozen: bool) -> None:
    pipe_in, pipe_out = os.pipe()
    service = os.fork()
    if service == 0:
        try:
            process = TrainingProcess(lambda: None, GuestSettings())
            process.start(stuck)
            assert process._child is not None
            if frozen:
                process.freeze()
            os.write(pipe_out, str(process._child.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(pipe_out)
    child = int(os.read(pipe_in, 20))
    os.close(pipe_in)
    assert not gone(child)
    # Long enough for the child to have asked for its own end, which it does before Python starts.
    os.kill(service, signal.SIGKILL)
    os.waitpid(service, 0)
    assert until(lambda: gone(child) or _is_zombie(child))


def test_the_child_is_polite_and_the_first_to_go_when_memory_runs_out(job: TrainJob, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = TrainingProcess(lambda: None, GuestSettings(nice=7, idle_io=True, max_cores=1))
    try:
        process.start(job.model_copy(update={"manifest": tmp_path / "fifo"}))
        assert process._child is not None
        pid = process._child.pid
        assert until(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text() == f"{OOM_SCORE}\n")
        niceness = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[16])
        assert niceness == min(19, os.nice(0) + 7)
        assert len(os.sched_getaffinity(pid)) == 1
        asked = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True)
        assert asked.stdout.strip() == "idle"
        assert figure(pid, "Name") != "ionice"
    finally:
        process.stop()


def figure(pid: int, name: str) -> str:
    """A line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), "")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_job_that_cannot_be_written_down(running: Running, job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        running.process.start(job.model_copy(update={"out": tmp_path / "file" / "training"}))


@pytest.mark.parametrize(
    "line", [b"", b"hello\n", b"{}\n", b'{"kind": "dance"}\n', b"[1]", b"\xff", b'{"kind": "done", "x": 1}']
)
def test_only_our_own_lines_are_words(line: bytes) -> None:
    assert TrainingEvent.parse(line) is None


def test_a_word_survives_the_pipe() -> None:
    told = TrainingEvent(kind="progress", epoch=1, epochs=2, loss=0.5)
    assert TrainingEvent.parse(told.model_dump_json(exclude_none=True).encode() + b"\n") == told


def test_the_scratch_folder_lies_in_the_state_folder(tmp_path: Path) -> None:
    assert scratch(tmp_path).parent == tmp_path
