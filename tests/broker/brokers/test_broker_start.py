"""Starting brokers: mosquitto with the project's configuration, amqtt where it must do, and the command."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apiary.bus import broker as starter
from apiary.bus.broker import default_conf, find_mosquitto, mosquitto_conf, speaks_mqtt, start_broker
from apiary.bus.mqtt import MqttBus
from apiary.errors import BusError, SettingsError
from apiary.settings import BrokerSettings
from apiary_cli.commands.demo import _reach

pytestmark = pytest.mark.broker
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
COMMAND = "import sys; from apiary_cli.main import main; sys.exit(main(['broker', *sys.argv[1:]]))"


@needs_mosquitto
def test_mosquitto_takes_the_projects_configuration_without_a_complaint(tmp_path: Path) -> None:
    with start_broker(0, prefer="mosquitto", state_dir=tmp_path) as broker:
        assert broker.kind == "mosquitto"
        assert speaks_mqtt("127.0.0.1", broker.port)
        log = (tmp_path / "mosquitto.log").read_text()
    assert "running" in log
    # Deprecated or unknown options are notes, warnings or errors in the log.
    complaints = [line for line in log.splitlines() if "Note" in line or "Warning" in line or "Error" in line]
    assert [c for c in complaints if "should not be run as root" not in c] == []
    assert not broker.running


@needs_mosquitto
def test_projects_configuration_stands_by_itself(tmp_path: Path, free_port: int) -> None:
    """As a server uses it: nothing replaced but the port, the folder and the user of this test."""
    conf = tmp_path / "mosquitto.conf"
    text = default_conf().read_text().replace("listener 1883", f"listener {free_port}")
    conf.write_text(text.replace("/var/lib/mosquitto/", f"{tmp_path}/") + _user())
    process = subprocess.Popen([str(find_mosquitto()), "-c", str(conf)], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 10
        while not speaks_mqtt("127.0.0.1", free_port):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()


@needs_mosquitto
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_broker_on_an_ipv6_address(tmp_path: Path, host: str) -> None:
    with start_broker(0, host=host, prefer="mosquitto", state_dir=tmp_path) as broker:
        assert broker.host == "::1"
        bus = MqttBus(BrokerSettings(host=host, port=broker.port), "a")
        end = time.monotonic() + 10
        while not bus.connected:
            assert time.monotonic() < end
            bus.poll(0.1)
        bus.close()
        with pytest.raises(
            BusError, match=rf"port {broker.port} on ::1 is taken: an MQTT broker answers there"
        ):
            start_broker(broker.port, host=host, prefer="mosquitto")


def test_what_is_no_address_to_listen_on_is_refused() -> None:
    with pytest.raises(SettingsError, match="--host 'mqtt://x' is a URL"):
        start_broker(0, host="mqtt://x")


def _user() -> str:
    return "\nuser root\n" if os.geteuid() == 0 else ""


@needs_mosquitto
def test_retained_messages_outlive_a_restart(tmp_path: Path) -> None:
    with start_broker(0, prefer="mosquitto", state_dir=tmp_path) as broker:
        to = ["-p", str(broker.port), "-t", "kept"]
        subprocess.run(["mosquitto_pub", *to, "-r", "-q", "1", "-m", "yes"], check=True)
    with start_broker(broker.port, prefer="mosquitto", state_dir=tmp_path):
        got = subprocess.run(
            ["mosquitto_sub", *to, "-C", "1", "-W", "5"], check=True, capture_output=True, text=True
        )
    assert got.stdout == "yes\n"


def test_own_lines_replace_places_and_listeners() -> None:
    base = "persistence true\npersistence_location /var/x/\nlog_dest stderr\n"
    base += "listener 1883\nallow_anonymous false\n"
    text = mosquitto_conf(base, "::1", 1999, Path("/state"))
    lines = text.splitlines()
    assert lines[0] == "persistence true"
    assert "persistence_location /state/" in lines
    assert "listener 1999 ::1" in lines
    assert "allow_anonymous true" in lines
    for gone in ("persistence_location /var/x/", "log_dest stderr", "listener 1883", "allow_anonymous false"):
        assert gone not in lines


@needs_mosquitto
def test_port_of_another_broker_is_named_with_the_way_out() -> None:
    with start_broker(0, prefer="mosquitto") as broker, pytest.raises(BusError) as caught:
        start_broker(broker.port, prefer="mosquitto")
    message = str(caught.value)
    assert f"port {broker.port} on 127.0.0.1 is taken: an MQTT broker answers there already" in message
    assert f"ss -ltnp 'sport = :{broker.port}'" in message
    assert "--port" in message
    assert caught.value.exit_code == 4


def test_port_of_something_else_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BusError, match=f"port {port} on 127.0.0.1 is taken: another program has it"):
            start_broker(port, prefer="auto")


def test_impossible_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="port 70000 is none"):
        start_broker(70_000)
    with pytest.raises(BusError, match=r"cannot listen on no-such-host\.invalid: the name is not known"):
        start_broker(0, host="no-such-host.invalid")
    with pytest.raises(BusError, match=r"cannot listen on 192\.0\.2\.1:"):
        start_broker(0, host="192.0.2.1")
    (tmp_path / "file").write_text("")
    with pytest.raises(BusError, match="cannot start the broker in"):
        start_broker(0, state_dir=tmp_path / "file" / "below")


@needs_mosquitto
def test_broken_configuration_shows_what_mosquitto_said(tmp_path: Path) -> None:
    conf = tmp_path / "bad.conf"
    conf.write_text("no_such_option true\n")
    with pytest.raises(BusError, match="no_such_option"):
        start_broker(0, prefer="mosquitto", conf=conf)
    with pytest.raises(BusError, match=r"gone\.conf: No such file"):
        start_broker(0, prefer="mosquitto", conf=tmp_path / "gone.conf")


def test_amqtt_stands_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("amqtt")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(starter, "_SYSTEM_PATHS", "")
    said: list[str] = []
    with start_broker(0, say=said.append) as broker:
        assert broker.kind == "amqtt"
        assert speaks_mqtt("127.0.0.1", broker.port)
    assert said == [
        "mosquitto is not installed; using the embedded broker amqtt (MQTT 3.1.1, nothing kept on disk): "
        "for trying out only"
    ]
    with pytest.raises(BusError, match="sudo apt install mosquitto"):
        start_broker(0, prefer="mosquitto")


@needs_mosquitto
def test_broker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells children that their parent died")
    code = (
        "import sys, time; from pathlib import Path; from apiary.bus.broker import start_broker; "
        "b = start_broker(0, prefer=sys.argv[1], state_dir=Path(sys.argv[2]), say=lambda _: None); "
        "print(b.port, flush=True); time.sleep(60)"
    )
    for kind in ("mosquitto", "amqtt"):
        command = [sys.executable, "-c", code, kind, str(tmp_path / kind)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            port = int(parent.stdout.readline())
            assert speaks_mqtt("127.0.0.1", port)
            parent.kill()
        end = time.monotonic() + 10
        while speaks_mqtt("127.0.0.1", port, 0.3):
            assert time.monotonic() < end, f"{kind} outlived its parent"
            time.sleep(0.05)


@needs_mosquitto
def test_command_says_where_it_listens_and_stops_on_ctrl_c(tmp_path: Path, free_port: int) -> None:
    words = ["--port", str(free_port), "--state-dir", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"mosquitto listens on 127.0.0.1:{free_port}")
        assert f"mosquitto_sub -v -t 'apiary/#' -p {free_port}" in process.stdout.readline()
        assert speaks_mqtt("127.0.0.1", free_port)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert not speaks_mqtt("127.0.0.1", free_port, 0.3)


def test_command_ends_with_4_where_the_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = ["--port", str(other.getsockname()[1]), "--state-dir", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 4
    assert "is taken: another program has it" in done.stderr
    assert "Traceback" not in done.stderr


@needs_mosquitto
def test_a_second_command_on_the_same_folder_leaves_the_first_its_files(tmp_path: Path) -> None:
    words = ["--port", "0", "--state-dir", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("mosquitto listens on")
        log_before = (tmp_path / "mosquitto.log").stat().st_ino
        second = subprocess.run(
            [sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, timeout=30, check=False
        )
        assert (tmp_path / "mosquitto.log").stat().st_ino == log_before
        first.send_signal(signal.SIGINT)
        assert first.wait(10) == 0
    assert second.returncode == 8
    assert f"another broker is using {tmp_path}: use that one as it is" in second.stderr


def test_the_demo_says_what_amqtt_speaks_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("amqtt")
    with start_broker(0, prefer="amqtt", state_dir=tmp_path, say=lambda _: None) as broker:
        for client in ("one", "two"):
            bus = MqttBus(BrokerSettings(**_reach(broker)), client_id=client, will=None)
            end = time.monotonic() + 10
            while not bus.connected:
                assert time.monotonic() < end, "not connected in time"
                bus.poll(0.05)
            bus.close()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
