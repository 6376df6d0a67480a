"""What an owner at the node sees: the board of its messages, its file, and `apiary edge status`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apiary.files import write_json
from apiary.settings import Settings
from apiary.wire.messages import (
    Announcement,
    BlobRef,
    Bounds,
    CoordinatorStatus,
    NodeHealth,
    NodeStatus,
    Notice,
    Offer,
    PictureShape,
    Plan,
    Progress,
    Receipt,
    TrainMetrics,
)
from apiary.wire.topics import TopicKind
from apiary_cli.terminal.edge_status import duration, render, show
from apiary_edge.owner.status_board import MAX_LAST, Board
from apiary_edge.owner.status_file import StatusFile, _process_start, find, runtime_folder
from apiary_edge.releases.slot import Findings, Slot
from apiary_edge.releases.store import current_file, described

WAIT_S = 30.0
REF = BlobRef(digest="a" * 64, bytes=1000)
METRICS = TrainMetrics(loss=0.2, accuracy=0.95, seconds=120.0)


def announced(number: int = 3) -> Announcement:
    return Announcement(
        run="r", round=number, state="open", rounds=12, epoch="e", labels=["a", "b"], model=REF,
        manifest=REF, plan=Plan(), bounds=Bounds(), deadline_s=100.0,
    )  # fmt: skip


def offered(number: int = 3) -> Offer:
    return Offer(run="r", round=number, update=REF, codec="raw_f32", samples=40, metrics=METRICS)


def receipted(number: int = 3, state: Any = "accepted") -> Receipt:
    return Receipt(digest=REF.digest, state=state, run="r", round=number)


TRAINING = NodeStatus(state="training", run="r", round=3, samples=40, labels={"cat": 25, "dog": 15})


def board(*messages: Any) -> Board:
    made = Board()
    for now, message in enumerate(messages):
        made.take(message, float(now))
    return made


def test_a_board_of_a_node_that_trains() -> None:
    made = board(
        NodeStatus(state="ready", samples=40),
        CoordinatorStatus(state="online", epoch="e", run="r"),
        announced(),
        TRAINING,
        Progress(run="r", round=3, epoch=2, epochs=8, loss=0.5, left_s=61.5),
        NodeHealth(temperature_c=61.0),
    )
    made.linked(7.0)
    picture = made.picture()
    assert picture["round"] == {"run": "r", "number": 3, "of": 12}
    assert picture["progress"] == {"epoch": 2, "epochs": 8, "loss": 0.5, "left_s": 61.5, "at_s": 4.0}
    assert picture["labels"] == {"cat": 25, "dog": 15}
    assert picture["broker"] == {"connected": True, "since_s": 7.0}
    assert picture["coordinator"] == {"state": "online", "epoch": "e", "version": "", "run": "r"}
    assert picture["health"] == {"temperature_c": 61.0}
    assert made.line() == "training, round 3 of run r, epoch 2 of 8"
    json.dumps(picture)


def test_rounds_that_are_over_are_remembered_with_what_became_of_them() -> None:
    made = board(
        Notice(invited=True, announcement=announced()),
        TRAINING,
        Progress(run="r", round=3, epoch=8, epochs=8),
        offered(),
        TRAINING.model_copy(update={"state": "sending"}),
        receipted(state="missing"),
        receipted(),
        receipted(state="duplicate"),
        NodeStatus(state="ready", run="r", round=4, declined=True, why="too hot"),
    )
    assert made.picture()["progress"] is None
    assert made.picture()["last"] == [
        {"run": "r", "round": 3, "outcome": "accepted", "samples": 40, "seconds": 120.0, "accuracy": 0.95},
        {"run": "r", "round": 4, "outcome": "declined", "why": "too hot"},
    ]
    for number in range(5, 30):
        made.take(receipted(number), 0.0)
    assert len(made.picture()["last"]) == MAX_LAST


def test_a_paused_node_keeps_its_progress_and_says_why() -> None:
    made = board(
        announced(),
        TRAINING,
        Progress(run="r", round=3, epoch=2, epochs=8, left_s=61.5),
        TRAINING.model_copy(update={"state": "paused", "why": "81 degrees"}),
    )
    assert made.picture()["progress"]["epoch"] == 2
    assert made.line() == "paused, round 3 of run r, epoch 2 of 8, 81 degrees, no broker"


def test_a_broker_that_stays_away_has_been_away_since_the_first_time() -> None:
    made = Board()
    made.unlinked("refused", 5.0)
    made.unlinked("timed out", 9.0)
    assert made.picture()["broker"] == {"connected": False, "since_s": 5.0, "why": "timed out"}
    made.linked(10.0)
    made.unlinked("gone", 20.0)
    assert made.picture()["broker"]["since_s"] == 20.0


def test_a_board_that_has_heard_nothing() -> None:
    assert Board().picture()["state"] == "init"
    assert Board().line() == "starting"


# -- the file


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"edge": {"node_id": "pi-1", "state_dir": tmp_path / "state"}, "broker": {"host": "broker.local"}}
    )


class Clock:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


def written(settings: Settings, folder: Path | None = None) -> tuple[StatusFile, Clock]:
    clock = Clock()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    file = StatusFile(settings, clock=clock, runtime_folder=folder)
    file.start(clock.now)
    return file, clock


def test_a_process_that_has_ended_and_was_not_reaped_does_not_run() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert _process_start(process.pid) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}").exists()
        assert _process_start(process.pid) is None


def test_what_is_written_is_found_and_alive(settings: Settings) -> None:
    _, clock = written(settings)
    found = find(settings, clock.now + 5, ())
    assert found is not None and found.alive and not found.hangs and found.age_s == pytest.approx(5, abs=0.2)
    assert (found.status["node"], found.status["address"]) == ("pi-1", "broker.local:1883")


def test_a_state_is_told_at_once_and_a_figure_in_time(settings: Settings) -> None:
    file, clock = written(settings)

    def read() -> dict[str, Any]:
        found = find(settings, clock.now, ())
        assert found is not None
        return found.status

    def after(seconds: float) -> dict[str, Any]:
        clock.now += seconds
        file.tick(clock.now)
        return read()

    file.tap(TopicKind.NODE_STATUS, None, TRAINING)
    assert after(0.5)["state"] == "init"
    assert after(0.6)["state"] == "training"
    file.tap(TopicKind.NODE_HEALTH, None, NodeHealth(load=1.0))
    assert after(5.0)["health"] is None
    assert after(5.1)["health"] == {"load": 1.0}
    at = read()["at_s"]
    assert after(59.0)["at_s"] == at
    assert after(1.1)["at_s"] > at


def test_a_service_that_writes_no_more_hangs(settings: Settings) -> None:
    _, clock = written(settings)
    found = find(settings, clock.now + 3 * 60 + 1, ())
    assert found is not None and found.alive and found.hangs
    assert "HANGS: it has been silent for" in render(found, None, clock.now)


def test_one_that_stopped_in_good_order_says_so(settings: Settings) -> None:
    file, clock = written(settings)
    file.close()
    found = find(settings, clock.now + 120, ())
    assert found is not None and found.stopped and not found.alive
    assert "stopped 2 min ago" in render(found, None, clock.now)


def change(settings: Settings, **changed: Any) -> None:
    path = settings.edge.state_dir / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_another_boot_or_another_process_of_the_same_number_is_not_ours(settings: Settings) -> None:
    _, clock = written(settings)
    change(settings, began=1)
    found = find(settings, clock.now, ())
    assert found is not None and not found.alive
    assert "NOT RUNNING: it ended without a word, 0 s ago" in render(found, None, clock.now)
    change(settings, boot="another")
    found = find(settings, clock.now, ())
    assert found is not None and not found.alive and found.age_s is None
    assert "before this machine was started" in render(found, None, clock.now)


@pytest.mark.parametrize("torn", ["", "{", "[]", "null", '{"v": 2}', "\x00"])
def test_a_torn_file_is_none(settings: Settings, torn: str) -> None:
    settings.edge.state_dir.mkdir(parents=True)
    (settings.edge.state_dir / "status.json").write_text(torn)
    assert find(settings, 0.0, ()) is None


def test_the_folder_that_systemd_made_is_preferred_and_open_to_all(
    settings: Settings, tmp_path: Path
) -> None:
    written(settings)
    change(settings, pid=None)
    before = os.umask(0o077)
    try:
        _, clock = written(settings, tmp_path / "run")
    finally:
        os.umask(before)
    found = find(settings, clock.now, (tmp_path / "run",))
    assert found is not None and found.alive
    assert (tmp_path / "run" / "pi-1.json").stat().st_mode & 0o777 == 0o644
    assert runtime_folder({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a")
    assert runtime_folder({}) is None


def test_the_screen_of_a_node_in_the_middle_of_a_round(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    file, clock = written(settings)
    for message in (
        announced(2),
        offered(2),
        receipted(2),
        announced(),
        TRAINING.model_copy(
            update={"state": "paused", "why": "under-voltage", "waiting": 14, "also_held_out": 2}
        ),
        Progress(run="r", round=3, epoch=2, epochs=8, loss=0.5, accuracy=0.75, left_s=200.0),
        CoordinatorStatus(state="online", epoch="e", run="r"),
        NodeHealth(
            temperature_c=61.0, memory_available_mb=300, memory_mb=900, disk_free_mb=12_300, load=0.5,
            uptime_s=86_400, throttled=["under-voltage"], throttled_since_boot=["under-voltage", "throttled"],
        ),
    ):  # fmt: skip
        file.tap(TopicKind.NODE_STATUS, None, message)
    file.connected()
    clock.now += 2
    file.tick(clock.now)
    slot = Slot(
        kind="tflite",
        path=Path("autumn.tflite"),
        labels=("cat", "dog"),
        digest="0" * 64,
        release="autumn",
        attempt=1,
        bytes=1000,
        input=PictureShape(height=8, width=8, channels=3),
        tested=Findings(pictures=100, right=97, right_before=None, inference_ms=5.0),
    )
    write_json(current_file(settings.edge.state_dir), described(slot))
    assert show(settings, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("node         pi-1, version ")
    assert lines[1:6] == [
        "state        paused: under-voltage",
        "round        3 of 12, run r: epoch 2 of 8, loss 0.500, accuracy 75.0%, about 3 min left",
        "pictures     40: cat 25, dog 15",
        "             14 wait for a label (apiary label, apiary samples label)",
        "             2 are in the server's held-out set as well",
    ]
    assert lines[6].startswith("broker       broker.local:1883, connected for")
    assert lines[7:] == [
        "coordinator  online, run r",
        "machine      61 °C, 300 of 900 MB memory free, 12.3 GB disk free, load 0.50, up 24 h 00 min; "
        "NOW under-voltage; throttled since the boot",
        "model        autumn (tflite), accuracy 97.0%",
        "last rounds  2 accepted, 40 pictures, trained 2 min, accuracy 95.0%",
    ]
    assert show(settings, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["running"], told["hangs"], told["slot"]["release"]) == (True, False, "autumn")


def test_where_no_node_has_run_it_says_where_it_looked(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(settings, as_json=False) == 1
    assert f"{settings.edge.state_dir}/status.json" in capsys.readouterr().out
    assert show(settings, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {"running": False, "node": "pi-1"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1 h 30 min"), (172_800, "2 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_beside_a_real_node(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "pictures" / label / "1.png")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    apiary = [sys.executable, "-m", "apiary_cli", "edge"]
    which = ["--node-id", "pi-1", "--state-dir", str(tmp_path / "state")]

    def status() -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [*apiary, "status", "--json", *which], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        return done.returncode, json.loads(done.stdout)

    assert status() == (1, {"running": False, "node": "pi-1"})
    flags = ["--data", str(tmp_path / "pictures"), "--port", str(port)]
    node = subprocess.Popen([*apiary, *which, *flags], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        code, told = within(status, lambda found: found[1].get("state") == "ready")
        assert (code, told["running"], told["samples"]) == (0, True, 2)
        assert not told["broker"]["connected"] and "refused" in told["broker"]["why"]
        node.send_signal(signal.SIGTERM)
        node.wait(WAIT_S)
        code, told = status()
        assert (code, told["running"], told["state"]) == (1, False, "stopped")
    finally:
        node.kill()
        node.wait()


def within(read: Callable[[], Any], done: Callable[[Any], bool]) -> Any:
    end = time.monotonic() + WAIT_S
    while True:
        found = read()
        if done(found):
            return found
        assert time.monotonic() < end, found
