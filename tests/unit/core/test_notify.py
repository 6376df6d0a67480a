"""What a service tells systemd, read from the other end of a real socket."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.fleet.harness import FakeTraining, Fleet
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.notify import MAX_STATUS_CHARS, Notifier
from apiary_edge.training.job import TrainingEvent

WAIT_S = 30.0


class Systemd:
    """The service manager's end of the socket."""

    def __init__(self, address: str):
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def heard(self, within_s: float = 0.0) -> list[str] | None:
        """The next datagram's lines, None where none comes."""
        self._socket.settimeout(within_s or 1e-6)
        try:
            return self._socket.recv(65_536).decode().split("\n")
        except (TimeoutError, BlockingIOError):
            return None

    def until(self, line: str) -> list[str]:
        """All lines up to the one that begins so."""
        lines: list[str] = []
        end = time.monotonic() + WAIT_S
        while not any(text.startswith(line) for text in lines):
            assert time.monotonic() < end, f"no {line}: {lines}"
            lines += self.heard(1.0) or []
        return lines

    def drain(self) -> list[str]:
        lines: list[str] = []
        while (more := self.heard()) is not None:
            lines += more
        return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    # Short: an address has 107 bytes.
    address = str(tmp_path / "s") if request.param == "path" else f"@apiary-{secrets.token_hex(6)}"
    made = Systemd(address)
    yield made
    made.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_ready_status_and_stopping_arrive_as_systemd_reads_them(systemd: Systemd) -> None:
    notifier = Notifier(systemd.address, None, Clock())
    notifier.ready("idle")
    notifier.turned("idle")
    notifier.turned("round 3\nWATCHDOG=trigger")
    notifier.extend(90)
    notifier.stopping()
    heard = [systemd.heard() for _ in range(5)]
    assert heard == [
        ["READY=1", "STATUS=idle"],
        ["STATUS=round 3 WATCHDOG=trigger"],
        ["EXTEND_TIMEOUT_USEC=90000000"],
        ["STOPPING=1", "STATUS=stopping"],
        None,
    ]
    notifier.close()


def test_the_watchdog_is_fed_by_turns_four_times_in_its_time(systemd: Systemd) -> None:
    clock = Clock()
    notifier = Notifier(systemd.address, 20.0, clock)
    notifier.ready()
    heard = []
    for _ in range(100):
        clock.now += 1.0
        notifier.turned()
        heard += systemd.drain()
    assert heard == ["READY=1", *["WATCHDOG=1"] * 20]
    notifier.close()


def test_without_a_socket_nothing_is_said_and_nothing_fails(tmp_path: Path) -> None:
    notifier = Notifier.from_environment({}, Clock())
    for act in (notifier.ready, notifier.turned, notifier.stopping, notifier.close):
        act()
    notifier.extend(1.0)
    assert notifier.watchdog_s is None


def test_a_socket_that_is_gone_costs_one_complaint_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    notifier = Notifier(str(tmp_path / "s"), 20.0, clock)
    notifier.ready("idle")
    notifier.turned("idle")
    assert [r.getMessage() for r in caplog.records] == [
        f"systemd cannot be notified (NOTIFY_SOCKET={tmp_path / 's'}): No such file or directory"
    ]
    systemd = Systemd(str(tmp_path / "s"))
    clock.now += 1.0
    notifier.turned("idle")
    assert systemd.drain() == ["STATUS=idle", "WATCHDOG=1"]
    systemd.close()
    notifier.close()


def test_a_manager_that_does_not_read_does_not_hold_the_loop(systemd: Systemd) -> None:
    notifier = Notifier(systemd.address, None, Clock())
    for i in range(5000):
        notifier.turned(f"status {i}")
    assert systemd.drain()[0] == "STATUS=status 0"
    notifier.turned("status 4999")
    assert systemd.drain() == ["STATUS=status 4999"]
    notifier.close()


def test_a_status_is_one_short_line(systemd: Systemd) -> None:
    notifier = Notifier(systemd.address, None, Clock())
    notifier.turned("x" * 1000)
    assert systemd.drain() == ["STATUS=" + "x" * MAX_STATUS_CHARS]
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_environment_is_read_and_taken_out_for_the_children(
    environment: dict[str, str], watchdog_s: float | None
) -> None:
    environ = {**environment, "NOTIFY_SOCKET": "/run/systemd/notify", "PATH": "/bin"}
    assert Notifier.from_environment(environ, Clock()).watchdog_s == watchdog_s
    assert environ == {"PATH": "/bin"}


def test_an_address_that_is_no_unix_socket_is_said_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1000"}, Clock())
    notifier.ready()
    assert notifier.watchdog_s is None
    assert "neither a path nor an abstract name" in caplog.text


class Sticking(FakeTraining):
    """A training whose `collect` hangs, as a driver or a dead network disk may."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker(), 1.0)
        self.go_on = threading.Event()
        self.go_on.set()
        self.hangs = threading.Event()

    def collect(self) -> list[TrainingEvent]:
        if not self.go_on.is_set():
            self.hangs.set()
            self.go_on.wait(WAIT_S)
        return []


def test_a_loop_that_hangs_in_a_step_starves_the_watchdog_while_the_process_lives(tmp_path: Path) -> None:
    systemd = Systemd(str(tmp_path / "s"))
    notifier = Notifier(systemd.address, 0.2, time.monotonic)
    fleet = Fleet(tmp_path / "fleet", 1)
    fleet.kill_node("pi-00")
    training = fleet.trainings["pi-00"] = Sticking()
    node = fleet.start_node("pi-00")
    stop = threading.Event()
    loop = threading.Thread(target=node.run, args=(stop.is_set, notifier.turned), daemon=True)
    loop.start()
    try:
        systemd.until("WATCHDOG=1")
        training.go_on.clear()
        assert training.hangs.wait(WAIT_S)
        systemd.drain()
        # Five of its times: a feeding thread would have spoken twenty times.
        assert systemd.heard(1.0) is None
        training.go_on.set()
        systemd.until("WATCHDOG=1")
    finally:
        stop.set()
        training.go_on.set()
        loop.join(WAIT_S)
        notifier.close()
        systemd.close()
        fleet.close()


@pytest.mark.parametrize("command", ["edge", "coordinator"])
def test_the_services_speak_from_their_start_to_their_end(command: str, tmp_path: Path) -> None:
    """No broker is there: a service is ready once it has started, and waits for the network by itself."""
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "pictures" / label / "1.png")
    systemd = Systemd(str(tmp_path / "s"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    data = "--data" if command == "edge" else "--test-data"
    flags = [data, str(tmp_path / "pictures"), "--state-dir", str(tmp_path / "state"), "--port", str(port)]
    service = subprocess.Popen(
        [sys.executable, "-m", "apiary_cli", command, *flags],
        env={**os.environ, "NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "1000000"},
        cwd=tmp_path,
    )
    try:
        lines = systemd.until("READY=1")
        lines += systemd.until("WATCHDOG=1")
        service.send_signal(signal.SIGTERM)
        lines += systemd.until("STOPPING=1")
        assert service.wait(WAIT_S) == 128 + signal.SIGTERM
    finally:
        service.kill()
        service.wait()
        systemd.close()
    assert any(line.startswith("STATUS=") for line in lines)
