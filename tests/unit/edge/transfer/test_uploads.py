"""An update on its way out: where its chunks go, what is written down before it goes, what is unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.stand_ins.memory_bus import MemoryBroker
from tests.unit.edge.transfer.transferred import DATA, DIGEST, offer

from apiary.bus.bus import Received
from apiary.bus.outlet import Outlet
from apiary.errors import StoreError
from apiary.wire import NodeId
from apiary.wire.chunks import count
from apiary.wire.topics import Topics
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.outbox import Outbox
from apiary_edge.transfer.uploads import UpdateUpload

OFFER = offer(DATA, 3)
CHUNKS = count(len(DATA))


class Scene:
    def __init__(self, folder: Path):
        self._broker = MemoryBroker(seed=1)
        self.bus, self._coordinator = self._broker.bus("pi-1"), self._broker.bus("coordinator")
        self._coordinator.subscribe("apiary-blob/#")
        for connecting in (self.bus, self._coordinator):
            connecting.poll(0)
        self.folder = folder / "outbox"
        self.outbox = Outbox(self.folder)
        (folder / "update.blob").write_bytes(DATA)
        self.outbox.put(folder / "update.blob", OFFER)
        channel = NodeChannel(NodeId("pi-1"), self.bus, Topics(), Outlet(self.bus, Topics()))
        self.upload = UpdateUpload(channel, self.outbox, window=20)

    def sent(self) -> list[str]:
        """Topics of the chunks that came."""
        self._broker.now += 1.0
        self.bus.poll(0)
        return [e.topic for e in self._coordinator.poll(0) if isinstance(e, Received)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_chunks_go_where_the_coordinator_takes_them(scene: Scene) -> None:
    scene.upload.add(OFFER, [(0, 2)])
    scene.upload.pump()
    assert scene.sent() == [f"apiary-blob/default/up/pi-1/{DIGEST}/{i}" for i in (0, 1)]
    scene.upload.one_topic = True
    scene.upload.add(OFFER, [(2, CHUNKS)])
    scene.upload.pump()
    assert scene.sent() == ["apiary-blob/default/up/pi-1"] * (CHUNKS - 2)


def test_no_more_is_on_its_way_than_the_window(scene: Scene) -> None:
    scene.upload.window = 2
    scene.upload.add(OFFER, [(0, CHUNKS)])
    scene.upload.pump()
    assert scene.bus.backlog == 2 and len(scene.sent()) == 2


def test_what_may_still_be_on_its_way_is_not_sent_twice(scene: Scene) -> None:
    scene.upload.window = 2
    scene.upload.add(OFFER, [(0, 2)])
    scene.upload.pump()
    scene.upload.add(OFFER, [(0, 2)])  # a slow link: the coordinator asks again
    scene.upload.window = 20
    scene.upload.pump()
    assert len(scene.sent()) == 2
    scene.upload.clear()  # the link broke, and what was on its way with it
    scene.upload.add(OFFER, [(0, 2)])
    scene.upload.pump()
    assert len(scene.sent()) == 2


def test_an_answered_update_is_done_gone_and_sent_no_more(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.upload.add(OFFER, [(0, CHUNKS)])
    scene.upload.answered(OFFER, "rejected", "too far")
    scene.upload.pump()
    assert scene.sent() == [] and scene.outbox.waiting() == []
    assert scene.outbox.done() == ("r", 3)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "node=pi-1 round=3 update rejected: too far")
    ]


@pytest.mark.parametrize("state", ["accepted", "duplicate"])
def test_a_good_answer_is_no_warning(scene: Scene, caplog: pytest.LogCaptureFixture, state: str) -> None:
    caplog.set_level("INFO")
    scene.upload.answered(OFFER, state, None)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", f"node=pi-1 round=3 update {state}")
    ]


def test_a_round_that_cannot_be_noted_as_done_keeps_its_update(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: str, number: int) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(scene.outbox, "set_done", full)
    with pytest.raises(StoreError):
        scene.upload.answered(OFFER, "accepted", None)
    assert scene.outbox.waiting() == [OFFER]


def test_an_update_that_the_disk_does_not_give_back_is_named_once_and_its_round_not_done(
    scene: Scene,
) -> None:
    (scene.folder / f"{DIGEST}.update").write_bytes(b"cut")
    scene.upload.add(OFFER, [(0, CHUNKS)])
    with pytest.raises(StoreError, match="was cut short"):
        scene.upload.pump()
    assert scene.upload.unreadable() == DIGEST
    assert scene.upload.unreadable() is None
    scene.upload.discard(OFFER)
    scene.upload.pump()
    assert scene.sent() == [] and scene.outbox.done() is None
    assert [p.name for p in scene.folder.iterdir()] == []
