"""`apiary chaos` as a user runs it, short; and the link that it puts before every party."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.broker.processes import processes_of

from apiary.bus.broker import DATABASE, find_mosquitto, speaks_mqtt, start_broker
from apiary.bus.bus import Disconnected, Event, Received
from apiary.bus.mqtt import MqttBus
from apiary.errors import BrokerRefused
from apiary.settings import BrokerSettings
from apiary.wire import NodeId
from apiary.wire.messages import Announcement, BlobRef, Bounds, Plan
from apiary.wire.topics import TopicKind, Topics
from apiary_cli.chaos.experiment import Experiment
from apiary_cli.chaos.fleet import node_listener
from apiary_cli.chaos.invariants import InvariantResult
from apiary_cli.chaos.links import Links
from apiary_cli.chaos.misbehaving_node import NAME, MisbehavingNode
from apiary_cli.chaos.processes import free_port, ports_in_use
from apiary_cli.chaos.schedule import KINDS
from apiary_cli.datasets.partition import materialise
from apiary_cli.main import main

pytestmark = pytest.mark.broker
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
FAULTS = len(KINDS)


@needs_mosquitto
@pytest.mark.slow
@pytest.mark.tensorflow
def test_one_fault_of_each_kind_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--faults", str(FAULTS), "--rounds", "3", "--nodes", "2", "--seed", "3"]
    code = main(["chaos", *flags, "--json", "--runs-dir", str(tmp_path)])
    shown = capsys.readouterr()
    told: dict[str, Any] = json.loads(shown.out)
    assert [v for v in told["invariants"] if not v["holds"]] == [], shown.err
    assert code == 0 and told["holds"]
    assert sum(told["faults"].values()) == FAULTS
    assert shown.err.count(f"/{FAULTS}] ") == FAULTS
    assert processes_of(tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == [".exports"]


@needs_mosquitto
@pytest.mark.slow
def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    arguments = ["chaos", "--faults", "2", "--nodes", "2", "--runs-dir", str(tmp_path)]
    chaos = subprocess.Popen(
        [sys.executable, "-m", "apiary_cli", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 30
        # Itself, broker, coordinator, two nodes, and the export at work.
        while len(processes_of(tmp_path)) < 6:
            assert time.monotonic() < end and chaos.poll() is None
            time.sleep(0.1)
        chaos.send_signal(signal.SIGINT)
        assert chaos.wait(30) == 130
    finally:
        chaos.kill()
        chaos.communicate()
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.tensorflow
def test_an_export_ends_with_its_killed_coordinator(tmp_path: Path) -> None:
    """It worked on beside that of the next coordinator, in the same folder."""
    layout = materialise("digits", tmp_path / "data", nodes=2, limit=40)
    flags = ["--test-data", str(layout.server), "--state-dir", str(tmp_path / "state"), "--port", "1"]
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "apiary_cli", "coordinator", *flags, "--runs-dir", str(tmp_path / "runs")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 30
        while not any("apiary_coordinator.export" in text for text in processes_of(tmp_path)):
            assert time.monotonic() < end and coordinator.poll() is None
            time.sleep(0.05)
    finally:
        coordinator.kill()
        coordinator.wait()
    end = time.monotonic() + 60
    while left := processes_of(tmp_path):
        assert time.monotonic() < end, left
        time.sleep(0.05)


@needs_mosquitto
def test_a_broken_invariant_is_said_and_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(experiment: Experiment, nodes: int) -> list[InvariantResult]:
        experiment.injected.update({"torn": 2})
        experiment.seconds.update({"undisturbed": 1.0, "disturbed": 2.0})
        return [InvariantResult("the model is bit-identical", False, "b, undisturbed a")]

    monkeypatch.setattr(Experiment, "run", outcome)
    assert main(["chaos", "--runs-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "BROKEN  the model is bit-identical: b, undisturbed a" in shown
    assert "   2  torn " in shown


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--faults", "0"], 3, "--faults 0: expected 1 to 5000"),
        (["--nodes", "51"], 3, "--nodes 51: expected 1 to 50"),
        (["--rounds", "1"], 3, "--rounds 1: expected 2 to 1000"),
        (
            ["--kinds", "flood"],
            2,
            "--kinds 'flood': 'flood' is no kind of fault. There are: coordinator-kill",
        ),
    ],
)
def test_flags_out_of_bounds_are_refused(
    flags: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chaos", *flags, "--runs-dir", str(tmp_path)]) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_mosquitto
def test_a_misbehaving_node_offers_floods_and_lies_and_the_broker_lets_it_speak_for_itself_only(
    tmp_path: Path,
) -> None:
    port, own = free_port(), Topics().build(TopicKind.NODE_STATUS, node=NodeId(NAME)).removesuffix("status")
    ref = BlobRef(digest="a" * 64, bytes=10)
    told = Announcement(
        run="r", round=1, state="open", rounds=2, epoch="e", labels=["x", "y"], model=ref, manifest=ref,
        plan=Plan(), bounds=Bounds(max_bytes=100_000), deadline_s=60.0,
    )  # fmt: skip
    with start_broker(
        0, prefer="mosquitto", state_dir=tmp_path, more=node_listener(port, tmp_path.resolve())
    ) as broker:
        watcher = MqttBus(BrokerSettings(port=broker.port), "watcher")
        watcher.subscribe("#")
        node = MisbehavingNode(port, Topics(), ["x", "y"], 100, ["pi-1", "pi-2"])
        heard: list[Received] = []
        did: set[str] = set()

        def turn() -> None:
            node.turn()
            heard.extend(e for e in watcher.poll(0.01) if isinstance(e, Received))

        def until(done: Callable[[], object]) -> None:
            end = time.monotonic() + 60
            while not done():
                assert time.monotonic() < end, (did, {e.topic for e in heard})
                turn()

        until(lambda: any(e.topic == f"{own}status" for e in heard))
        watcher.publish(Topics().build(TopicKind.ROUND_CURRENT), told.encode(), retain=True)
        until(lambda: any(e.topic == f"{own}offer" for e in heard))
        for seed in range(40):
            if len(did) == 5:
                break
            until(lambda: node.backlog == 0)
            did.add(re.sub(r"\d+ |pi-\d", "", node.misbehave(seed) or "nothing"))
        until(lambda: node.backlog == 0)
        for _ in range(20):
            turn()
        node.close()
        watcher.close()
    assert len(did) == 5 and any("messages of" in what for what in did)
    foreign = {e.topic for e in heard if not e.topic.startswith((own, "apiary-blob/default/up/misbehaving"))}
    assert foreign == {Topics().build(TopicKind.ROUND_CURRENT)}
    said = [e.payload for e in heard if e.topic.endswith("round/current")]
    assert said == [told.encode()], "the end of the round that it forged came to nobody"


@needs_mosquitto
@pytest.mark.parametrize("damage", [b"", b"xx" * 200, b"\0\xb5\0mosquitto db" + b"\xff" * 300])
def test_a_torn_database_is_set_aside_and_the_broker_starts(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(damage)
    with start_broker(0, prefer="mosquitto", state_dir=tmp_path) as broker:
        assert speaks_mqtt("127.0.0.1", broker.port)
    aside = tmp_path / f"{DATABASE}.damaged"
    # An empty one is no damage to mosquitto.
    assert (aside.read_bytes() if aside.exists() else b"") == damage


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that says everything back; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass
            finally:
                connection.close()

        def accept() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def links(echo: int) -> Iterator[Links]:
    made = Links(echo, ["a", "b"])
    yield made
    made.close()
    assert ports_in_use(made.ports) == []


def dial(links: Links, name: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", links.port(name)), 5)
    sock.settimeout(5)
    return sock


def echoed(sock: socket.socket, data: bytes) -> bool:
    sender = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
    sender.start()
    got = bytearray()
    while len(got) < len(data):
        part = sock.recv(65536)
        if not part:
            return False
        got += part
    sender.join()
    return bytes(got) == data


def test_a_good_link_carries_everything(links: Links) -> None:
    with dial(links, "a") as sock:
        # Random bytes would begin like MQTT once in 128 runs, and then wait for a packet's end.
        assert echoed(sock, b"x" + os.urandom(3_000_000))


def test_a_reset_breaks_the_links_of_one_party_only(links: Links) -> None:
    with dial(links, "a") as a, dial(links, "b") as b:
        assert echoed(a, b"hello") and echoed(b, b"hello")
        assert links.reset("a") == 1
        with pytest.raises(ConnectionResetError):
            while a.recv(1):
                pass
        assert echoed(b, b"hello")
    assert links.reset("a") == 0


def test_a_dead_link_swallows_and_then_breaks(links: Links) -> None:
    with dial(links, "a") as sock:
        assert echoed(sock, b"hello")
        links.swallow("a", 0.5)
        began = time.monotonic()
        sock.sendall(b"into the void")
        with pytest.raises(ConnectionResetError):
            sock.recv(100)
        assert time.monotonic() - began > 0.3
    with dial(links, "a") as again:
        assert echoed(again, b"hello")


def test_a_slow_link_is_late_and_narrow_and_loses_nothing(links: Links) -> None:
    with dial(links, "a") as sock:
        assert echoed(sock, b"hello")
        links.slow("a", 30, delay_s=0.1, bytes_s=10_000)
        began = time.monotonic()
        assert echoed(sock, os.urandom(5_000))
        assert time.monotonic() - began > 0.5
        links.heal()
        began = time.monotonic()
        assert echoed(sock, os.urandom(1_000_000))
        assert time.monotonic() - began < 50, "at the slow link's pace it takes 100 s"


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[tuple[Links, int]]:
    """A real broker, and links before it."""
    with start_broker(0, prefer="mosquitto", state_dir=tmp_path) as broker:
        made = Links(broker.port, ["a", "b"])
        yield made, broker.port
        made.close()


def until(bus: MqttBus, found: Callable[[list[Event]], bool], seconds: float = 10.0) -> list[Event]:
    events: list[Event] = []
    end = time.monotonic() + seconds
    while not found(events):
        assert time.monotonic() < end, events
        events += bus.poll(0.1)
    return events


def bus_at(port: int, **more: Any) -> MqttBus:
    return MqttBus(BrokerSettings(port=port, retry_max_s=0.3, **more), f"test-{port}-{time.monotonic_ns()}")


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_leaky_link_acknowledges_and_loses(mosquitto: tuple[Links, int], protocol: str) -> None:
    links, port = mosquitto
    sender, watcher = bus_at(links.port("a"), protocol=protocol), bus_at(port)
    watcher.subscribe("#")
    for bus in (sender, watcher):
        until(bus, lambda _, b=bus: b.connected)  # type: ignore[misc]  # a lambda's default
    links.leak("a", 60, share=1.0, seed=1, blobs="blob/")
    for i in range(20):
        assert sender.publish("small", b"%d" % i, qos=1, retain=False)
    until(sender, lambda _: sender.backlog == 0)
    links.heal()
    sender.publish("small", b"the last", qos=1, retain=False)
    until(sender, lambda _: sender.backlog == 0)
    heard = until(watcher, lambda events: any(isinstance(e, Received) for e in events))
    assert [e.payload for e in heard if isinstance(e, Received)] == [b"the last"]
    assert links.lost == 20 and sender.connected
    for bus in (sender, watcher):
        bus.close()


@needs_mosquitto
def test_a_leaky_link_damages_chunks_and_nothing_else(mosquitto: tuple[Links, int]) -> None:
    links, port = mosquitto
    sender, watcher = bus_at(links.port("a")), bus_at(port)
    watcher.subscribe("#")
    for bus in (sender, watcher):
        until(bus, lambda _, b=bus: b.connected)  # type: ignore[misc]  # a lambda's default
    links.leak("a", 60, share=0.8, seed=2, blobs="blob/")
    sent = [os.urandom(1000) for _ in range(40)]
    for data in sent:
        sender.publish("blob/x", data, qos=1, retain=False)
        sender.publish("word", data, qos=1, retain=False)
    until(sender, lambda _: sender.backlog == 0)
    links.heal()
    sender.publish("end", b"", qos=1, retain=False)
    until(sender, lambda _: sender.backlog == 0)
    heard = until(watcher, lambda es: any(isinstance(e, Received) and e.topic == "end" for e in es))
    got = [e for e in heard if isinstance(e, Received) and e.topic != "end"]
    whole = [e for e in got if e.payload in sent]
    assert len(got) - len(whole) == links.damaged > 0
    assert all(e.topic == "blob/x" and len(e.payload) == 1000 for e in got if e.payload not in sent)
    assert len(whole) == 80 - links.lost - links.damaged
    for bus in (sender, watcher):
        bus.close()


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_refused_party_is_told_by_the_protocol_and_let_in_again(
    mosquitto: tuple[Links, int], protocol: str
) -> None:
    links, _ = mosquitto
    bus, other = bus_at(links.port("a"), protocol=protocol), bus_at(links.port("b"))
    for one in (bus, other):
        until(one, lambda _, b=one: b.connected)  # type: ignore[misc]  # a lambda's default
    links.refuse("a", 60)
    told = until(
        bus, lambda es: any(isinstance(e, Disconnected) and isinstance(e.error, BrokerRefused) for e in es)
    )
    last = [e for e in told if isinstance(e, Disconnected)][-1]
    assert "Not authorized" in str(last.error)
    other.poll(0)
    assert other.connected
    links.heal()
    until(bus, lambda _: bus.connected)
    for one in (bus, other):
        one.close()


def test_without_a_broker_behind_it_a_link_closes_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = int(gone.getsockname()[1])
    links = Links(port, ["a"])
    try:
        with dial(links, "a") as sock:
            assert sock.recv(1) == b""
    finally:
        links.close()
