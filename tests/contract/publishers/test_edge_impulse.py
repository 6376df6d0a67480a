"""Publishing to Edge Impulse from a run's folder to an `.eim` that predicts, stopped and killed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.contract.publishers.parts import (
    HERE,
    LABELS,
    needs_sdk,
    one,
    runs_here,
    settings,
    sha256,
)
from tests.stand_ins.edge_impulse_api import DEVICES, KEY, TARGETS, EdgeImpulseApi

from apiary_coordinator.publishers._after_run import publish, publish_after_run
from apiary_coordinator.publishers._record import read


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
    chosen = settings(run, api, reach_s=6, after_run=["edge_impulse", "directory"])
    publish_after_run(run, chosen)
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
