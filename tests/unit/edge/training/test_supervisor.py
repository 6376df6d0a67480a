"""A round's training as the service sees it: tries, pauses, time, and what the child may take."""

from __future__ import annotations

import io
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.blobs import BlobStore
from apiary.bus.outlet import Outlet
from apiary.errors import StoreError
from apiary.settings import EdgeSettings, StoreSettings
from apiary.wire import NodeId
from apiary.wire.chunks import digest_of
from apiary.wire.held_out import MAX_ENTRIES, PREFIX_BYTES
from apiary.wire.messages import Announcement, BlobRef, Bounds, Plan, TrainMetrics
from apiary.wire.topics import Topics
from apiary_edge.health.readings import MB
from apiary_edge.samples.model import Added, Incoming
from apiary_edge.samples.store import SampleStore
from apiary_edge.stores import NodeStores
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.training.session import Event, Trained, TrainingFailed
from apiary_edge.training.supervisor import MAX_CRASHES, OUT_OF_ADDRESSES, TrainingSupervisor
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.outbox import Outbox

PARTS = ("model", "manifest", "trainer", "base", "held_out")
"""What an announcement names by digest, and a job by path."""
DIED = TrainingEvent(kind="crashed", text="the training child was ended by SIGSEGV", signal=signal.SIGSEGV)
KILLED = TrainingEvent(kind="crashed", text="the training child was ended by SIGKILL", signal=signal.SIGKILL)


class ScriptedTraining:
    """Does nothing but note what it is asked to do; `next` are the child's events to come."""

    def __init__(self) -> None:
        self.jobs: list[TrainJob] = []
        self.calls: list[str] = []
        self.next: list[TrainingEvent] = []
        self.full = False

    def start(self, job: TrainJob) -> None:
        if self.full:
            raise StoreError("the disk is full")
        self.jobs.append(job)
        self.calls.append("start")

    def collect(self) -> list[TrainingEvent]:
        events, self.next = self.next, []
        return events

    def stop(self) -> None:
        self.calls.append("stop")

    def freeze(self) -> None:
        self.calls.append("freeze")

    def thaw(self) -> None:
        self.calls.append("thaw")

    def resident(self) -> int:
        return 7


class Scene:
    def __init__(self, folder: Path, *, samples: SampleStore | None = None, **edge: Any):
        self.settings = EdgeSettings.model_validate(
            {"node_id": "pi-1", "state_dir": folder / "state", "data_dir": folder, **edge}
        )
        self.broker = MemoryBroker(seed=1)
        bus, topics = self.broker.bus("pi-1"), Topics()
        self.watcher = self.broker.bus("watcher")
        self.watcher.subscribe("#")
        for connecting in (bus, self.watcher):
            connecting.poll(0)
        self.training = ScriptedTraining()
        self.events: list[Event] = []
        self.outbox = Outbox(folder / "outbox")
        self.supervisor = TrainingSupervisor(
            self.settings,
            NodeChannel(NodeId("pi-1"), bus, topics, Outlet(bus, topics)),
            NodeStores(BlobStore(folder / "blobs"), self.outbox, samples),
            self.training,
            self.events.append,
        )

    def tell(self, event: TrainingEvent, now: float) -> None:
        self.training.next.append(event)
        self.supervisor.tick(now)

    @property
    def starts(self) -> int:
        return self.training.calls.count("start")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def announcement(**more: Any) -> Announcement:
    ref = BlobRef(digest="a" * 64, bytes=10)
    fields: dict[str, Any] = {
        "run": "r",
        "round": 1,
        "state": "open",
        "rounds": 2,
        "epoch": "e",
        "labels": ["x", "y"],
        "model": ref,
        "manifest": ref,
        "trainer": None,
        "base": None,
        "plan": Plan(),
        "bounds": Bounds(),
        "deadline_s": 100.0,
        "cohort": None,
        "cohort_size": 1,
    }
    return Announcement.model_validate({**fields, **more})


def test_a_child_that_dies_of_itself_is_started_again_so_often_and_no_more(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    now = 0.0
    for tries in (1, 2, 3):
        scene.tell(DIED, now)
        now += 2.0 ** (tries - 1)
        scene.supervisor.tick(now - 0.01)
        assert scene.starts == tries, "the pauses double"
        scene.supervisor.tick(now)
        assert scene.starts == tries + 1
    assert scene.events == []
    scene.tell(DIED, now)
    assert scene.events == [TrainingFailed(DIED.text)]
    scene.supervisor.tick(now + 1000.0)
    assert scene.starts == MAX_CRASHES + 1 == 4 and len(scene.events) == 1


def test_one_that_is_killed_from_outside_is_started_again_as_long_as_the_round_lasts(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    now, pauses = 0.0, []
    for tries in range(1, 12):
        scene.tell(KILLED, now)
        waited = 0
        while scene.starts == tries and waited < 100:
            waited += 1
            scene.supervisor.tick(now + waited)
        pauses.append(waited)
        now += waited
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert scene.events == []


def test_each_round_has_its_own_tries(scene: Scene) -> None:
    for number in (1, 2, 3):
        scene.supervisor.begin(announcement(round=number), 0.0)
        for _ in range(MAX_CRASHES):
            scene.tell(DIED, 0.0)
    assert scene.events == []


@pytest.mark.parametrize("number", [*OUT_OF_ADDRESSES, signal.SIGKILL, signal.SIGTERM])
def test_one_that_runs_out_of_addresses_under_a_limit_is_not_tried_again(
    scene: Scene, number: signal.Signals
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit_mb = 64 * 10**6  # far above what this process has
    died = TrainingEvent(kind="crashed", text="x" * 400, signal=number)
    scene.supervisor.begin(announcement(), 0.0)
    resource.setrlimit(resource.RLIMIT_AS, (limit_mb * MB, most))
    try:
        scene.tell(died, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    why = f"{'x' * 300}; its address space is limited to {limit_mb} MB (RLIMIT_AS, ulimit -v)"
    assert scene.events == ([TrainingFailed(why)] if number in OUT_OF_ADDRESSES else [])
    scene.supervisor.tick(1.0)
    assert scene.starts == (1 if number in OUT_OF_ADDRESSES else 2)


def test_training_that_takes_too_long_is_given_up_and_rest_does_not_count(tmp_path: Path) -> None:
    scene = Scene(tmp_path, train_timeout_s=60.0)
    scene.supervisor.begin(announcement(), 10.0)
    scene.supervisor.rest(20.0, free=False)
    scene.supervisor.rest(25.0, free=False)  # said again: it rests since 20
    scene.supervisor.tick(500.0)
    scene.supervisor.go_on(520.0)
    scene.supervisor.tick(569.9)
    assert scene.events == [] and scene.training.calls == ["start", "freeze", "thaw"]
    scene.supervisor.tick(570.0)
    assert scene.events == [TrainingFailed("training took longer than 60 s (edge.train_timeout_s)")]


def test_a_rest_that_frees_the_memory_ends_the_child_once_and_it_begins_anew(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    scene.supervisor.rest(1.0, free=False)
    scene.supervisor.rest(2.0, free=True)
    scene.supervisor.rest(3.0, free=True)
    scene.supervisor.rest(4.0, free=False)  # there is nothing to freeze
    scene.supervisor.go_on(5.0)
    assert scene.training.calls == ["start", "freeze", "stop", "start"]


def test_a_round_that_comes_while_it_rests_begins_after_the_rest(scene: Scene) -> None:
    scene.supervisor.rest(0.0, free=False)
    scene.supervisor.begin(announcement(), 1.0)
    scene.supervisor.tick(2.0)
    assert scene.starts == 0
    scene.supervisor.go_on(3.0)
    assert scene.starts == 1


def test_a_node_that_has_no_round_rests_and_goes_on_without_one(scene: Scene) -> None:
    scene.supervisor.rest(0.0, free=False)
    scene.supervisor.go_on(1.0)
    scene.supervisor.rest(2.0, free=True)
    scene.supervisor.go_on(3.0)
    assert scene.training.calls == ["freeze", "thaw", "stop"] and scene.events == []


def test_one_that_crashed_is_not_started_again_while_it_rests(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    scene.tell(DIED, 0.0)
    scene.supervisor.rest(0.5, free=False)
    scene.supervisor.tick(50.0)
    assert scene.starts == 1
    scene.supervisor.go_on(60.0)
    scene.supervisor.tick(60.0)
    assert scene.starts == 2


def test_stopping_drops_what_the_child_says_and_starts_nothing_again(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    scene.tell(DIED, 0.0)
    scene.supervisor.stop()
    scene.tell(TrainingEvent(kind="failed", text="no"), 100.0)
    assert scene.events == [] and scene.training.calls == ["start", "stop"]
    assert scene.supervisor.job is None


@pytest.mark.parametrize("kind", ["declined", "failed"])
def test_why_a_child_gives_up_is_handed_on(scene: Scene, kind: Any) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    scene.tell(TrainingEvent(kind=kind, text="too few pictures"), 1.0)
    assert scene.events == [TrainingFailed("too few pictures")] and scene.supervisor.job is None


def test_a_job_that_the_disk_refuses_gives_the_round_up(scene: Scene) -> None:
    scene.training.full = True
    scene.supervisor.begin(announcement(), 0.0)
    assert scene.events == [TrainingFailed("the disk is full")]


@pytest.mark.parametrize(("partial", "time_s"), [(True, 70.0), (False, None)])
def test_partial_work_gets_a_share_of_the_rounds_time(scene: Scene, partial: bool, time_s: float) -> None:
    scene.supervisor.begin(announcement(plan=Plan(partial=partial)), 0.0)
    (job,) = scene.training.jobs
    assert job.time_s == time_s


@pytest.mark.parametrize(
    ("threads", "max_cores", "expected"), [(1, None, 1), (4, None, 4), (4, 2, 2), (2, 4, 2)]
)
def test_threads_are_as_set_and_no_more_than_the_cores_of_a_guest(
    tmp_path: Path, threads: int, max_cores: int | None, expected: int
) -> None:
    guest = {"max_cores": max_cores, "min_memory_mb": 100, "max_memory_mb": 333}
    scene = Scene(tmp_path, threads=threads, guest=guest)
    scene.supervisor.begin(announcement(bounds=Bounds(max_norm=2.5)), 0.0)
    (job,) = scene.training.jobs
    assert (job.threads, job.reserve_mb, job.max_memory_mb, job.max_norm) == (expected, 50, 333, 2.5)
    assert (job.run, job.round, job.node) == ("r", 1, "pi-1")


def test_a_job_names_the_files_of_its_round(tmp_path: Path) -> None:
    refs = {name: BlobRef(digest=digest * 64, bytes=16) for name, digest in zip(PARTS, "abcde", strict=True)}
    scene = Scene(tmp_path, runtime="litert", join_labels=True, cache_mb=77)
    scene.supervisor.begin(announcement(**refs), 0.0)
    scene.supervisor.begin(
        announcement(held_out=BlobRef(digest="e" * 64, bytes=(MAX_ENTRIES + 1) * PREFIX_BYTES)), 0.0
    )
    first, second = scene.training.jobs
    blobs = tmp_path / "blobs"
    assert [getattr(first, name) for name in PARTS] == [blobs / (digest * 64) for digest in "abcde"]
    assert first.base_digest == "d" * 64
    assert (second.trainer, second.base, second.base_digest, second.held_out) == (None, None, None, None)
    assert (first.data_dir, first.out) == (tmp_path, tmp_path / "state" / "training")
    assert (first.runtime, first.join_labels, first.cache_mb) == ("litert", True, 77)
    assert first.cache_dir == scene.settings.cache_dir and first.store is None


def test_what_was_deleted_while_it_trained_leaves_the_cache(tmp_path: Path) -> None:
    samples = SampleStore(
        tmp_path / "state" / "samples", tmp_path / "cache", StoreSettings(min_free_mb=0), lambda: 0.0
    )
    scene = Scene(tmp_path, samples=samples)
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    added = samples.add(Incoming(picture.getvalue(), "import", "x"))
    assert isinstance(added, Added)
    scene.supervisor.begin(announcement(), 0.0)
    (job,) = scene.training.jobs
    assert job.store == scene.settings.store_dir
    samples.delete([added.id])
    cached = tmp_path / "cache" / "pictures" / added.id[:2] / added.id
    cached.parent.mkdir(parents=True)
    cached.touch()
    document = b"an update"
    job.out.mkdir(parents=True)
    (job.out / "update.blob").write_bytes(document)
    done = {"digest": digest_of(document), "bytes": len(document), "samples": 9}
    scene.tell(TrainingEvent(kind="done", **done, metrics=TrainMetrics(loss=1.0)), 1.0)
    samples.close()
    assert not cached.exists()


def test_an_update_is_in_the_outbox_before_it_is_handed_on(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    document = b"an update"
    scratch = scene.settings.state_dir / "training"
    scratch.mkdir(parents=True)
    (scratch / "update.blob").write_bytes(document)
    done = TrainingEvent(
        kind="done",
        digest=digest_of(document),
        bytes=len(document),
        samples=9,
        also_held_out=2,
        metrics=TrainMetrics(loss=1.0),
    )
    scene.tell(done, 1.0)
    (trained,) = scene.events
    assert isinstance(trained, Trained) and trained.offer.samples == 9
    assert scene.outbox.waiting() == [trained.offer]
    assert scene.supervisor.job is None and scene.supervisor.also_held_out == 2
    scene.supervisor.tick(10_000.0)
    assert scene.starts == 1, "its time is over, and it counts no more"


def test_an_update_that_the_outbox_refuses_gives_the_round_up(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    scene.tell(
        TrainingEvent(kind="done", digest="b" * 64, bytes=9, samples=9, metrics=TrainMetrics(loss=1.0)), 1.0
    )
    (failed,) = scene.events
    assert isinstance(failed, TrainingFailed)


def test_what_is_left_goes_down_with_time_stands_still_in_a_rest_and_is_forgotten_in_a_crash(
    scene: Scene,
) -> None:
    supervisor = scene.supervisor
    assert supervisor.left_s(0.0) is None and supervisor.resident == 7
    supervisor.begin(announcement(), 0.0)
    scene.tell(TrainingEvent(kind="progress", epoch=1, epochs=2, loss=1.0, left_s=30.0), 10.0)
    assert [supervisor.left_s(now) for now in (10.0, 25.0, 70.0)] == [30.0, 15.0, 0.0]
    supervisor.rest(12.0, free=False)
    assert supervisor.left_s(1000.0) == 30.0
    supervisor.go_on(1000.0)
    scene.tell(DIED, 1001.0)
    assert supervisor.left_s(1001.0) is None


def test_progress_is_published_at_most_every_two_seconds(scene: Scene) -> None:
    scene.supervisor.begin(announcement(), 0.0)
    for now in (2.0, 3.9, 4.0, 4.1):
        scene.tell(TrainingEvent(kind="progress", epoch=1, epochs=2, loss=1.0), now)
    scene.broker.now += 1.0
    assert len([e for e in scene.watcher.poll(0) if "progress" in getattr(e, "topic", "")]) == 2
