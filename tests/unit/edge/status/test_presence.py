"""Reasons not to train: who gave them, what changes, what is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import pytest

from apiary.settings import EdgeSettings
from apiary.wire import NodeId
from apiary_edge.status.presence import NodeFacts, PauseReasons, Presence
from apiary_edge.training.session import Session
from apiary_edge.transfer.channel import NodeChannel


def test_it_trains_while_nobody_holds_it() -> None:
    assert PauseReasons().why is None


def test_all_reasons_are_said_and_each_is_taken_back_by_who_gave_it() -> None:
    holds = PauseReasons()
    assert holds.set("heat", "84 degrees")
    assert holds.set("operator", "paused by anna")
    assert holds.why == "84 degrees; paused by anna"
    assert holds.set("heat", None)
    assert holds.why == "paused by anna"


def test_saying_the_same_again_changes_nothing() -> None:
    holds = PauseReasons()
    holds.set("heat", "84 degrees")
    assert not holds.set("heat", "84 degrees")
    assert holds.set("heat", "85 degrees")
    assert not holds.set("operator", None)


class Channel:
    """Keeps what is sent."""

    node = NodeId("pi-1")

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, message: object) -> None:
        self.sent.append(message)


def presence(folder: Path, channel: Channel, *, join_labels: bool = False) -> Presence:
    settings = EdgeSettings(node_id="pi-1", data_dir=folder, join_labels=join_labels)
    return Presence(settings, cast("NodeChannel", channel), NodeFacts("1", []), None, dict)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_node_says_at_its_start_how_it_reads_its_folder_and_what_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files(
        tmp_path, "train/cat/1.jpg", "train/dog/1.webp", "test/cat/9.jpg", "train/dog/IMG.dng", "train/x.jpg"
    )
    made = presence(tmp_path, Channel())
    made.begin(0.0)
    said = [r.getMessage() for r in caplog.records]
    assert made.samples == 2
    assert any("train/ to train on and test/ held out" in line for line in said)
    assert any("not read, camera raw: 1 (develop them to JPEG)" in line for line in said)
    assert any("1 picture without a label, such as train/x.jpg" in line for line in said)
    before = len(caplog.records)
    made.tick(100.0)
    assert len(caplog.records) == before, "said once"


def test_a_node_takes_the_models_spelling_where_labels_are_joined(tmp_path: Path) -> None:
    files(tmp_path, "red/1.jpg", "Red /2.jpg", "blue/1.jpg")
    for join, labels in ((False, {"Red ": 1, "blue": 1, "red": 1}), (True, {"BLUE": 1, "Red": 2})):
        channel = Channel()
        made = presence(tmp_path, channel, join_labels=join)
        made.begin(0.0)
        made.know(["Red", "BLUE"])
        made.tick(1.0 if join else 100.0)
        made.say(Session(NodeId("pi-1"), 30.0))
        assert getattr(channel.sent[-1], "labels") == labels  # noqa: B009 - any message
