"""What a user may do wrong, tried as a user would: the real command, real brokers, the message on stderr."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apiary.bus.broker import BrokerProcess, find_mosquitto, start_broker
from apiary.bus.bus import Received
from apiary.bus.mqtt import MqttBus
from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.settings import BrokerSettings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.chunks import count, digest_of, encode, span
from apiary.wire.messages import Announcement, BlobRef, Bounds, Message, NodeStatus, Notice, Plan, Want
from apiary.wire.topics import TopicKind, Topics

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
WITHIN_S = 25.0


class Command:
    """One `apiary ...` at work, its standard error in a file."""

    def __init__(self, cwd: Path, *words: str, env: dict[str, str] | None = None):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("APIARY_")}
        self.log = cwd / f"{words[0]}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "apiary_cli", *words],
                cwd=cwd,
                env={**kept, "PYTHONUNBUFFERED": "1", **(env or {})},
                stdout=subprocess.DEVNULL,
                stderr=err,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, found: Callable[[str], bool]) -> str:
        end = time.monotonic() + WITHIN_S
        while not found(self.said):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said}"
            assert time.monotonic() < end, f"not in time:\n{self.said}"
            time.sleep(0.05)
        return self.said

    def end(self) -> tuple[int, str]:
        code = self.process.wait(WITHIN_S)
        return code, self.said

    def stop(self) -> tuple[int, str]:
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said}"
        self.process.send_signal(signal.SIGTERM)
        return self.end()


Start = Callable[..., Command]


@pytest.fixture
def apiary(tmp_path: Path) -> Iterator[Start]:
    """Starts `apiary WORDS` in a folder of the test's own; whatever still runs at the end is killed."""
    started: list[Command] = []

    def start(*words: str | Path | int, env: dict[str, str] | None = None) -> Command:
        started.append(Command(tmp_path, *map(str, words), env=env))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()
        command.process.wait()


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with start_broker(0, prefer="mosquitto") as started:
        yield started


def pictures(folder: Path, **labels: int) -> Path:
    for label, n in labels.items():
        (folder / label).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (8, 8), 20 * i).save(folder / label / f"{i}.png")
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pictures", cat=3, dog=3)


def edge(data: Path, port: int, *more: str | Path) -> list[str | Path | int]:
    return ["edge", "--node-id", "pi-1", "--data", data, "--port", port, *more]


def coordinator(data: Path, port: int, *more: str | Path) -> list[str | Path | int]:
    return ["coordinator", "--test-data", data, "--port", port, *more]


PARTIES = {"edge": edge, "coordinator": coordinator}


# -- the broker


def test_a_node_waits_for_an_absent_broker_and_goes_on_when_it_comes(
    apiary: Start, data: Path, free_port: int, tmp_path: Path
) -> None:
    node = apiary(*edge(data, free_port))
    said = node.until(lambda s: s.count("next attempt in") >= 2)
    assert f"broker 127.0.0.1:{free_port}: Connection refused" in said
    assert "Start one with `apiary broker`" in said
    assert "Traceback" not in said
    with start_broker(free_port, prefer="mosquitto", state_dir=tmp_path / "broker"):
        node.until(lambda s: "broker connected" in s)
        assert node.stop()[0] == 143


def test_a_coordinator_waits_for_an_absent_broker(apiary: Start, data: Path, free_port: int) -> None:
    party = apiary(*coordinator(data, free_port))
    said = party.until(lambda s: s.count("next attempt in") >= 2)
    assert f"broker 127.0.0.1:{free_port}: Connection refused" in said
    code, said = party.stop()
    assert code == 143
    assert "stopped; the same command goes on with it" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("party", sorted(PARTIES))
def test_once_does_not_wait_for_a_broker(apiary: Start, data: Path, free_port: int, party: str) -> None:
    code, said = apiary(*PARTIES[party](data, free_port, "--once")).end()
    assert code == 4
    assert said.splitlines()[-1].startswith(f"apiary: broker 127.0.0.1:{free_port}: Connection refused")
    assert "Traceback" not in said


@pytest.mark.parametrize("party", sorted(PARTIES))
def test_wrong_credentials_say_which_settings_to_check(
    apiary: Start, data: Path, run_mosquitto: Callable[..., int], tmp_path: Path, party: str
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "pi", "right"], check=True)
    conf = f"listener {{port}} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
    port = run_mosquitto(conf)
    wrong = ["--set", "broker.username=pi", "--set", "broker.password=not-this-one"]
    waiting = apiary(*PARTIES[party](data, port, *wrong))
    refused = apiary(*PARTIES[party](data, port, *wrong, "--once", "--state-dir", tmp_path / "other"))
    code, said = refused.end()
    assert code == 4
    assert "check broker.username" in said.splitlines()[-1]
    said = waiting.until(lambda s: "next attempt in" in s)
    assert "check broker.username" in said
    for text in (said, refused.said):
        assert "not-this-one" not in text and "Traceback" not in text
    assert waiting.stop()[0] == 143


def test_the_password_may_come_from_a_file_and_is_taken(
    apiary: Start, data: Path, run_mosquitto: Callable[..., int], tmp_path: Path
) -> None:
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "pi", "right"], check=True)
    secret.write_text("right\n")
    port = run_mosquitto(f"listener {{port}} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n")
    env = {"APIARY_BROKER__USERNAME": "pi", "APIARY_BROKER__PASSWORD_FILE": str(secret)}
    node = apiary(*edge(data, port), env=env)
    node.until(lambda s: "broker connected" in s)
    assert node.stop()[0] == 143
    secret.unlink()
    code, said = apiary(*edge(data, port), env=env).end()
    assert code == 11
    assert said == f"apiary: broker.password_file {secret}: No such file or directory\n"


def test_a_port_that_is_taken_says_by_whom(apiary: Start, broker: BrokerProcess) -> None:
    code, said = apiary("broker", "--port", broker.port).end()
    assert code == 4
    assert f"port {broker.port} on 127.0.0.1 is taken: an MQTT broker answers there already" in said
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = apiary("broker", "--port", port).end()
    assert code == 4
    assert f"port {port} on 127.0.0.1 is taken: another program has it" in said
    assert "or choose another with --port" in said and "Traceback" not in said


# -- pictures


@pytest.mark.parametrize("party", sorted(PARTIES))
def test_a_data_folder_that_is_missing_or_empty_ends_with_exit_code_3(
    apiary: Start, broker: BrokerProcess, tmp_path: Path, party: str
) -> None:
    (tmp_path / "empty").mkdir()
    made = {"gone": "does not exist", "empty": "holds no pictures"}
    running = {
        name: apiary(*PARTIES[party](Path(name), broker.port, "--state-dir", tmp_path / f"state-{name}"))
        for name in made
    }
    for name, why in made.items():
        code, said = running[name].end()
        assert code == 3
        last = said.splitlines()[-1]
        assert last.startswith(f"apiary: data folder {name}") and why in last
        assert "expected" in last and "cat/001.jpg" in last
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edge"], "apiary: no data folder is set: give --data DIR (edge.data_dir); expected a folder for"),
        (["coordinator"], "apiary: no held-out pictures: give --test-data DIR (coordinator.test_data)"),
    ],
    ids=["edge", "coordinator"],
)
def test_no_data_folder_at_all(apiary: Start, broker: BrokerProcess, words: list[str], message: str) -> None:
    code, said = apiary(*words, "--port", broker.port).end()
    assert code == 3
    assert said.splitlines()[-1].startswith(message)


def test_held_out_pictures_of_one_class_are_refused(
    apiary: Start, broker: BrokerProcess, tmp_path: Path
) -> None:
    code, said = apiary(*coordinator(pictures(tmp_path / "one", cat=3), broker.port)).end()
    assert code == 3
    assert said.splitlines()[-1] == (
        f"apiary: {tmp_path}/one holds one class only (cat); a classifier needs two or more"
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("['cat', 'cat']", "coordinator.labels: 'cat' more than once, expected each label once"),
        (f"['cat', '{'x' * 65}']", f"label '{'x' * 65}' cannot be announced: expected 1 to 64 characters"),
        ("['cat', '']", "label '' cannot be announced"),
        ("['cat']", "holds one class only (cat)"),
    ],
    ids=["twice", "long", "empty", "one"],
)
def test_labels_that_cannot_be_announced_are_refused_before_anything_is_built(
    apiary: Start, broker: BrokerProcess, data: Path, labels: str, message: str
) -> None:
    started = apiary(*coordinator(data, broker.port, "--set", f"coordinator.labels={labels}"))
    code, said = started.end()
    assert code == 3
    assert message in said.splitlines()[-1] and "building" not in said


class Server:
    """A coordinator's side of one round, spoken by hand: announces, and serves the blobs that are wanted.

    The model is no real one: a node gets as far as its pictures, and then says what it thinks of the model.
    """

    def __init__(self, port: int, federation: str):
        self.topics = Topics(federation)
        self._bus = MqttBus(BrokerSettings(port=port), f"server-{federation}")
        manifest = Manifest(
            recipe="none",
            input=PictureInput(height=8, width=8, channels=1),
            labels=("cat", "dog"),
            tensors=(Tensor(name="w", shape=(2,), argument="p0"),),
            batch_size=4,
            optimizer="adam",
        )
        made = (manifest.encode(), blob.encode(Weights({"w": np.zeros(2, np.float32)})), b"no flatbuffer")
        self._blobs = {digest_of(b): b for b in made}
        refs = [BlobRef(digest=d, bytes=len(b)) for d, b in self._blobs.items()]
        self._announcement = Announcement(
            run="r",
            round=1,
            state="open",
            rounds=1,
            epoch="e",
            labels=["cat", "dog"],
            manifest=refs[0],
            model=refs[1],
            trainer=refs[2],
            plan=Plan(),
            bounds=Bounds(),
            deadline_s=60.0,
            cohort=["pi-1"],
            cohort_size=1,
        )
        self.statuses: list[NodeStatus] = []

    def until(self, found: Callable[[NodeStatus], bool], node: Command) -> NodeStatus:
        for kind in (TopicKind.NODE_STATUS, TopicKind.NODE_WANT, TopicKind.NODE_ASK):
            self._bus.subscribe(self.topics.pattern(kind, node=NodeId("pi-1")))
        end = time.monotonic() + WITHIN_S
        try:
            while time.monotonic() < end:
                for event in self._bus.poll(0.1):
                    if isinstance(event, Received):
                        self._answer(self.topics.parse(event.topic).kind, event.payload)
                # Any of them: a node that has said it all may already be saying goodbye.
                if matching := [s for s in self.statuses if found(s)]:
                    return matching[0]
            raise AssertionError(f"not in time: {self.statuses}\n{node.said}")
        finally:
            self._bus.close()

    def _answer(self, kind: TopicKind, payload: bytes) -> None:
        match kind:
            case TopicKind.NODE_STATUS:
                self.statuses.append(NodeStatus.decode(payload, who="pi-1"))
            case TopicKind.NODE_ASK:
                self._say(Notice(invited=True, announcement=self._announcement))
            case _:
                digest = Digest(Want.decode(payload, who="pi-1").digest)
                data = self._blobs[digest]
                for i in range(count(len(data))):
                    topic = self.topics.build(TopicKind.CHUNK_DOWN, digest=digest, index=i)
                    self._bus.publish(topic, encode(digest, i, data[slice(*span(i, len(data)))]))

    def _say(self, message: Message) -> None:
        self._bus.publish(self.topics.build(message.kind, node=NodeId("pi-1")), message.encode())


def node_of(apiary: Start, broker: BrokerProcess, data: Path, federation: str, *more: str) -> Command:
    return apiary(*edge(data, broker.port, "--set", f"federation={federation}", *more))


def test_a_node_with_one_class_an_unknown_label_and_a_torn_picture_says_so_and_goes_on(
    apiary: Start, broker: BrokerProcess, tmp_path: Path
) -> None:
    data = pictures(tmp_path / "pictures", cat=3, bird=2)
    (data / "cat" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (data / "cat" / "empty.png").touch()
    node = node_of(apiary, broker, data, "mixed")
    server = Server(broker.port, "mixed")
    status = server.until(lambda s: bool(s.declined), node)
    said = node.said
    assert "2 pictures of label 'bird' are left out: the model knows cat, dog" in said
    assert "all pictures have the label 'cat'; a node with one class learns little by itself" in said
    assert "torn.jpg: left out: not a readable picture" in said
    assert "empty.png: left out: not a readable picture" in said
    # It went on with the rest, as far as the model, which is none.
    assert "round=1 training" in said
    assert status.why is not None and "data folder" not in status.why
    assert status.labels == {"bird": 2, "cat": 5}
    assert "Traceback" not in said
    assert node.stop()[0] == 143


def test_a_node_whose_folder_has_one_class_says_so_at_its_start(
    apiary: Start, broker: BrokerProcess, tmp_path: Path
) -> None:
    node = node_of(apiary, broker, pictures(tmp_path / "one", cat=3), "one")
    said = node.until(lambda s: "broker connected" in s)
    assert "node=pi-1 all pictures have the label 'cat': this node trains, but teaches one class only" in said
    assert node.stop()[0] == 143


def test_a_node_that_knows_only_other_labels_declines_and_once_ends_with_it(
    apiary: Start, broker: BrokerProcess, tmp_path: Path
) -> None:
    node = node_of(apiary, broker, pictures(tmp_path / "birds", bird=2), "birds", "--once")
    status = Server(broker.port, "birds").until(lambda s: bool(s.declined), node)
    assert (status.run, status.round, status.state) == ("r", 1, "ready")
    assert status.why is not None
    assert "holds no picture of a label that the model knows" in status.why
    assert "2 pictures of label 'bird' are left out: the model knows cat, dog" in status.why
    code, said = node.end()
    assert code == 0
    assert "round=1 declined: data folder" in said


def test_a_second_node_on_the_same_folder_is_refused(
    apiary: Start, broker: BrokerProcess, data: Path
) -> None:
    first = node_of(apiary, broker, data, "twins")
    first.until(lambda s: "broker connected" in s)
    code, said = node_of(apiary, broker, data, "twins").end()
    assert code == 8
    assert "another node is using state/edge: stop it, or give this one its own --state-dir" in said
    assert first.process.poll() is None


def test_two_processes_with_one_id_are_asked_about_it(
    apiary: Start, broker: BrokerProcess, data: Path, tmp_path: Path
) -> None:
    first = node_of(apiary, broker, data, "ids")
    first.until(lambda s: "broker connected" in s)
    second = node_of(apiary, broker, data, "ids", "--state-dir", str(tmp_path / "other"))
    second.until(lambda s: "broker connected" in s)
    # Neither shuts the other out: each state folder has a client id of its own.
    why = "another process uses this node id: give one of them another edge.node_id"
    first.until(lambda _: why in first.said + second.said)
    for node in (first, second):
        assert node.process.poll() is None
        assert "Traceback" not in node.said


# -- settings


@pytest.mark.parametrize("command", ["edge", "coordinator", "broker"])
def test_an_unknown_setting_is_refused_wherever_it_stands(
    apiary: Start, tmp_path: Path, command: str
) -> None:
    (tmp_path / "odd.toml").write_text("[broker]\nhots = 'x'\n")
    tried = {
        "odd.toml": apiary(command, "--config", "odd.toml"),
        "environment": apiary(command, env={"APIARY_BROKER__HOTS": "x"}),
        "command line": apiary(command, "--set", "broker.hots=x"),
    }
    for where, running in tried.items():
        code, said = running.end()
        assert code == 2
        assert said == f"apiary: {where}: unknown setting 'broker.hots'; did you mean 'broker.hosts'?\n"


def test_a_name_that_is_no_plug_in_names_those_there_are(
    apiary: Start, broker: BrokerProcess, data: Path, tmp_path: Path
) -> None:
    code, said = apiary(*coordinator(data, broker.port, "--strategy", "fedavgg")).end()
    assert code == 2
    why = "strategies: no 'fedavgg'; did you mean 'fedavg'? There are: fedacg, "
    assert said.startswith(f"apiary: run.strategy: {why}")
    code, said = apiary(*edge(data, broker.port, "--set", "edge.runtime=tpu")).end()
    assert code in (2, 6)
    assert "tpu" in said and "Traceback" not in said


def test_a_state_folder_that_cannot_be_written(apiary: Start, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tried: list[list[Any]] = [edge(data, 1), coordinator(data, 1)]
    for words in tried:
        code, said = apiary(*words, "--state-dir", tmp_path / "file" / "state").end()
        assert code == 8
        assert said.startswith("apiary: cannot use the state folder")


def test_json_output_stays_clean_when_a_run_cannot_begin(data: Path, tmp_path: Path, free_port: int) -> None:
    words = ["coordinator", "--json", "--once", "--test-data", str(data), "--port", str(free_port)]
    done = subprocess.run(
        [sys.executable, "-m", "apiary_cli", *words],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, "")
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stderr.splitlines()[-1])
