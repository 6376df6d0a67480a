"""A node follows the newest model, appears in Home Assistant, and does its chores when it has time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apiary.blobs import BlobStore
from apiary.bus.bus import BrokerLimits
from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Outlet
from apiary.clocks import Clocks
from apiary.errors import StoreError
from apiary.settings import EdgeSettings, PredictSettings
from apiary.wire import Digest, NodeId
from apiary.wire.messages import BlobRef, Message, ModelManifest, Notice
from apiary.wire.topics import Topic, TopicKind, Topics
from apiary_edge.predicting import model_files
from apiary_edge.predicting.announcing import HomeAssistant
from apiary_edge.predicting.background import FAILED_PAUSE_S, LOOK_EVERY_S, BackgroundTasks
from apiary_edge.predicting.follower import AGAIN_S, OWNER, ModelFollower
from apiary_edge.predicting.job import BackgroundJob
from apiary_edge.predicting.model_files import ModelFile, Personal
from apiary_edge.training.job import TrainingEvent
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.downloads import Downloads

NODE = NodeId("pi-7")
TOPICS = Topics("garden")


class Bus:
    """Keeps what was published."""

    connected = True
    backlog = 0
    limits = BrokerLimits("5.0")

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bool]] = []
        self.patterns: set[str] = set()

    def subscribe(self, pattern: str) -> None:
        self.patterns.add(pattern)

    def unsubscribe(self, pattern: str) -> None:
        self.patterns.discard(pattern)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.sent.append((topic, payload, retain))
        return True

    def poll(self, timeout_s: float) -> list[Any]:
        return []

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


class Node:
    def __init__(self, folder: Path):
        self.folder = folder
        self.now = 10.0
        self.bus = Bus()
        self.blobs = BlobStore(folder / "blobs", 2**20)
        self.channel = NodeChannel(NODE, self.bus, TOPICS, Outlet(self.bus, TOPICS))
        self.downloads = Downloads(self.channel, self.blobs, idle_s=30.0, keeps=set)

    def follower(self, *, fetch: bool = True) -> ModelFollower:
        clocks = Clocks(lambda: self.now, lambda: 1.7e9 + self.now)
        return ModelFollower(NODE, clocks, self.downloads, self.folder, fetch=fetch)

    def wanted(self) -> list[str]:
        return [json.loads(p)["digest"] for t, p, _ in self.bus.sent if t.endswith("/want")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def hear(feature: ModelFollower, message: Message, kind: TopicKind) -> None:
    feature.received(Delivery(Topic(kind, node=NODE), message, retained=True))


def manifest(node: Node, round_: int, have: str = "") -> tuple[ModelManifest, dict[str, bytes]]:
    """A model of four parts; those named in `have` are on the node's disk."""
    parts = {name: f"{name} {round_ if name == 'model' else ''}".encode() for name in PARTS}
    refs: dict[str, BlobRef] = {}
    for name, data in parts.items():
        digest = _digest(data)
        refs[name] = BlobRef(digest=digest, bytes=len(data))
        if name in have:
            node.blobs.put(data)
    return ModelManifest(run="r", round=round_, labels=["cat", "dog"], accuracy=0.5, **refs), parts


PARTS = ("manifest", "trainer", "base", "model")


def _digest(data: bytes) -> str:
    from apiary.wire.chunks import digest_of

    return digest_of(data)


def test_what_home_assistant_was_told_may_not_be_removable(node: Node) -> None:
    """A file system that is read-only by now ended the node's service with a traceback."""
    home(node).connected()
    off = home(node, home_assistant=False)
    off.connected()
    file = model_files.folder(node.folder) / "home_assistant.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(StoreError, match="cannot remove"):
        off.tick(0.0)


# -- the newest model ------------------------------------------------------------------------------------


def test_models_that_were_followed_do_not_fill_the_disk(node: Node) -> None:
    """A node that predicts and trains nothing kept the model of every round: only training made room."""
    feature = node.follower()
    most = 0
    for number in range(1, 12):
        told, parts = manifest(node, number, have="manifest trainer base")
        data = parts["model"].ljust(200_000, b"x")
        told = told.model_copy(update={"model": BlobRef(digest=_digest(data), bytes=len(data))})
        hear(feature, told, TopicKind.MODEL_CURRENT)
        node.blobs.put(data)
        feature.fetched(Digest(_digest(data)))
        found = model_files.newest(node.folder)
        assert found is not None and found.digest == _digest(data)
        assert all(node.blobs.path(Digest(digest)).is_file() for digest in feature.keeps())
        whole = [p for p in (node.folder / "blobs").iterdir() if not p.suffix]
        most = max(most, sum(p.stat().st_size for p in whole))
    assert most <= 2**20 + 200_000, "the bound, and the one that came last"


def test_a_model_is_followed_though_the_disk_refuses_its_labels(node: Node) -> None:
    """It is told once: where noting the labels failed, the node kept the model before it."""
    feature = node.follower()
    model_files.labels_file(node.folder).mkdir(parents=True)
    told, parts = manifest(node, 3, have="manifest trainer base")
    with pytest.raises(StoreError):
        hear(feature, told, TopicKind.MODEL_CURRENT)
    assert node.wanted() == [_digest(parts["model"])]
    model_files.labels_file(node.folder).rmdir()
    node.blobs.put(parts["model"])
    feature.fetched(Digest(_digest(parts["model"])))
    assert model_files.newest(node.folder) is not None


def test_missing_parts_are_fetched_and_then_the_model_is_described(node: Node) -> None:
    feature = node.follower()
    told, parts = manifest(node, 3, have="manifest trainer")
    hear(feature, told, TopicKind.MODEL_CURRENT)
    assert node.wanted() == [_digest(parts["base"]), _digest(parts["model"])]
    assert model_files.newest(node.folder) is None
    assert model_files.known_labels(node.folder) == ("cat", "dog")
    node.blobs.put(parts["base"])
    feature.fetched(Digest(_digest(parts["base"])))
    assert model_files.newest(node.folder) is None
    node.blobs.put(parts["model"])
    feature.fetched(Digest(_digest(parts["model"])))
    found = model_files.newest(node.folder)
    assert found is not None and found.name == "round 3 of run r" and found.accuracy == 0.5
    assert found.file == (node.folder / "blobs" / _digest(parts["model"])).absolute()
    assert found.base_digest == _digest(parts["base"])
    assert feature.keeps() == {_digest(data) for data in parts.values()}
    again = node.follower()
    again.start(0.0)
    assert again.keeps() == feature.keeps(), "after a restart they are kept as well"
    wishes = len(node.wanted())
    hear(again, told, TopicKind.MODEL_CURRENT)
    assert len(node.wanted()) == wishes, "what is described is not fetched again"


def test_a_state_folder_that_moved_has_its_model_at_once(
    node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    feature = node.follower()
    told, parts = manifest(node, 3, have="manifest trainer base model")
    hear(feature, told, TopicKind.MODEL_CURRENT)
    tuned = model_files.folder(node.folder) / "personal-1.blob"
    tuned.write_bytes(b"tuned")
    best = Personal(
        of=_digest(parts["model"]), file=tuned.absolute(), digest=_digest(b"tuned"),
        accuracy_global=0.5, accuracy_personal=0.6,
    )  # fmt: skip
    model_files.personal_file(node.folder).write_text(best.model_dump_json())
    moved = node.folder.rename(tmp_path_factory.mktemp("another card") / "edge")
    found, chosen = model_files.newest(moved), model_files.chosen(moved)
    assert found is not None and chosen is not None
    for path in (found.file, found.manifest, found.trainer, found.base, chosen.file):
        assert path is not None and path.is_file() and path.is_relative_to(moved)
    assert chosen.personal


def test_a_newer_model_is_fetched_instead_of_the_one_on_its_way(node: Node) -> None:
    feature = node.follower()
    old, _ = manifest(node, 3, have="manifest trainer base")
    hear(feature, old, TopicKind.MODEL_CURRENT)
    new, parts = manifest(node, 4, have="manifest trainer base")
    hear(feature, new, TopicKind.MODEL_CURRENT)
    old_topic = TOPICS.pattern(TopicKind.CHUNK_DOWN, digest=Digest(old.model.digest))
    assert old_topic not in node.bus.patterns
    node.blobs.put(parts["model"])
    feature.fetched(Digest(new.model.digest))
    found = model_files.newest(node.folder)
    assert found is not None and found.digest == new.model.digest


def test_a_part_that_does_not_come_is_asked_for_again(node: Node) -> None:
    feature = node.follower()
    told, parts = manifest(node, 3, have="manifest trainer base")
    hear(feature, told, TopicKind.MODEL_CURRENT)
    node.downloads.abandon(OWNER)
    node.now += AGAIN_S
    feature.tick(node.now)
    assert node.wanted() == [_digest(parts["model"])] * 2


def test_a_coordinator_that_names_no_trainer_gives_labels_only(node: Node) -> None:
    feature = node.follower()
    told, _ = manifest(node, 3)
    hear(feature, told.model_copy(update={"trainer": None}), TopicKind.MODEL_CURRENT)
    assert node.wanted() == [] and model_files.known_labels(node.folder) == ("cat", "dog")


def test_a_node_that_does_not_predict_fetches_nothing_but_knows_the_labels(node: Node) -> None:
    feature = node.follower(fetch=False)
    hear(feature, manifest(node, 3)[0], TopicKind.MODEL_CURRENT)
    assert node.wanted() == [] and model_files.known_labels(node.folder) == ("cat", "dog")


def test_the_labels_of_a_run_that_waits_come_with_a_notice(node: Node) -> None:
    feature = node.follower(fetch=False)
    hear(feature, Notice(), TopicKind.NODE_NOTICE)
    assert model_files.known_labels(node.folder) == ()
    hear(feature, Notice(labels=["a", "b", "c"]), TopicKind.NODE_NOTICE)
    assert model_files.known_labels(node.folder) == ("a", "b", "c")
    written = model_files.labels_file(node.folder).stat().st_mtime_ns
    hear(feature, Notice(labels=["a", "b", "c"]), TopicKind.NODE_NOTICE)
    hear(
        node.follower(fetch=False),
        Notice(labels=["a", "b", "c"]),
        TopicKind.NODE_NOTICE,
    )
    assert model_files.labels_file(node.folder).stat().st_mtime_ns == written, "no write for no news"


# -- Home Assistant --------------------------------------------------------------------------------------


def home(node: Node, **settings: Any) -> HomeAssistant:
    wishes = {"enabled": True, "home_assistant": True, **settings}
    return HomeAssistant(node.channel, PredictSettings(**wishes), node.folder)


def test_it_is_announced_on_every_connect_and_taken_back_when_it_is_switched_off(node: Node) -> None:
    feature = home(node)
    feature.connected()
    feature.connected()
    topics = [t for t, p, retained in node.bus.sent if p and retained]
    assert len(topics) == 4 and len(set(topics)) == 2 and topics[0].startswith("homeassistant/sensor/pi-7/")
    node.bus.sent.clear()
    off = home(node, home_assistant=False)
    off.connected()
    assert sorted(node.bus.sent) == [(topic, b"", True) for topic in sorted(set(topics))]
    node.bus.backlog = 1
    off.tick(0.0)
    node.bus.backlog = 0
    home(node, home_assistant=False).connected()
    assert len(node.bus.sent) == 4, "until the broker has it, another start says it again"
    off.tick(0.0)
    node.bus.sent.clear()
    home(node, home_assistant=False).connected()
    assert node.bus.sent == []


def test_another_prefix_takes_the_old_topics_back(node: Node) -> None:
    home(node).connected()
    node.bus.sent.clear()
    moved = home(node, home_assistant_prefix="ha")
    moved.connected()
    assert {(t.partition("/")[0], bool(p)) for t, p, _ in node.bus.sent} == {
        ("ha", True),
        ("homeassistant", False),
    }
    moved.tick(0.0)
    node.bus.sent.clear()
    home(node, home_assistant_prefix="ha").connected()
    assert {t.partition("/")[0] for t, _, _ in node.bus.sent} == {"ha"}


def test_a_node_without_it_says_nothing(node: Node) -> None:
    for settings in ({"home_assistant": False}, {"enabled": False}, {"publish": False}):
        home(node, **settings).connected()
    assert node.bus.sent == [] and not model_files.folder(node.folder).exists()


# -- spare time ------------------------------------------------------------------------------------------


class Child:
    def __init__(self) -> None:
        self.started = 0
        self.stopped = 0
        self.lines: list[TrainingEvent] = []
        self.job: BackgroundJob | None = None

    def start(self, job: BackgroundJob) -> None:
        self.started += 1
        self.job = job

    def collect(self) -> list[TrainingEvent]:
        lines, self.lines = self.lines, []
        return lines

    def stop(self) -> None:
        self.stopped += 1


class Spare:
    def __init__(self, folder: Path, *, waiting: Callable[[], int] = lambda: 0, personal: bool = True):
        edge = EdgeSettings.model_validate({"state_dir": folder, "personal": {"enabled": personal}})
        self.child = Child()
        self.busy = False
        self.now = 0.0

        class Store:
            def awaiting_suggestion(self, model: str, limit: int) -> list[str]:
                return ["x"] * min(limit, waiting())

        store: Any = Store()
        rounds: Any = self
        self.samples = 30
        self.feature = BackgroundTasks(
            BackgroundJob(edge=edge, store=folder),
            self.child,
            store,
            "pi-7",
            rounds=rounds,
            limit_s=3600.0,
        )

    def tick(self, after_s: float = LOOK_EVERY_S) -> None:
        self.now += after_s
        self.feature.tick(self.now)


def newest(folder: Path, name: str = "a") -> ModelFile:
    found = ModelFile(
        kind="trainer", name=name, digest=_digest(name.encode()), file=Path("/m"), labels=("x", "y")
    )
    model_files.folder(folder).mkdir(exist_ok=True)
    model_files.newest_file(folder).write_text(found.model_dump_json())
    return found


def test_nothing_is_done_before_there_is_a_model_and_once_for_each(tmp_path: Path) -> None:
    spare = Spare(tmp_path)
    spare.tick()
    assert spare.child.started == 0
    found = newest(tmp_path)
    spare.tick()
    spare.tick()
    assert spare.child.started == 1, "one at a time"
    assert spare.child.job is not None and spare.child.job.counted == 30
    tuned = Personal(of=found.digest, counted=30, accuracy_global=0.5, accuracy_personal=0.75, held_out=8)
    model_files.personal_file(tmp_path).write_text(tuned.model_dump_json())
    spare.child.lines = [TrainingEvent(kind="done")]
    spare.tick()
    spare.tick(FAILED_PAUSE_S)
    assert spare.child.started == 1
    assert spare.feature.status() == {"accuracy_global": 0.5, "accuracy_personal": 0.75}
    newest(tmp_path, "b")
    spare.tick()
    assert spare.child.started == 2
    assert spare.feature.status() == {}, "the accuracies are of an older model"


def test_a_round_ends_the_chores_and_they_go_on_after_it(tmp_path: Path) -> None:
    spare = Spare(tmp_path)
    newest(tmp_path)
    spare.tick()
    spare.busy = True
    spare.tick(0.5)
    assert spare.child.stopped == 1
    for _ in range(10):
        spare.tick()
    assert spare.child.started == 1 and spare.child.stopped == 1
    spare.busy = False
    spare.tick()
    assert spare.child.started == 2


def test_a_child_that_hangs_is_ended_though_no_round_ever_begins(tmp_path: Path) -> None:
    spare = Spare(tmp_path)
    newest(tmp_path)
    spare.tick()
    spare.tick(3599.0)
    assert spare.child.stopped == 0
    spare.tick(1.0)
    assert (spare.child.started, spare.child.stopped) == (1, 1)
    spare.tick(FAILED_PAUSE_S - 1)
    assert spare.child.started == 1
    spare.tick(1.0)
    assert spare.child.started == 2


def test_a_child_that_fails_or_achieves_nothing_is_not_started_again_at_once(tmp_path: Path) -> None:
    waiting = 5
    spare = Spare(tmp_path, waiting=lambda: waiting, personal=False)
    newest(tmp_path)
    for ending in (
        TrainingEvent(kind="crashed", text="x"),
        TrainingEvent(kind="failed", text="x"),
        TrainingEvent(kind="done", samples=0),
    ):
        spare.tick(FAILED_PAUSE_S)
        started = spare.child.started
        spare.child.lines = [ending]
        for _ in range(5):
            spare.tick()
        assert spare.child.started == started
    spare.tick(FAILED_PAUSE_S)
    spare.child.lines = [TrainingEvent(kind="done", samples=5)]
    spare.tick()
    assert spare.child.started > started, "who achieved something goes on"
    waiting = 0
    spare.child.lines = [TrainingEvent(kind="done", samples=5)]
    started = spare.child.started
    for _ in range(100):
        spare.tick()
    assert spare.child.started == started


def test_a_head_is_tuned_again_when_there_are_half_as_many_pictures_more(tmp_path: Path) -> None:
    spare = Spare(tmp_path)
    found = newest(tmp_path)
    early = Personal(of=found.digest, counted=30, why="too few pictures")
    model_files.personal_file(tmp_path).write_text(early.model_dump_json())
    for samples, tuned in ((30, 0), (44, 0), (45, 1)):
        spare.samples = samples
        spare.tick()
        assert spare.child.started == tuned
