"""The same file runs in Edge Impulse's own npm package, once `make npm-runner` has installed it."""

from __future__ import annotations

import http.client
import json
import platform
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.stand_ins.eim_program import write_program

from apiary.eim import protocol
from apiary_edge.eim.client import EimRunner

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / "build" / "npm"
COLOURS = {"red": (250, 20, 10), "green": (0, 220, 30), "blue": (10, 20, 240)}
pytestmark = [
    pytest.mark.skipif(
        shutil.which("node") is None or not (INSTALLED / "node_modules" / "edge-impulse-linux").is_dir(),
        reason="the npm runner is not installed: make npm-runner",
    ),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the stand-in's programs are for x86_64"),
]


def program(folder: Path, *, shm: bool) -> Path:
    """What the stand-in of the API builds of a model, too."""
    tflite = ROOT / "tests" / "stand_ins" / "colours" / "model.tflite"
    return write_program(
        folder / "model.eim", labels=list(COLOURS), width=10, height=8, shm=shm, tflite=str(tflite)
    )


@pytest.mark.parametrize("shm", [False, True])
def test_the_vendors_library_gives_the_answers_that_our_client_gives(tmp_path: Path, *, shm: bool) -> None:
    file = program(tmp_path, shm=shm)
    pictures = [np.full((8, 10, 3), colour, np.uint8) for colour in COLOURS.values()]
    pixels = tmp_path / "pixels.json"
    pixels.write_text(json.dumps([protocol.pack(p).tolist() for p in pictures]))
    script = ROOT / "tests" / "npm" / "classify.js"
    done = subprocess.run(
        ["node", str(script), str(file), str(pixels)],
        cwd=INSTALLED,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["labels"] == list(COLOURS)
    with EimRunner(file) as ours:
        for picture, theirs in zip(pictures, told["answers"], strict=True):
            assert ours.classify(picture).probabilities == pytest.approx(theirs, abs=1e-6)


def test_the_vendors_runner_serves_it_over_http_without_a_camera(tmp_path: Path) -> None:
    file = program(tmp_path, shm=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    runner = INSTALLED / "node_modules" / ".bin" / "edge-impulse-linux-runner"
    command = [str(runner), "--model-file", str(file), "--run-http-server", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=INSTALLED, stdout=log, stderr=log)
    try:
        info = wait_for(port, process, tmp_path / "log")
        assert info["modelParameters"]["labels"] == list(COLOURS)
        for label, colour in COLOURS.items():
            picture = tmp_path / f"{label}.png"
            Image.new("RGB", (40, 30), colour).save(picture)
            found = post(port, picture)["result"]["classification"]
            assert max(found, key=found.__getitem__) == label
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            return ask(port, "GET", "/api/info")
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def post(port: int, picture: Path) -> Any:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{picture.name}"\r\n'
    body = head.encode() + b"Content-Type: image/png\r\n\r\n" + picture.read_bytes() + b"\r\n--x--\r\n"
    return ask(port, "POST", "/api/image", body, {"Content-Type": "multipart/form-data; boundary=x"})


def ask(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
