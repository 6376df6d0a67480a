"""From unlabelled pictures to predictions: a real broker, coordinator and node, and the owner's browser."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.browser.chromium import BINARY, Tab, chromium

from apiary.bus.broker import find_mosquitto, start_broker
from apiary_edge.samples.model import Bounds, check_id
from apiary_edge.samples.store import SampleStore

pytestmark = [
    pytest.mark.skipif(
        BINARY is None or find_mosquitto() is None,
        reason="no chromium or no mosquitto on this machine: tests/system-packages installs both",
    ),
    pytest.mark.slow,
    pytest.mark.tensorflow,
]
LABELS = ("dark", "light")
PICTURES = 56
WAIT_S = 90.0
RUN = """
[run]
recipe_options = { size = 16, widths = [8, 16] }
settle_s = 0
plan = { epochs = 12, batch_size = 8, learning_rate = 0.01, min_samples = 24 }
"""


def shade(label: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    low, high = (20, 100) if label == "dark" else (150, 255)
    out = io.BytesIO()
    Image.fromarray(rng.integers(low, high, (64, 64, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def kind_of(path: Path) -> str:
    with Image.open(path) as picture:
        return "dark" if np.asarray(picture).mean() < 125 else "light"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Program:
    """An `apiary` command with its output in a file."""

    def __init__(self, log: Path, environment: dict[str, str], *command: str):
        self.log = log
        with log.open("wb") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "apiary_cli", *command],
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def says(self, pattern: str, limit_s: float = WAIT_S) -> re.Match[str]:
        end = time.monotonic() + limit_s
        while True:
            text = self.log.read_text(errors="replace")
            if (found := re.search(pattern, text)) is not None:
                return found
            assert self.child.poll() is None, f"ended with code {self.child.returncode}:\n{text}"
            assert time.monotonic() < end, f"did not say {pattern!r} in time:\n{text}"
            time.sleep(0.05)

    def close(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


@contextmanager
def federation(tmp_path: Path) -> Iterator[tuple[Program, Program, Program]]:
    """A coordinator that waits for a node with 28 labelled pictures, the node, and its labelling page."""
    for i in range(12):
        path = tmp_path / "test" / LABELS[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shade(LABELS[i % 2], 1000 + i))
    camera = tmp_path / "camera"
    camera.mkdir()
    for i in range(PICTURES):
        (camera / f"{i:03}.jpg").write_bytes(shade(LABELS[i % 2], i))
        os.utime(camera / f"{i:03}.jpg", (1_700_000_000 + i, 1_700_000_000 + i))
    with start_broker(0) as broker, ExitStack() as stack:
        shared = {"APIARY_BROKER__PORT": str(broker.port), "APIARY_LOG": "info"}
        node = {
            **shared,
            "APIARY_EDGE__NODE_ID": "pi-1",
            "APIARY_EDGE__STATE_DIR": str(tmp_path / "node"),
            "APIARY_EDGE__REFRESH_S": "1",
            "APIARY_EDGE__CAMERA__KIND": "folder",
            "APIARY_EDGE__CAMERA__SOURCE": str(camera),
            "APIARY_EDGE__CAMERA__FPS": "30",
            "APIARY_EDGE__CAPTURE__MIN_SHARPNESS": "0",
            "APIARY_EDGE__CAPTURE__NEAR_DUPLICATE_BITS": "-1",
            "APIARY_EDGE__STORE__MIN_FREE_MB": "0",
            "APIARY_EDGE__PREDICT__ENABLED": "true",
            "APIARY_EDGE__PREDICT__PORT": str(free_port()),
        }
        (tmp_path / "run.toml").write_text(RUN)

        def program(name: str, environment: dict[str, str], *command: str) -> Program:
            made = Program(tmp_path / f"{name}.log", environment, *command)
            stack.callback(made.close)
            return made

        test = str(tmp_path / "test")
        yield (
            program(
                "coordinator", shared, "coordinator", "--config", str(tmp_path / "run.toml"),
                "--test-data", test, "--rounds", "1", "--min-nodes", "1", "--run", "shades",
                "--state-dir", str(tmp_path / "coordinator"), "--runs-dir", str(tmp_path / "runs"),
            ),
            program("edge", node, "edge"),
            program("label", node, "label", "--port", "0"),
        )  # fmt: skip


def wait_for(what: str, done: Callable[[], object], *programs: Program) -> None:
    end = time.monotonic() + WAIT_S
    while not done():
        said = "\n".join(p.log.read_text(errors="replace")[-2000:] for p in programs)
        assert time.monotonic() < end, f"{what} did not happen:\n{said}"
        time.sleep(0.05)


def test_forty_labels_become_a_model_that_the_page_shows(tmp_path: Path) -> None:
    with federation(tmp_path) as (coordinator, edge, label), chromium(tmp_path / "chromium") as tab:
        labelling = label.says(r"http://\S+")[0]
        predicting = edge.says(r"predictions page: (http://\S+)")[1]
        token = labelling.partition("?token=")[2]
        store = SampleStore(tmp_path / "node" / "samples", None, Bounds(), time.time)
        wait_for("capture", lambda: store.counts().total == PICTURES, edge)

        tab.screen(1280, 800)
        tab.open(f"{predicting}?token={token}")
        tab.until("document.getElementById('model-name')?.innerText === 'No model yet'")

        # The labels to choose from are the coordinator's: nobody has given one yet.
        coordinator.says("the untrained model has")
        tab.screen(390, 844, touch=True)
        wait_for("labels", (tmp_path / "node" / "predicting" / "labels.json").is_file, edge)
        tab.open(labelling)
        tab.until("document.querySelectorAll('#labels button').length === 3")
        assert tab.value("[...document.querySelectorAll('#labels button > span')].map(e => e.innerText)")[
            :2
        ] == list(LABELS)
        label_forty(tab, store)
        assert sum(store.counts().labelled.values()) == 40

        coordinator.says(r"round=1 closed .*contributors=1", WAIT_S)
        tab.screen(390, 844, touch=True)
        tab.open(predicting)
        tab.until("document.getElementById('model-name')?.innerText === 'round 1 of run shades'", WAIT_S)
        tab.until("document.getElementById('picture')?.naturalWidth > 0")
        # The last picture of the folder is still looked at, and the new model knows what it is.
        last = LABELS[(PICTURES - 1) % 2]
        tab.until(f"document.getElementById('label')?.innerText === '{last}'")
        assert tab.value("document.querySelectorAll('#bars li').length") == 2
        assert re.fullmatch(r"[\d.]+ ms", tab.value("document.getElementById('inference').innerText"))
        assert "accurate" in tab.value("document.getElementById('model-more').innerText")
        assert tab.value("document.documentElement.scrollWidth") <= 390
        # What has no label yet is suggested one by the same model.
        wait_for("suggestions", lambda: sum(store.counts().suggested.values()) == PICTURES - 40, edge)
        assert tab.complaints == []
        store.close()


def label_forty(tab: Tab, store: SampleStore) -> None:
    """As an owner would: look at the picture, press its label."""
    shown = ""
    for done in range(40):
        tab.until(f"!document.getElementById('picture').src.endsWith('/{shown}') && !busy")
        shown = tab.value("document.getElementById('picture').src.split('/').pop()")
        path = store.path(check_id(shown))
        assert path is not None
        tab.press(str(1 + LABELS.index(kind_of(path))))
        tab.until(f"document.getElementById('progress-text').innerText.startsWith('{done + 1} ')")
