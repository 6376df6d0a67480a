"""The child with Edge Impulse's real SDK, against a strict stand-in of its API, and its keeper."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.publishers.parts import (
    LABELS,
    QUIET,
    job,
    needs_sdk,
    sha256,
)
from tests.stand_ins.edge_impulse_api import KEY, EdgeImpulseApi

from apiary.errors import PublishError
from apiary_coordinator.publishers import _child
from apiary_coordinator.publishers._job import (
    EVENT,
    Downloaded,
    Event,
    Failed,
    Profiled,
    PublishJob,
    Uploaded,
)


class Loop:
    """The real SDK on our transport, kept running."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[3])
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.stand_ins.sdk_loop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env=os.environ | {"EI_API_KEY": KEY, "PYTHONPATH": root},
            text=True,
        )

    def do(self, job: PublishJob) -> list[Event]:
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(job.model_dump_json() + "\n")
        self.child.stdin.flush()
        events: list[Event] = []
        while (line := self.child.stdout.readline()) and not line.startswith('{"end"'):
            assert KEY not in line
            events.append(EVENT.validate_json(line))
        return events


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.child.kill()
    loop.child.communicate()


@needs_sdk
def test_the_sdk_is_asked_as_the_api_wants_it(
    loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path
) -> None:
    events = loop.do(job(run, api, tmp_path))
    assert api.violations == []
    assert [type(e).__name__ for e in events] == ["Reached", "Said", "Profiled", "Said", "Downloaded"]
    assert next(e for e in events if isinstance(e, Profiled)).profile.model_dump() == {
        "device": "raspberry-pi-4", "ram_bytes": 345678, "rom_bytes": 456789, "inference_ms": 7.0,
    }  # fmt: skip
    assert set(api.keys) == {KEY}
    # The same bytes that were evaluated, both times.
    assert [u["sha256"] for u in api.uploads] == [sha256(run / "model.tflite")] * 2
    assert api.saved["model"]["labels"] == list(LABELS)
    assert (tmp_path / "out").read_bytes() == api.program()
    assert api.counts["build"] == api.counts["download"] == 1


@needs_sdk
def test_steps_that_are_done_are_left_out(loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path) -> None:
    events = loop.do(job(run, api, tmp_path, done=["profile", "samples"], samples=[]))
    assert isinstance(events[-1], Downloaded)
    assert (api.counts["profile"], api.counts["upload"]) == (0, 1)


FAILURES: list[tuple[dict[str, list[str]], dict[str, Any], str, bool]] = [
    ({"projects": ["unauthorized"]}, {}, r"does not take the API key \(401 .*Invalid", False),
    (
        {"projects": ["server"]},
        {},
        r"projects: Edge Impulse has a fault of its own \(503 Service Unavailable\)",
        True,
    ),
    ({"projects": ["refuse"]}, {}, r"refuses: You have no compute time left", False),
    ({"projects": ["echo"]}, {}, r"refuses: key \(key\) has no rights", False),
    ({"projects": ["html"]}, {}, r"expected JSON, came '<!DOCTYPE html><title>.*api_endpoint", False),
    ({"projects": ["redirect"]}, {}, r"302 Found, a redirect, which is not followed", False),
    ({"projects": ["hang"]}, {}, r"took the request and did not answer", True),
    ({"projects": ["close"]}, {}, r"GET /v1/api/projects: the connection broke off", True),
    (
        {"upload": ["server"]},
        {},
        r"POST /v1/api/4711/pretrained-model/upload: .*fault of its own \(503",
        True,
    ),
    ({"upload": ["close"]}, {}, r"upload: the connection broke off", True),
    ({"upload": ["refuse"]}, {}, r"upload: Edge Impulse refuses: You have no compute time", False),
    ({"status": ["html"]}, {}, r"jobs/1000/status: expected JSON", False),
    (
        {"Uploading model": ["job_fails"]},
        {},
        r"'Uploading model' \(job 1000\) failed at Edge Impulse; it says",
        True,
    ),
    (
        {"Profiling model": ["job_fails"]},
        {},
        r"'Profiling model' \(job 1001\) failed .*the arena is too small$",
        True,
    ),
    ({"Building binary": ["job_fails"]}, {}, r"'Building binary' \(job 1003\) failed", True),
    (
        {"Building binary": ["job_fails"], "stdout": ["", "", "", "html"]},
        {},
        r"failed at Edge Impulse; its log could",
        True,
    ),
    (
        {"Building binary": ["job_never_ends"]},
        {"job_s": 0.5},
        r"did not end within publish.job_s and was cancel",
        True,
    ),
    ({"download": ["server"]}, {}, r"deployment/download: Edge Impulse has a fault of its own \(503", True),
    ({"download": ["unauthorized"]}, {}, r"download: Edge Impulse does not take the API key", False),
    ({"bytes": ["broken_off"]}, {}, r"download: the connection broke off", True),
    ({"bytes": ["large"]}, {}, r"the download is larger than 1 MB \(publish.max_mb\)", False),
    (
        {},
        {"device": "raspberry-pi-9"},
        r"knows no device 'raspberry-pi-9' .*There are: raspberry-pi-4, rasp",
        False,
    ),
    (
        {},
        {"target": "runner-linux-vax"},
        r"cannot be built for 'runner-linux-vax' .*runner-linux-aarch64",
        False,
    ),
    (
        {},
        {"labels": ["red", "green"]},
        r"2 labels but the model has 3 labels|specified a Classification",
        False,
    ),
    ({}, {"model_type": "int8"}, r"deploy_model_type of int8, but for this model only", False),
    ({}, {"sha256": "0" * 64}, r"changed after it was verified", False),
]


@needs_sdk
@pytest.mark.parametrize(
    ("faults", "changes", "says", "retry"), FAILURES, ids=lambda x: str(x)[:40] if isinstance(x, dict) else ""
)
def test_every_failure_has_its_message(
    loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path, *,
    faults: dict[str, list[str]], changes: dict[str, Any], says: str, retry: bool,
) -> None:  # fmt: skip
    api.faults = {k: list(v) for k, v in faults.items()}
    events = loop.do(job(run, api, tmp_path, **changes))
    failed = events[-1]
    assert isinstance(failed, Failed), events
    assert re.search(says, failed.message), failed.message
    assert failed.retry == retry
    assert "\r" not in failed.message
    assert api.violations == []
    if "job_s" in changes:
        assert api.cancelled == [1003]


@needs_sdk
def test_a_passing_fault_of_a_question_is_retried_at_once(
    loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path
) -> None:
    api.faults = {"projects": ["server", "close", ""], "status": ["server", ""], "model": ["", "server", ""]}
    assert isinstance(loop.do(job(run, api, tmp_path))[-1], Downloaded)
    assert api.counts["upload"] == 2  # no step was done twice


@needs_sdk
def test_nobody_there_is_said_soon(loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{s.getsockname()[1]}/v1"
    (failed,) = loop.do(job(run, api, tmp_path, api_endpoint=closed))
    assert isinstance(failed, Failed)
    assert re.search(r"projects: .*Connection refused", failed.message), failed.message
    (failed,) = loop.do(job(run, api, tmp_path, api_endpoint="https://no.such.host.invalid/v1"))
    assert isinstance(failed, Failed)
    assert "the name cannot be resolved: is this machine online?" in failed.message


@needs_sdk
def test_a_host_that_swallows_packets_is_said(
    loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # once its queue is full, Linux drops what else asks for a connection
            asks = stack.enter_context(socket.socket())
            asks.setblocking(False)
            asks.connect_ex(full.getsockname())
        endpoint = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        failed = loop.do(job(run, api, tmp_path, api_endpoint=endpoint))[-1]
    assert isinstance(failed, Failed)
    assert "no connection within 1 s: is this machine online, is there a firewall?" in failed.message


@needs_sdk
def test_tls_that_fails_is_said(loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path) -> None:
    endpoint = api.endpoint.replace("http:", "https:")
    failed = loop.do(job(run, api, tmp_path, api_endpoint=endpoint))[-1]
    assert isinstance(failed, Failed)
    assert "projects: TLS fails: " in failed.message


@needs_sdk
def test_test_images_are_uploaded_once(
    loop: Loop, run: Path, api: EdgeImpulseApi, tmp_path: Path, held_out: Path
) -> None:
    pictures = sorted(held_out.rglob("*.png"))
    samples = [{"path": p, "label": p.parent.name} for p in pictures]
    for _ in range(2):  # those that are there already are no failure
        events = loop.do(job(run, api, tmp_path, samples=samples))
        assert next(e for e in events if isinstance(e, Uploaded)).taken == 9
    assert api.violations == []
    assert sorted(label for label, _ in api.samples.values()) == sorted([*LABELS] * 3)
    assert {hashlib.sha256(d).hexdigest() for _, d in api.samples.values()} == {sha256(p) for p in pictures}
    api.faults = {"ingest": ["server"]}
    failed = loop.do(job(run, api, tmp_path, samples=samples))[-1]
    assert isinstance(failed, Failed)
    assert "none of 9 test images was taken: " in failed.message


def test_an_sdk_that_is_not_installed_is_said(run: Path, api: EdgeImpulseApi, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['edgeimpulse'] = sys.modules['edgeimpulse_api'] = None\n"
        "from apiary_coordinator.publishers._sdk import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=job(run, api, tmp_path).model_dump_json(),
        env=os.environ | {"EI_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = EVENT.validate_json(done.stdout)
    assert isinstance(failed, Failed)
    assert "SDK is not installed" in failed.message
    assert "pip install 'apiary-fl[edge-impulse]'" in failed.message


REACHED = '{"event":"reached","project":1}'


@pytest.mark.parametrize(
    ("code", "says", "retry"),
    [
        ("import time; time.sleep(60)", r"gave no answer within 0.6 s \(publish.reach_s\)", False),
        (f"print('{REACHED}'); import time; time.sleep(60)", r"at its limit \(publish.timeout_s\)", False),
        ("print('hello')", r"says b'hello', expected an event", False),
        ("print('x' * 200000, end='')", "a line without end", False),
        ("import os; os.kill(os.getpid(), 9)", r"ended by signal 9 \(out of memory\?\)", True),
        ("import os, sys; sys.exit(os.environ['EI_API_KEY'])", r"ended with code 1: \(key\)", True),
        ("""print('{"event":"failed","message":"no","retry":true}')""", "^no$", False),  # nothing was reached
        (f"""print('{REACHED}\\n{{"event":"failed","message":"no","retry":true}}')""", "^no$", True),
    ],
)
def test_a_child_that_misbehaves_is_ended(
    run: Path, api: EdgeImpulseApi, tmp_path: Path, *, code: str, says: str, retry: bool
) -> None:
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    with pytest.raises(PublishError, match=says) as caught:
        _child.run(
            job(run, api, tmp_path), KEY, lambda _: None, QUIET,
            reach_s=0.6, until=time.monotonic() + 1.2, command=[sys.executable, "-uc", ignores + code],
        )  # fmt: skip
    assert caught.value.retry == retry
    assert KEY not in str(caught.value)
