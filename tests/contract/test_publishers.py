"""Every publisher's contract, and Edge Impulse's with the real SDK against a strict stand-in of its API."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.stand_ins.edge_impulse_api import DEVICES, KEY, TARGETS, EdgeImpulseApi
from tests.stand_ins.eim_program import write_program

from apiary import plugins
from apiary.errors import DataError, PublishError, SettingsError, StoreError
from apiary.settings import Settings, load_settings
from apiary_coordinator.publishers import _child, edge_impulse
from apiary_coordinator.publishers._job import (
    EVENT,
    Downloaded,
    Event,
    Failed,
    Job,
    Profiled,
    Uploaded,
)
from apiary_coordinator.publishers._print_info import print_info
from apiary_coordinator.publishers._record import Record, alone, read
from apiary_coordinator.publishers.base import PACKAGE, Watch, candidate
from apiary_coordinator.publishing import Outcome, publish, publish_after_run

COLOURS = Path(__file__).parents[1] / "stand_ins" / "colours"
LABELS = {"red": (250, 20, 10), "green": (0, 220, 30), "blue": (10, 20, 240)}
HERE = "runner-linux-x86_64"
QUIET = Watch(lambda _: None)
needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("edgeimpulse") is None,
    reason="the SDK is not installed: pip install 'apiary[edge-impulse]'",
)
runs_here = pytest.mark.skipif(platform.machine() != "x86_64", reason="the built stand-in is for x86_64")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path / "runs" / "autumn"
    folder.mkdir(parents=True)
    for name in ("model.tflite", "model_int8.tflite"):
        shutil.copy(COLOURS / name, folder / name)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    summary = {
        "run": "autumn",
        "best_round": 3,
        "contributors": {"1": ["a", "b"], "3": ["b", "c"]},
        "tflite_accuracy": 0.97,
        "int8_accuracy": 0.96,
        "files": {name: sha256(folder / name) for name in ("model.tflite", "model_int8.tflite")},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    for label, colour in LABELS.items():
        (tmp_path / "held-out" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20 + i, 10), colour).save(tmp_path / "held-out" / label / f"{i}.png")
    return tmp_path / "held-out"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[EdgeImpulseApi]:
    (tmp_path / "built").mkdir()
    with EdgeImpulseApi(tmp_path / "built") as api:
        yield api


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EI_API_KEY", KEY)
    return KEY


def settings(run: Path, api: EdgeImpulseApi | None = None, **publish_: Any) -> Settings:
    endpoints = {"api_endpoint": api.endpoint, "ingestion_endpoint": api.ingestion} if api else {}
    own = {
        "directory": run.parents[1] / "releases",
        "target": HERE,
        "retry_pause_s": 0.05,
        **endpoints,
        **publish_,
    }
    return load_settings(None, {f"publish.{k}": v for k, v in own.items()}).settings


def one(outcomes: tuple[Any, list[Outcome]]) -> Outcome:
    (outcome,) = outcomes[1]
    return outcome


# -- every publisher -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names(PACKAGE))
def test_every_publisher_says_what_its_result_depends_on(name: str, run: Path) -> None:
    plugin: Any = plugins.load(PACKAGE, name)
    assert isinstance(plugin.REMOTE, bool)
    chosen = candidate(run, "float32")
    before = plugin.wanted(chosen, settings(run))
    assert json.loads(json.dumps(before)) == before == plugin.wanted(chosen, settings(run))
    assert plugin.entry(chosen, settings(run)).split("/")[0] == name
    (run / "summary.json").write_text(json.dumps({"run": "autumn"}))
    (run / "model.tflite").write_bytes((run / "model.tflite").read_bytes() + b"\0")
    assert plugin.wanted(candidate(run, "float32"), settings(run)) != before


def test_publishers_are_those() -> None:
    assert plugins.names(PACKAGE) == ["directory", "edge_impulse"]


def test_an_unknown_publisher_is_refused_with_the_nearest(run: Path) -> None:
    with pytest.raises(SettingsError, match=r"no 'directry'; did you mean 'directory'"):
        publish(run, ["directry"], settings(run))


# -- what is published -----------------------------------------------------------------------------------


def test_a_candidate_is_what_the_run_evaluated(run: Path) -> None:
    found = candidate(run, "int8")
    assert found.model == run / "model_int8.tflite"
    assert found.sha256 == sha256(COLOURS / "model_int8.tflite")
    assert (found.labels, found.round, found.contributors) == (tuple(LABELS), 3, 3)
    assert (found.input.height, found.input.width, found.input.channels) == (8, 10, 3)
    assert found.accuracy == {"float32": 0.97, "int8": 0.96}


def test_a_model_that_was_changed_since_is_refused(run: Path) -> None:
    data = bytearray((run / "model_int8.tflite").read_bytes())
    data[-1] ^= 1
    (run / "model_int8.tflite").write_bytes(data)
    for kind in ("float32", "int8"):
        with pytest.raises(
            PublishError, match=r"model_int8.tflite is \w{12}\.\.\., the run evaluated \w{12}\.\.\.: it was"
        ):
            candidate(run, kind)  # type: ignore[arg-type]  # a str of the tuple


def _unlink(name: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (_unlink("model.tflite"), r"holds no model.tflite: the run has not finished"),
        (_unlink("labels.txt"), r"labels.txt cannot be read"),
        (_write("labels.txt", "red\nred\nblue\n"), r"expected two or more different labels"),
        (_write("labels.txt", "red\nblue\n"), r"has 3 classes, labels.txt 2"),
        (
            _unlink("summary.json"),
            r"summary.json cannot be read: No such file or directory; has the run finished",
        ),
        (_write("summary.json", "{"), r"summary.json is not JSON"),
        (_write("summary.json", "[]"), r"is not the summary of a run"),
    ],
)
def test_a_run_that_does_not_hold_is_not_published(
    run: Path, break_it: Callable[[Path], Any], says: str
) -> None:
    break_it(run)
    with pytest.raises((DataError, PublishError), match=says):
        publish(run, ["directory"], settings(run))
    assert not (run.parents[1] / "releases").exists()


def test_accuracy_is_told_before_anything_goes_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    publish(run, ["directory"], settings(run))
    first, *rest = [r.getMessage() for r in caplog.records]
    assert first == (
        "run=autumn publishing float32, accuracy on the held-out pictures: float32=97.0% int8=96.0%"
    )
    assert rest[0].startswith("publisher=directory released")
    for int8, warns in ((0.951, False), (0.949, True)):
        caplog.clear()
        summary = json.loads((run / "summary.json").read_text()) | {"int8_accuracy": int8}
        (run / "summary.json").write_text(json.dumps(summary))
        publish(run, ["directory"], settings(run, model_type="int8"))
        assert ("int8 is 2.1 points less accurate than float32" in caplog.text) == warns


# -- directory -------------------------------------------------------------------------------------------


def test_a_directory_release_is_whole_and_says_what_it_is(run: Path) -> None:
    outcome = one(publish(run, ["directory"], settings(run)))
    assert outcome.error is None
    release = run.parents[1] / "releases" / "autumn"
    manifest = json.loads((release / "manifest.json").read_text())
    assert {p.name for p in release.iterdir()} == {*manifest["files"], "manifest.json"}
    assert set(manifest["files"]) == {"model.tflite", "model_int8.tflite", "labels.txt"}
    for name, told in manifest["files"].items():
        assert (told["sha256"], told["bytes"]) == (sha256(run / name), (run / name).stat().st_size)
        assert sha256(release / name) == told["sha256"]
    assert manifest["input"] == {
        "height": 8,
        "width": 10,
        "channels": 3,
        "values": "0..255",
        "resize": "squash",
    }
    assert manifest["accuracy"] == {"float32": 0.97, "int8": 0.96}
    assert (manifest["run"], manifest["round"], manifest["labels"]) == ("autumn", 3, list(LABELS))
    assert (release.parent / "latest").resolve() == release.resolve()
    assert release.stat().st_mode & 0o777 == 0o755
    assert sorted(p.name for p in release.parent.iterdir()) == ["autumn", "latest"]


def test_a_release_is_not_made_twice_but_mended_and_replaced(run: Path) -> None:
    release = run.parents[1] / "releases" / "autumn"
    assert one(publish(run, ["directory"], settings(run))).fresh
    assert not one(publish(run, ["directory"], settings(run))).fresh
    assert one(publish(run, ["directory"], settings(run), again=True)).fresh
    (release / "model.tflite").write_bytes(b"torn")
    assert one(publish(run, ["directory"], settings(run))).fresh
    assert sha256(release / "model.tflite") == sha256(run / "model.tflite")
    (run / "model_int8.tflite").unlink()  # the run finished again, with other files
    assert one(publish(run, ["directory"], settings(run))).fresh
    assert not (release / "model_int8.tflite").exists()
    assert sorted(p.name for p in release.parent.iterdir()) == ["autumn", "latest"]


def test_a_folder_that_cannot_be_written_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = one(publish(run, ["directory"], settings(run, directory=tmp_path / "file")))
    assert isinstance(outcome.error, StoreError)
    assert re.search(r"publish.directory .*file: (File exists|Not a directory)", str(outcome.error))
    assert read(run)["directory"]["state"] == "failed"


# -- the record ------------------------------------------------------------------------------------------


def test_steps_are_kept_for_the_same_and_forgotten_for_another(tmp_path: Path) -> None:
    record = Record(tmp_path, "x", {"target": "a"})
    record.step("profile", {"ram": 1})
    record.failed("no network")
    assert read(tmp_path)["x"] | {"updated": 0} == {
        "wanted": {"target": "a"}, "state": "failed", "steps": {"profile": {"ram": 1}}, "result": None,
        "error": "no network", "updated": 0,
    }  # fmt: skip
    assert Record(tmp_path, "x", {"target": "a"}).steps == {"profile": {"ram": 1}}
    assert Record(tmp_path, "x", {"target": "a"}, again=True).steps == {}
    assert Record(tmp_path, "x", {"target": "b"}).steps == {}
    other = Record(tmp_path, "y", {})
    other.done({"files": {}})
    assert set(read(tmp_path)) == {"x", "y"}
    assert Record(tmp_path, "y", {}).result == {"files": {}}
    assert Record(tmp_path, "x", {"target": "a"}).result is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"v": 2, "published": {}}', '{"v": 1, "published": {"x": 1}}']
)
def test_a_torn_record_is_said(run: Path, text: str) -> None:
    (run / "publish.json").write_text(text)
    outcome = one(publish(run, ["directory"], settings(run))) if text else None
    if outcome is None:
        with pytest.raises(StoreError, match="is not a record of publishing"):
            read(run)
    else:
        assert "is not a record of publishing: move it away" in str(outcome.error)


def test_two_do_not_publish_one_run_at_a_time(run: Path) -> None:
    with alone(run), pytest.raises(PublishError, match="is being published by another process"):
        publish(run, ["directory"], settings(run))
    assert one(publish(run, ["directory"], settings(run))).error is None


# -- the key ---------------------------------------------------------------------------------------------


def test_the_key_comes_from_a_file_or_the_environment(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    chosen = settings(run, api_key_file=file).publish
    with pytest.raises(SettingsError, match=r"api_key_file .*key: No such file"):
        edge_impulse.api_key(chosen)
    file.write_text(f"{KEY}\nthe key of hats\n")
    with pytest.raises(SettingsError, match=r"may be read by others: chmod 600"):
        edge_impulse.api_key(chosen)
    file.chmod(0o600)
    assert edge_impulse.api_key(chosen) == KEY
    file.write_text("two words\n")
    with pytest.raises(SettingsError, match="holds 9 characters that are no API key") as caught:
        edge_impulse.api_key(chosen)
    assert "two words" not in str(caught.value)
    monkeypatch.setenv("EI_API_KEY", " ei_1\n")
    assert edge_impulse.api_key(settings(run).publish) == "ei_1"
    for bad in ("ei_1\r\nx-evil: 1", "é", "x" * 513):
        monkeypatch.setenv("EI_API_KEY", bad)
        with pytest.raises(SettingsError, match="no API key"):
            edge_impulse.api_key(settings(run).publish)
    monkeypatch.setenv("EI_API_KEY", "")
    with pytest.raises(SettingsError, match=r"EI_API_KEY holds no API key.*--to directory"):
        edge_impulse.api_key(settings(run).publish)


def test_the_key_is_not_sent_in_the_clear() -> None:
    with pytest.raises(
        SettingsError, match=r"publish.api_endpoint is 'http://ei.example.org/v1'.*in the clear"
    ):
        load_settings(None, {"publish.api_endpoint": "http://ei.example.org/v1"})
    load_settings(None, {"publish.api_endpoint": "https://ei.example.org/v1"})


# -- what comes back -------------------------------------------------------------------------------------


@runs_here
@pytest.mark.parametrize(
    ("fault", "says", "retry"),
    [
        ("html", "is a web page", True),
        ("empty", "is empty, expected a Linux program", True),
        ("truncated", "cut off: 32768 bytes came, its headers speak of 65536", True),
        ("armv7", "is a 32 bit program for armv7, expected 64 bit for x86_64", True),
        ("large", "is 3145728 bytes, expected at most 1048576", True),
        ("wrong_labels", "has the labels somebody, else, the run red, green, blue", False),
        ("wrong_input", "takes 10x9x3, the run's model 10x8x3", False),
        ("hang", "--print-info did not end within 1 s", False),
        ("die_at_start", r"--print-info ended with code 127: .*libexample", False),
    ],
)
def test_what_is_not_the_wanted_program_is_not_stored(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fault: str, says: str, retry: bool
) -> None:
    program = write_program(
        tmp_path / "x.eim",
        machine="armv7" if fault == "armv7" else "x86_64",
        size=3 * 2**20 if fault == "large" else 65536,
        labels=list(LABELS),
        width=10,
        height=9 if fault == "wrong_input" else 8,
        mode=fault if fault in ("wrong_labels", "hang", "die_at_start") else "",
    )
    data = {"html": b"<!doctype html>" * 9999, "empty": b""}.get(fault, program.read_bytes())
    data = data[: len(data) // 2] if fault == "truncated" else data
    monkeypatch.setattr(edge_impulse, "print_info", lambda p: print_info(p, timeout_s=1))
    with pytest.raises(PublishError, match=says) as caught:
        edge_impulse._store(candidate(run, "float32"), settings(run, max_mb=1).publish, data, tmp_path)
    assert caught.value.retry == retry
    assert not list(run.glob("*.eim"))


def test_other_targets_come_as_archives(run: Path, tmp_path: Path) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("library/model.h", "x" * 5000)
    chosen = settings(run, target="zip").publish
    told = edge_impulse._store(candidate(run, "float32"), chosen, buffer.getvalue(), tmp_path)
    assert list(told["files"]) == ["model-zip.zip"]
    for data in (buffer.getvalue()[:-30], b"<html>", b""):
        with pytest.raises(PublishError, match="is not a whole zip archive"):
            edge_impulse._store(candidate(run, "float32"), chosen, data, tmp_path)
    broken = bytearray(buffer.getvalue())
    broken[60] ^= 1
    with pytest.raises(PublishError, match=r"model.h in the archive is damaged"):
        edge_impulse._store(candidate(run, "float32"), chosen, bytes(broken), tmp_path)


# -- the SDK's child, one start for many jobs --------------------------------------------------------------


class Loop:
    """The real SDK on our transport, kept running."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.stand_ins.sdk_loop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env=os.environ | {"EI_API_KEY": KEY, "PYTHONPATH": root},
            text=True,
        )

    def do(self, job: Job) -> list[Event]:
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


def job(run: Path, api: EdgeImpulseApi, tmp_path: Path, **changes: Any) -> Job:
    own = {
        "model": run / "model.tflite", "sha256": sha256(run / "model.tflite"), "labels": list(LABELS),
        "device": "raspberry-pi-4", "target": HERE, "engine": "tflite", "model_type": "float32",
        "representative": None, "samples": [], "out": tmp_path / "out", "max_bytes": 2**20,
        "api_endpoint": api.endpoint, "ingestion_endpoint": api.ingestion, "request_s": 0.6, "job_s": 900.0,
        "done": [],
    }  # fmt: skip
    return Job.model_validate(own | changes)


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
    ({"projects": ["hang"]}, {}, r"took the request and then said nothing", True),
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
    began = time.monotonic()
    events = loop.do(job(run, api, tmp_path, **changes))
    failed = events[-1]
    assert isinstance(failed, Failed), events
    assert re.search(says, failed.message), failed.message
    assert failed.retry == retry
    assert "\r" not in failed.message
    assert time.monotonic() - began < 20
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
    (failed,) = loop.do(job(run, api, tmp_path, api_endpoint="http://no.such.host.invalid/v1"))
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
        began = time.monotonic()
        endpoint = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        failed = loop.do(job(run, api, tmp_path, api_endpoint=endpoint))[-1]
    assert isinstance(failed, Failed)
    assert "no connection within 1 s: is this machine online, is there a firewall?" in failed.message
    assert time.monotonic() - began < 10


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
    samples = [{"path": p, "label": p.parent.name} for p in sorted(held_out.rglob("*.png"))]
    for _ in range(2):  # those that are there already are no failure
        events = loop.do(job(run, api, tmp_path, samples=samples))
        assert next(e for e in events if isinstance(e, Uploaded)).taken == 9
    assert api.violations == []
    assert sorted(label for label, _ in api.samples.values()) == sorted([*LABELS] * 3)
    assert {hashlib.sha256(d).hexdigest() for _, d in api.samples.values()} == {
        sha256(s["path"]) for s in samples
    }
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
    assert "pip install 'apiary[edge-impulse]'" in failed.message


# -- the child's keeper ----------------------------------------------------------------------------------

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
    began = time.monotonic()
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    with pytest.raises(PublishError, match=says) as caught:
        _child.run(
            job(run, api, tmp_path), KEY, lambda _: None, QUIET,
            reach_s=0.6, until=began + 1.2, command=[sys.executable, "-uc", ignores + code],
        )  # fmt: skip
    assert caught.value.retry == retry
    assert KEY not in str(caught.value)
    assert time.monotonic() - began < 8


# -- all together ----------------------------------------------------------------------------------------


def holds(folder: Path, text: str) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


@pytest.mark.slow
@needs_sdk
@runs_here
def test_a_run_becomes_an_eim_that_predicts(
    run: Path, api: EdgeImpulseApi, key: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    api.faults = {"bytes": ["truncated", ""]}
    outcome = one(publish(run, ["edge_impulse"], settings(run, api)))
    assert outcome.error is None
    assert api.violations == []
    assert outcome.result is not None
    program = run / "model-runner-linux-x86_64.eim"
    assert outcome.result["files"] == {program.name: sha256(program)}
    assert outcome.result["profile"]["ram_bytes"] == 345678
    assert outcome.result["build"]["print_info"]["input"] == [10, 8, 3]
    # The first download was cut: built again, but the profile was kept.
    assert (api.counts["build"], api.counts["profile"]) == (2, 1)
    assert "attempt 1 of 3: the download for runner-linux-x86_64 is cut off" in caplog.text
    assert "RAM 338 KB, ROM 446 KB, inference 7 ms" in caplog.text
    import numpy as np

    from apiary_edge.eim.client import EimRunner

    with EimRunner(program, labels=list(LABELS)) as eim:
        for label, colour in LABELS.items():
            assert eim.classify(np.full((30, 40, 3), colour, np.uint8)).label == label
    before = len(api.seen)
    assert not one(publish(run, ["edge_impulse"], settings(run, api))).fresh
    assert len(api.seen) == before
    assert holds(tmp_path, key) == []
    assert key not in caplog.text


@pytest.mark.slow
@needs_sdk
def test_a_stopped_publishing_keeps_what_is_done_and_shows_no_key(
    run: Path, api: EdgeImpulseApi, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    api.faults = {"Building binary": ["job_never_ends"]}
    seen: list[bool] = []

    def stop() -> bool:
        if api.counts["build"] == 0:
            return False
        lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
        seen.append(any(key.encode() in line for line in lines))
        return True

    outcome = one(
        publish(run, ["edge_impulse"], settings(run, api, target="runner-linux-aarch64"), stop=stop)
    )
    assert "publishing was stopped; the same command goes on with it" in str(outcome.error)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert seen == [False]
    entry = read(run)["edge_impulse/runner-linux-aarch64/float32"]
    assert (entry["state"], set(entry["steps"])) == ("failed", {"profile"})


@needs_sdk
@pytest.mark.slow
def test_a_killed_publishing_leaves_no_child_and_goes_on(
    run: Path, api: EdgeImpulseApi, key: str, tmp_path: Path
) -> None:
    api.faults = {"Building binary": ["job_never_ends"]}
    command = [sys.executable, "-m", "apiary_cli", "publish", "autumn", "--to", "edge_impulse"]
    child = subprocess.Popen([*command, "--set", f"publish.api_endpoint={api.endpoint}"], cwd=tmp_path)
    until = time.monotonic() + 60
    while api.counts["build"] == 0 and child.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    assert api.counts["build"] == 1
    child.kill()
    child.wait()
    time.sleep(2.5)  # the SDK asks for the job each second
    asked = api.counts["status"]
    time.sleep(2.5)
    assert api.counts["status"] == asked
    api.faults = {}
    chosen = settings(run, api, target="runner-linux-aarch64")
    outcome = one(publish(run, ["edge_impulse"], chosen))
    assert outcome.error is None and outcome.result is not None
    assert (api.counts["profile"], api.counts["build"]) == (1, 2)
    assert outcome.result["build"]["print_info"].startswith("not run: this machine does not run programs")
    assert (run / "model-runner-linux-aarch64.eim").stat().st_mode & 0o111
    assert holds(run, key) == []


@pytest.mark.slow
@needs_sdk
@runs_here
def test_int8_ours_or_made_there_from_the_servers_own_pictures(
    run: Path, api: EdgeImpulseApi, key: str, held_out: Path
) -> None:
    ours = one(publish(run, ["edge_impulse"], settings(run, api, model_type="int8")))
    assert ours.error is None
    assert {u["sha256"] for u in api.uploads} == {sha256(run / "model_int8.tflite")}
    assert api.built["modelType"] == "int8"
    theirs = settings(run, api, model_type="int8", int8_by="edge_impulse")
    without = one(publish(run, ["edge_impulse"], theirs))
    assert "needs the server's held-out pictures: set coordinator.test_data" in str(without.error)
    api.reset()
    theirs = theirs.model_copy(
        update={"coordinator": theirs.coordinator.model_copy(update={"test_data": held_out})}
    )
    assert one(publish(run, ["edge_impulse"], theirs)).error is None
    assert api.violations == []
    assert {u["sha256"] for u in api.uploads} == {sha256(run / "model.tflite")}
    features = api.uploads[-1]["features"]
    assert features.shape == (9, 8, 10, 3)
    assert sorted({tuple(int(v) for v in f[0, 0]) for f in features}) == sorted(LABELS.values())
    assert not list(run.glob("*.npy"))


@needs_sdk
def test_with_nobody_there_the_plain_release_goes_out_first(
    run: Path, api: EdgeImpulseApi, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults = {"projects": ["hang"]}  # a host that takes connections and says nothing
    began = time.monotonic()
    chosen = settings(run, api, reach_s=6, after_run=["edge_impulse", "directory"])
    publish_after_run(run, chosen)
    assert time.monotonic() - began < 12
    assert (run.parents[1] / "releases" / "autumn" / "manifest.json").is_file()
    assert "publisher=edge_impulse failed: " in caplog.text
    assert "gave no answer within 6 s (publish.reach_s)" in caplog.text
    assert "`apiary publish autumn --to edge_impulse` goes on with it" in caplog.text
    assert (read(run)["directory"]["state"], read(run)[f"edge_impulse/{HERE}/float32"]["state"]) == (
        "done",
        "failed",
    )


def test_nothing_that_publishing_does_fails_a_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_after_run(run, settings(run))
    assert caplog.text == ""
    publish_after_run(run, settings(run, after_run=["nowhere"]))
    assert "run=autumn was not published: publishers: no 'nowhere'" in caplog.text
    (run / "model.tflite").unlink()
    publish_after_run(run, settings(run, after_run=["directory"]))
    assert "run=autumn was not published: " in caplog.text


@pytest.mark.slow
@needs_sdk
@runs_here
def test_the_command_tells_and_never_the_key(run: Path, api: EdgeImpulseApi, tmp_path: Path) -> None:
    def apiary(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        plain = {k: v for k, v in os.environ.items() if k != "EI_API_KEY"}
        command = [sys.executable, "-m", "apiary_cli", "publish", "autumn", "-v", "--target", HERE]
        endpoints = ["--set", f"publish.api_endpoint={api.endpoint}", "--set", "publish.attempts=1"]
        return subprocess.run(
            [*command, *endpoints, *more],
            cwd=tmp_path,
            env=plain | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    done = apiary("--to", "edge_impulse")
    assert (done.returncode, done.stdout) == (
        2,
        "autumn: float32, accuracy on the held-out pictures: float32 97.0%, int8 96.0%\n",
    )
    assert "EI_API_KEY holds no API key" in done.stderr
    done = apiary()  # without a key: files alone
    assert done.returncode == 0
    assert "releases/autumn/model.tflite  sha256 " in done.stdout
    api.faults = {"projects": ["", "echo"]}
    done = apiary("--json", EI_API_KEY=KEY)
    assert done.returncode == 9
    told = json.loads(done.stdout)
    assert told["published"]["directory"] | {"result": 0} == {"ok": True, "fresh": False, "result": 0}
    assert "key (key) has no rights" in told["published"]["edge_impulse"]["error"]
    assert KEY not in done.stdout + done.stderr
    api.faults = {}
    done = apiary("--to", "edge_impulse", EI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert "edge_impulse: estimate for raspberry-pi-4: RAM 338 KB, ROM 446 KB, inference 7 ms" in done.stdout
    assert "model-runner-linux-x86_64.eim  sha256 " in done.stdout
    assert KEY not in done.stdout + done.stderr
    assert holds(tmp_path, KEY) == []


def test_the_stand_in_is_strict(api: EdgeImpulseApi) -> None:
    import requests

    def ask(path: str, **headers: str) -> int:
        return int(requests.get(api.endpoint + path, headers=headers, timeout=5).status_code)

    assert ask("/api/projects") == 401
    assert ask("/api/projects", **{"x-api-key": KEY}) == 200
    assert ask("/api/nowhere", **{"x-api-key": KEY}) == 404
    assert ask("/api/4712", **{"x-api-key": KEY}) == 400
    assert len(api.violations) == 2
    assert len(DEVICES) > 1 and len(TARGETS) > 1
