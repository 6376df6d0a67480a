"""The client against a program that behaves, and against each way of not behaving."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stand_ins.eim_program import write_program

from apiary.eim.protocol import accept, classify, hello, read_hello, read_info, read_result
from apiary.errors import DataError, EimError
from apiary.process.confinement import Kernel, this_kernel
from apiary_edge.eim.client import EimLimits, EimRunner
from apiary_edge.eim.shared_memory import FOLDER

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not FOLDER.is_dir(), reason="the stand-in program is for x86_64 Linux"
)
QUICK = EimLimits(start_s=10, hello_s=10, classify_s=0.6, stop_s=0.5, restarts=2, pause_s=4, pause_max_s=6)
RED = np.full((6, 8, 3), (255, 0, 0), np.uint8)
BLUE = np.full((6, 8, 3), (0, 0, 255), np.uint8)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No socket, no shared memory and no process remain after any of these tests."""
    import tempfile

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = set(FOLDER.iterdir())
    yield
    assert list(temporary.iterdir()) == []
    assert {p for p in set(FOLDER.iterdir()) - before if p.name.startswith("apiary-test-")} == set()
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def runner(
    tmp_path: Path,
    limits: EimLimits = QUICK,
    clock: Any = time.monotonic,
    kernel: Kernel | None = None,
    **config: Any,
) -> EimRunner:
    writable = [tmp_path / "state"]
    writable[0].mkdir(exist_ok=True)
    program = write_program(tmp_path / "model.eim", **{"state": str(writable[0] / "state"), **config})
    return EimRunner(program, limits=limits, clock=clock, writable=writable, kernel=kernel)


@pytest.mark.parametrize("shm", [False, True], ids=["socket", "shared memory"])
def test_pictures_become_probabilities(tmp_path: Path, shm: bool) -> None:
    with runner(tmp_path, shm=shm, labels=["blue", "red"]) as eim:
        for _ in range(2):
            red, blue = eim.classify(RED), eim.classify(BLUE)
            assert (red.label, red.probability) == ("red", 1.0)
            assert (blue.label, blue.probabilities) == ("blue", {"blue": 1.0, "red": 0.0})
        assert red.classification_ms == 2
        assert (eim._mapped is not None) == shm


def test_the_stand_in_speaks_on_stdin_and_prints_its_model(tmp_path: Path) -> None:
    program = write_program(tmp_path / "model.eim")
    asked = hello(1) + b"\n" + hello(2) + classify([0] * 47, 3) + classify([0] * 48, 4)
    done = subprocess.run([program, "stdin"], input=asked, capture_output=True, check=True, timeout=20)
    banner, *answers = done.stdout.decode().splitlines()
    first, second, third, fourth = map(json.loads, answers)
    assert "listening for JSON messages on stdin" in banner
    assert read_hello(accept(first, 1)).labels == ("cat", "dog")
    assert second["error"] == "Invalid message 'hello', already initialized"
    assert third["error"] == "Invalid number of features in 'classify', expected 48 but got 47"
    assert read_result(accept(fourth, 4), ("cat", "dog")).label == "cat"
    done = subprocess.run([program, "--print-info"], capture_output=True, check=True, timeout=20)
    assert read_info(done.stdout.decode()) == read_hello(first)


def test_shared_memory_that_does_not_hold_is_not_used(tmp_path: Path) -> None:
    with runner(tmp_path, shm=True, mode="tiny_shm") as eim:
        assert eim._mapped is None
        assert eim.classify(RED).label == "dog"


def test_a_large_picture_is_sent_whole(tmp_path: Path) -> None:
    with runner(tmp_path, EimLimits(classify_s=20), width=320, height=320) as eim:
        assert eim.classify(np.full((320, 320, 3), 255, np.uint8)).probability == 1.0


def test_answers_byte_by_byte_and_a_program_that_talks(tmp_path: Path) -> None:
    for mode in ("slow_bytes", "chatty"):
        with runner(tmp_path, EimLimits(classify_s=10), mode=mode) as eim:
            assert [eim.classify(RED).label for _ in range(3)] == ["dog"] * 3


def test_a_picture_is_squashed_and_made_grey_as_the_model_says(tmp_path: Path) -> None:
    wide = np.zeros((60, 160, 3), np.uint8)
    wide[:, 80:] = 255
    with runner(tmp_path, channels=1) as eim:
        assert eim.classify(wide).probabilities["dog"] == pytest.approx(0.5, abs=0.02)
        assert eim.classify(np.full((9, 9, 1), 255, np.uint8)).label == "dog"
    with runner(tmp_path, resize="none") as eim, pytest.raises(DataError, match="160x60: the model does not"):
        eim.classify(wide)
    with runner(tmp_path, resize="fit-longest") as eim:  # black bars above and below
        assert eim.classify(np.full((10, 160, 3), 255, np.uint8)).probabilities["dog"] < 0.3
    with runner(tmp_path, resize="fit-shortest") as eim:
        assert eim.classify(np.full((10, 160, 3), 255, np.uint8)).probability == 1.0


@pytest.mark.parametrize(
    "picture", [np.zeros((6, 8), np.uint8), np.zeros((6, 8, 4), np.uint8), np.zeros((6, 8, 3), np.float32)]
)
def test_what_is_no_picture_is_refused_without_a_restart(tmp_path: Path, picture: Any) -> None:
    with runner(tmp_path) as eim:
        with pytest.raises(DataError, match=r"expected uint8\[height, width, 1 or 3\]"):
            eim.classify(picture)
        assert eim.classify(RED).label == "dog"


def test_the_program_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EI_API_KEY", "ei_secret")
    monkeypatch.setenv("APIARY_BROKER__PASSWORD", "secret")
    with runner(tmp_path):
        told = json.loads((tmp_path / "state/state.env").read_text())
    assert "PATH" in told
    assert not [k for k in told if "secret" in told[k] or k.startswith(("EI_", "APIARY_"))]


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("die_at_start", r"ended with code 127 before it took a connection: .*libexample.so.1"),
        ("never_bind", r"takes no connection within 1 s"),
    ],
)
def test_a_program_that_does_not_start(tmp_path: Path, mode: str, says: str) -> None:
    eim = runner(tmp_path, EimLimits(start_s=1 if mode == "never_bind" else 10, stop_s=0.5), mode=mode)
    with pytest.raises(EimError, match=says):
        eim.start()


def test_what_is_no_program_cannot_be_started(tmp_path: Path) -> None:
    eim = EimRunner(tmp_path / "none.eim", limits=QUICK)
    with pytest.raises(EimError, match=r"none\.eim cannot be started: No such file"):
        eim.start()
    text = tmp_path / "text.eim"
    text.write_bytes(b"\x7fELF but not really")
    text.chmod(0o755)
    with pytest.raises(EimError, match="cannot be started: Exec format error"):
        EimRunner(text, limits=QUICK).start()
    text.chmod(0o644)
    with pytest.raises(EimError, match="cannot be started: Permission denied"):
        EimRunner(text, limits=QUICK).start()


def test_labels_that_were_not_expected(tmp_path: Path) -> None:
    program = write_program(tmp_path / "model.eim", labels=["cat", "dog"])
    with EimRunner(program, labels=["dog", "cat"], limits=QUICK):
        pass
    with pytest.raises(EimError, match="has the labels cat, dog, expected cat, cow"):
        EimRunner(program, labels=["cat", "cow"], limits=QUICK).start()


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("hang", r"model.eim gives no answer within 0.6 s"),
        ("crash", r"model.eim was ended by SIGABRT .*bad_alloc"),
        ("garbage", "expected JSON"),
        ("html", "expected JSON"),
        ("endless", "answers with more than 1048576 bytes"),
        ("refuse", "refuses: out of arena"),
        ("not_finite", "'cat' the probability nan"),
        ("stale_id", "answers request 99, expected 2"),
    ],
)
def test_a_program_that_misbehaves_is_ended_and_started_again(tmp_path: Path, mode: str, says: str) -> None:
    clock = Clock()
    with runner(tmp_path, mode=mode, clock=clock) as eim:
        with pytest.raises(EimError, match=says):
            eim.classify(RED)
        assert eim._process is None
        with pytest.raises(EimError, match=r"model\.eim is started again in 4\.0 s; it failed: "):
            eim.classify(RED)


def test_restarts_pause_longer_each_time_and_end(tmp_path: Path) -> None:
    clock = Clock()
    with runner(tmp_path, mode="crash", clock=clock) as eim:
        for pause in (4, 6, 6):  # doubled, at most pause_max_s
            with pytest.raises(EimError, match="SIGABRT"):
                eim.classify(RED)
            clock.now += pause - 0.5
            with pytest.raises(EimError, match=r"started again in 0.5 s|not started again"):
                eim.classify(RED)
            clock.now += 0.5
        clock.now += 1000
        with pytest.raises(
            EimError, match=r"failed 3 times in a row and is not started again; the last: .*SIGABRT"
        ):
            eim.classify(RED)
        eim.start()  # an operator may
        with pytest.raises(EimError, match="SIGABRT"):
            eim.classify(RED)


def test_one_crash_is_forgotten_after_a_good_answer(tmp_path: Path) -> None:
    clock = Clock()
    with runner(tmp_path, mode="crash_once", clock=clock, shm=True) as eim:
        with pytest.raises(EimError, match="SIGABRT"):
            eim.classify(RED)
        clock.now += 4
        assert eim.classify(RED).label == "dog"
        assert eim._failures == 0


def test_a_killed_program_is_started_again_and_its_memory_removed(tmp_path: Path) -> None:
    clock = Clock()
    with runner(tmp_path, shm=True, clock=clock) as eim:
        eim.classify(RED)
        assert eim._process is not None
        os.kill(eim._process._child.pid, 9)
        with pytest.raises(EimError, match="was ended by SIGKILL"):
            eim.classify(RED)
        clock.now += 4
        assert eim.classify(BLUE).label == "cat"


def test_a_program_that_leaves_its_memory_or_ignores_sigterm_is_cleaned_up(tmp_path: Path) -> None:
    with runner(tmp_path, shm=True, mode="leave_shm") as eim, pytest.raises(EimError):
        eim.classify(RED)
    with runner(tmp_path, shm=True, mode="ignore_sigterm") as eim:
        eim.classify(RED)
        assert eim._process is not None
        pid = eim._process._child.pid
    assert not Path(f"/proc/{pid}").exists(), "killed once its time to end is over"


@contextlib.contextmanager
def a_node(folder: Path) -> Iterator[dict[str, Any]]:
    """What a hostile program would like: a key, a picture, a port, a service on a socket."""
    folder.mkdir()
    (folder / "key.pem").write_text("secret")
    (folder / "picture.jpg").write_bytes(b"picture")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as service:
        service.bind(str(folder / "service"))
        service.listen()
        yield {"mode": "hostile", "outside": str(folder), "port": listener.getsockname()[1]}


def what_it_did(tmp_path: Path, kernel: Kernel | None) -> set[str]:
    with (
        a_node(tmp_path / "node") as config,
        runner(tmp_path, kernel=kernel, **config) as eim,
        pytest.raises(EimError, match="the program refuses: it did ") as said,
    ):
        eim.classify(RED)
    return set(str(said.value).partition(" did ")[2].split(", "))


FILES = {"read a key", "listed pictures", "wrote a file", "removed a file"}
CALLS = {"reached the network", "reached a service here", "began a process", "outlives its parent"}


def test_a_hostile_program_gets_nothing(tmp_path: Path) -> None:
    assert what_it_did(tmp_path, None) == {"nothing"}
    assert (tmp_path / "node/picture.jpg").exists()


def test_a_kernel_that_has_a_half_of_it_keeps_that_half(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = this_kernel()
    for folder, kernel, forbidden, done in (
        ("files", Kernel(both.landlock, ""), FILES, CALLS),
        ("calls", Kernel(0, both.seccomp), CALLS, FILES),
        ("first", Kernel(1, both.seccomp), FILES | CALLS, set()),
        ("none", Kernel(0, ""), set(), FILES | CALLS),
    ):
        (tmp_path / folder).mkdir()
        did = what_it_did(tmp_path / folder, kernel)
        assert not did & forbidden and did >= done, folder
    assert "this kernel has no Landlock and seccomp" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_plain_user_confines_a_program_too(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from apiary.process.child import start\n"
        "from apiary.process.confinement import Confinement\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "def cat(*allowed):\n"
        "    p = start(['/bin/cat', sys.argv[1]], confine=Confinement(allowed).prepare())\n"
        "    out = p.communicate()[0]; return out\n"
        "print(cat(Path(sys.argv[1])), cat())"
    )
    with tempfile.NamedTemporaryFile("w", dir="/var/tmp") as file:
        file.write("seen")
        file.flush()
        Path(file.name).chmod(0o644)
        done = subprocess.run(
            [sys.executable, "-c", code, file.name], capture_output=True, text=True, check=False, timeout=60
        )
    assert "b'seen' b'/bin/cat:" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


def test_a_process_that_left_its_session_does_not_outlive_its_program(tmp_path: Path) -> None:
    """Where the kernel lets a program begin processes, whoever ran it looks for what it left."""
    with runner(tmp_path, mode="leaves", kernel=Kernel(this_kernel().landlock, "")) as eim:
        eim.classify(RED)
        pid = int((tmp_path / "state/state").read_text())
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_program_that_ignores_sigterm_dies_with_whoever_ran_it(tmp_path: Path) -> None:
    """A release's test that took too long is killed; its program worked on, for ever."""
    program = write_program(tmp_path / "model.eim", mode="ignore_sigterm")
    code = (
        f"import time; from pathlib import Path; from apiary_edge.eim.client import EimRunner\n"
        f"eim = EimRunner(Path({str(program)!r})); eim.start()\n"
        "print(eim._process._child.pid, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "its")}
    (tmp_path / "its").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 60
    while str(tmp_path).encode() in _read(Path(f"/proc/{pid}/cmdline")):
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.05)
