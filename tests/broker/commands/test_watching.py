"""`apiary status` and `apiary watch` against a real broker that holds a federation's retained messages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiary.bus.broker import BrokerProcess, start_broker
from apiary.bus.mqtt import MqttBus
from apiary.bus.outlet import Outlet
from apiary.settings import BrokerSettings
from apiary.wire import NodeId
from apiary.wire.messages import CoordinatorStatus, NodeHealth, NodeStatus, RoundResult
from apiary.wire.topics import Topics

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(
        shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None, reason="no mosquitto"
    ),
]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that holds a coordinator, two nodes and a closed round."""
    with start_broker(0, state_dir=tmp_path_factory.mktemp("broker")) as running:
        bus = MqttBus(BrokerSettings(host=running.host, port=running.port), client_id="told", will=None)
        outlet = Outlet(bus, Topics())
        until = time.monotonic() + 10
        while not bus.connected and time.monotonic() < until:
            bus.poll(0.1)
        outlet.send(CoordinatorStatus(state="online", epoch="e1", version="0.1.0", run="autumn"))
        outlet.send(NodeStatus(state="ready", samples=12, labels={"cat": 12}), NodeId("pi-1"))
        outlet.send(NodeStatus(state="lost", why="connection lost"), NodeId("pi-2"))
        outlet.send(NodeHealth(temperature_c=61.0, throttled=["under-voltage"]), NodeId("pi-1"))
        outlet.send(RoundResult(run="autumn", round=3, state="closed", accuracy=0.9, loss=0.25, seconds=4.0))
        while bus.backlog and time.monotonic() < until:
            bus.poll(0.1)
        yield running
        bus.close()


def apiary(broker: BrokerProcess, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "apiary_cli", *words, "--port", str(broker.port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=folder)


def test_status_tells_people(broker: BrokerProcess, tmp_path: Path) -> None:
    done = apiary(broker, tmp_path, "status")
    assert done.returncode == 0, done.stderr
    assert "coordinator  online, run autumn" in done.stdout
    assert "last round   3 of run autumn: accuracy 90.0%, loss 0.250, 0 updates, 4.0 s" in done.stdout
    assert "  pi-1  ready         12 pictures  under-voltage" in done.stdout
    assert "  pi-2  lost                       connection lost" in done.stdout


def test_status_tells_scripts(broker: BrokerProcess, tmp_path: Path) -> None:
    told = json.loads(apiary(broker, tmp_path, "status", "--json").stdout)
    assert told["nodes"]["pi-1"]["labels"] == {"cat": 12}
    assert told["nodes"]["pi-1"]["health"] == {"temperature_c": 61.0, "throttled": ["under-voltage"]}
    assert told["last"]["accuracy"] == 0.9
    assert told["round"] is None


def test_status_of_a_federation_without_a_coordinator_exits_1(broker: BrokerProcess, tmp_path: Path) -> None:
    done = apiary(broker, tmp_path, "status", "--set", "federation=other")
    assert done.returncode == 1
    assert "coordinator  unknown" in done.stdout


def test_status_without_a_broker_exits_4(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apiary_cli", "status", "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path)
    assert done.returncode == 4
    assert "is the broker running?" in done.stderr


def test_watch_prints_every_message_as_json(broker: BrokerProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "apiary_cli", "watch", "--json", "--port", str(broker.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stdout is not None
        lines = [json.loads(child.stdout.readline()) for _ in range(5)]
        child.terminate()
        assert child.wait(10) == 0
    assert {(line["kind"], line["node"]) for line in lines} == {
        ("coordinator_status", None),
        ("node_health", "pi-1"),
        ("node_status", "pi-1"),
        ("node_status", "pi-2"),
        ("round_last", None),
    }
