"""The real parts for releases, of a coordinator and of nodes, on the in-memory bus under the test's clock.

Only the test of a release is a stand-in: what it comes to is what `verdicts` says for its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from tests.fleet.signed_party import Party
from tests.places import COLOURS
from tests.stand_ins.eim_program import write_program
from tests.stand_ins.inline_worker import InlineWorker
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.blobs import BlobStore
from apiary.bus.bus import Connected, Received, Will
from apiary.bus.inlet import Delivery, decode
from apiary.bus.outlet import Outlet
from apiary.clocks import Clocks
from apiary.errors import StoreError, WireError
from apiary.identity.gate import OPEN, MessageGate
from apiary.identity.roles import Role
from apiary.settings import Settings
from apiary.wire import Digest, NodeId
from apiary.wire.messages import BlobRef, NodeStatus, PictureShape, Release, Want
from apiary.wire.topics import TopicKind, Topics
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.journal import Journal
from apiary_coordinator.publishers._record import PublishRecord
from apiary_coordinator.releases.build import BuiltRelease
from apiary_coordinator.releases.ledger import Ledger
from apiary_coordinator.releases.service import ReleaseService
from apiary_coordinator.releases.signer import CertificateSigner, ReleaseKeySigner
from apiary_coordinator.resources import Outgoing, Resources, Storage
from apiary_coordinator.updates.model_server import ModelServer
from apiary_edge.releases.agent import ReleaseAgent
from apiary_edge.releases.compatibility import Host
from apiary_edge.releases.job import TrialJob
from apiary_edge.releases.slot import Findings
from apiary_edge.releases.state import TrialCrashed, TrialDone
from apiary_edge.releases.store import ReleaseStore, folder_of, opened_before, trusting
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.downloads import Downloads

TICK_S = 0.5
TOPICS = Topics()
GOOD = TrialDone(Findings(pictures=20, right=19, right_before=19, inference_ms=5.0))
BAD = TrialDone(Findings(pictures=20, right=5, right_before=19, inference_ms=5.0))
CRASH = TrialCrashed("its test ended by signal 11")
HANG = None


T = TypeVar("T")


def _of(kind: type[T], **given: Any) -> T:
    """One with these parts; those that releases do not use are None."""
    return kind(**{f.name: given.get(f.name) for f in fields(cast(Any, kind))})


class FakeTesting:
    """Takes two seconds of the clock."""

    def __init__(self, fleet: ReleaseFleet, node: str):
        self.tests: list[str] = []
        self._fleet = fleet
        self._node = node
        self._ends: float | None = None

    def start(self, job: TrialJob) -> None:
        assert job.model.file.is_file()
        self.tests.append(self._fleet.name_of(job.model.file.name.split(".")[0]))
        self._ends = self._fleet.broker.now + 2.0

    def poll(self) -> TrialDone | TrialCrashed | None:
        if self._ends is None or self._fleet.broker.now < self._ends:
            return None
        told = self._fleet.verdict(self._node, self.tests[-1])
        if told is not None:
            self._ends = None
        return told

    def stop(self) -> None:
        self._ends = None


class Node:
    """A node that only follows releases."""

    def __init__(self, fleet: ReleaseFleet, name: str):
        self.name = NodeId(name)
        self.seen: list[str | None] = []
        """Its release after each turn."""
        settings = fleet.settings(name)
        will = NodeStatus(state="lost", why="connection lost")
        self.bus = fleet.broker.bus(
            name, Will(TOPICS.build(TopicKind.NODE_STATUS, node=self.name), will.encode())
        )
        state = settings.edge.state_dir
        self._gate = fleet.gate(Role.NODE, name, state)
        channel = NodeChannel(self.name, self.bus, TOPICS, Outlet(self.bus, TOPICS, gate=self._gate))
        self.blobs = BlobStore(state / "blobs", 2**26)
        self.downloads = Downloads(channel, self.blobs, idle_s=5.0, keeps=self._keeps)
        shelf = ReleaseStore(folder_of(state))
        self.testing = FakeTesting(fleet, name)
        self.releases = ReleaseAgent(
            settings,
            channel,
            Clocks(lambda: fleet.broker.now, lambda: fleet.broker.now),
            self.downloads,
            store=shelf,
            testing=self.testing,
            host=Host("aarch64", "0.1.0", 2**26),
            open_=opened_before if fleet.party else trusting(shelf, settings.edge.slots.release_key),
        )
        self.shelf = shelf
        self._outlet = channel.outlet
        self._fleet = fleet
        self.complaints: list[str] = []
        self.bus.subscribe(TOPICS.pattern(TopicKind.RELEASE_CURRENT))
        self.releases.start(fleet.broker.now)
        channel.send(NodeStatus(state="ready", tags=fleet.tags.get(name, {})))

    def _keeps(self) -> set[Digest]:
        return self.releases.keeps()

    @property
    def current(self) -> str | None:
        return self.shelf.current.release if self.shelf.current is not None else None

    def step(self) -> None:
        for event in self.bus.poll(0):
            if isinstance(event, Connected):
                self._outlet.restore()
                self.downloads.again(self._fleet.broker.now)
            elif isinstance(event, Received):
                self._guarded(lambda event=event: self._received(event))  # type: ignore[misc]  # a lambda's default
        self.downloads.tick(self._fleet.broker.now)
        self._guarded(lambda: self.releases.tick(self._fleet.broker.now))
        self.seen.append(self.current)

    def _received(self, event: Received) -> None:
        topic = TOPICS.parse(event.topic)
        event = replace(event, payload=self._gate.open(topic, event.topic, event.payload))
        if topic.kind is TopicKind.CHUNK_DOWN:
            assert topic.digest is not None and topic.index is not None
            whole = self.downloads.chunk(topic.digest, topic.index, event.payload, self._fleet.broker.now)
            if whole is not None:
                self.releases.fetched(whole)
        elif topic.kind in self.releases.kinds:
            content = decode(topic, event.payload)
            self.releases.received(Delivery(topic, content, event.retained, event.topic))

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (WireError, StoreError) as e:
            self.complaints.append(str(e))


class Headquarters:
    """A coordinator that only rolls releases out."""

    def __init__(self, fleet: ReleaseFleet):
        settings = fleet.settings("x")
        state = settings.coordinator.state_dir
        self.bus = fleet.broker.bus("coordinator")
        self.blobs = BlobStore(state / "blobs")
        self.roster = Roster()
        self._gate = fleet.gate(Role.COORDINATOR, "hq", state)
        self.outlet = Outlet(self.bus, TOPICS, gate=self._gate)
        self._model_server = ModelServer(TOPICS, self.blobs, 0.1)
        self._fleet = fleet
        self.settings, self.worker = settings, InlineWorker()
        no_journal = cast(Journal, None)  # releases have a ledger of their own
        self.resources = Resources(
            Clocks(lambda: fleet.broker.now, lambda: fleet.broker.now),
            Storage(no_journal, self.blobs),
            Outgoing(self.bus, self.outlet, self._model_server),
            self.worker,
        )
        self.releasing = ReleaseService(
            settings,
            self.resources,
            self.roster,
            Ledger(state, settings.release),
            CertificateSigner(self.outlet)
            if fleet.party
            else ReleaseKeySigner(self.outlet, TOPICS, state / "release-key.pem"),
        )
        for kind in (
            TopicKind.NODE_STATUS,
            TopicKind.NODE_RELEASE,
            TopicKind.NODE_WANT,
            TopicKind.RELEASE_CURRENT,
        ):
            self.bus.subscribe(TOPICS.pattern(kind))
        self.releasing.start(fleet.broker.now)

    def step(self) -> None:
        now = self._fleet.broker.now
        for event in self.bus.poll(0):
            if isinstance(event, Connected):
                self.outlet.restore()
            elif isinstance(event, Received):
                with contextlib.suppress(WireError):
                    self._received(event, now)
        self.releasing.tick(now)
        self._model_server.due(now)
        self._model_server.flow.pump(self.bus, 20)

    def _received(self, event: Received, now: float) -> None:
        topic = TOPICS.parse(event.topic)
        node = topic.node or NodeId("-")
        event = replace(event, payload=self._gate.open(topic, event.topic, event.payload))
        content = decode(topic, event.payload)
        if isinstance(content, NodeStatus):
            self.roster.update(node, content, now)
        if isinstance(content, Want):
            self._model_server.want(node, content, now)
        else:
            self.releasing.received(Delivery(topic, content, event.retained, event.topic))


class ReleaseFleet:
    """Headquarters and nodes `pi-0`, `pi-1`, ...; each can be killed and started again."""

    def __init__(
        self, folder: Path, nodes: int = 5, *, seed: int = 1, certified: bool = False, **release: Any
    ):
        self.folder = folder
        self.broker = MemoryBroker(seed=seed, latency_s=0.01)
        self.broker.now = 1_000_000.0
        self.party = Party(self.broker) if certified else None
        self.tags: dict[str, dict[str, str]] = {}
        self.slots: dict[str, Any] = {}
        self.chosen = {"waves": [0.2, 1.0], "wave_s": 120.0, "soak_s": 5.0, **release}
        self.verdicts: dict[str, TrialDone | TrialCrashed | None] = {}
        self.by_node: dict[tuple[str, str], TrialDone | TrialCrashed | None] = {}
        self.made: dict[str, Release] = {}
        self.nodes: dict[str, Node] = {}
        self.hq = Headquarters(self)
        for i in range(nodes):
            self.start_node(f"pi-{i}")
        self.turn(4)

    def settings(self, node: str) -> Settings:
        return Settings.model_validate(
            {
                "coordinator": {"state_dir": self.folder / "coordinator", "runs_dir": self.folder / "runs"},
                "edge": {"node_id": node, "state_dir": self.folder / node, "tags": self.tags.get(node, {}),
                         "slots": self.slots},
                "release": self.chosen,
            }
        )  # fmt: skip

    def gate(self, role: Role, name: str, folder: Path) -> MessageGate:
        return self.party.gate(role, name, folder) if self.party is not None else OPEN

    def start_node(self, name: str) -> Node:
        self.nodes[name] = Node(self, name)
        return self.nodes[name]

    def kill_node(self, name: str) -> None:
        self.broker.cut(name, for_s=float("inf"))
        del self.nodes[name]

    def restart_hq(self) -> None:
        self.broker.cut("coordinator", for_s=float("inf"))
        self.hq = Headquarters(self)

    def make(self, name: str, *, size: int = 300_000, **more: Any) -> Release:
        """A release whose file headquarters keeps."""
        data = (b"\0\0\0\0TFL3" + name.encode()).ljust(size, name[-1].encode())
        file = self.folder / f"{name}.tflite"
        file.write_bytes(data)
        from apiary.wire.chunks import digest_of

        told = {
            "name": name,
            "file": BlobRef(digest=digest_of(data), bytes=len(data)),
            "kind": "tflite",
            "labels": ["a", "b"],
            "input": PictureShape(height=8, width=10, channels=3),
            **more,
        }
        release = Release.model_validate(told)
        self.made[name] = release
        self.hq.releasing.keep(BuiltRelease(release, file))
        return release

    def name_of(self, digest: str) -> str:
        return next(n for n, r in self.made.items() if r.file.digest == digest)

    def verdict(self, node: str, name: str) -> TrialDone | TrialCrashed | None:
        return self.by_node.get((node, name), self.verdicts.get(name, GOOD))

    def roll_out(self, name: str, verdict: TrialDone | TrialCrashed | None = GOOD, **more: Any) -> str:
        """Make it, begin, and turn until it is over; what became of it."""
        self.verdicts[name] = verdict
        self.hq.releasing.begin(self.make(name, **more))
        return self.finish()

    def finish(self, seconds: float = 2000.0) -> str:
        for _ in range(int(seconds / TICK_S)):
            self.turn()
            if self.state not in ("rolling", "paused"):
                self.turn(40)  # for the nodes to follow
                return self.state
        raise AssertionError(f"not over after {seconds} s: {self.hq.releasing.standing.rollout}")

    @property
    def state(self) -> str:
        rollout = self.hq.releasing.standing.rollout
        return rollout.state if rollout is not None else "none"

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.hq.step()
            for node in list(self.nodes.values()):
                node.step()
            self.broker.now += TICK_S

    def currents(self) -> dict[str, str | None]:
        return {name: node.current for name, node in self.nodes.items()}

    def ever_had(self, release: str) -> set[str]:
        """Nodes on which it was current at some time."""
        return {name for name, node in self.nodes.items() if release in node.seen}

    def files(self, node: str) -> set[str]:
        folder = folder_of(self.settings(node).edge.state_dir) / "files"
        return {self.name_of(p.name.split(".")[0]) for p in folder.iterdir()}


def all_have(fleet: ReleaseFleet, release: str | None) -> bool:
    return set(fleet.currents().values()) == {release}


def finished_run(folder: Path, *, program: bool) -> Path:
    """A run as it ends; its publishing to Edge Impulse went well, or found nobody there."""
    run = folder / "runs" / "autumn"
    run.mkdir(parents=True)
    shutil.copy(COLOURS / "model.tflite", run / "model.tflite")
    (run / "labels.txt").write_text("red\ngreen\nblue\n")
    (run / "summary.json").write_text('{"run": "autumn", "tflite_accuracy": 0.9, "contributors": {}}')
    record = PublishRecord(run, "edge_impulse/runner-linux-aarch64/float32", {})
    if program:
        built = write_program(run / "model-runner-linux-aarch64.eim", machine="aarch64")
        record.done({"files": {built.name: hashlib.sha256(built.read_bytes()).hexdigest()}})
    else:
        record.failed(
            "https://studio.edgeimpulse.com/v1 gave no answer within 120 s: is this machine online?"
        )
    return run


__all__ = ["BAD", "CRASH", "GOOD", "HANG", "Digest", "ReleaseFleet"]
