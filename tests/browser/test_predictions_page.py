"""From unlabelled pictures to predictions: a real broker, coordinator and node, and the owner's browser."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.browser.chromium import BINARY, Tab

from apiary.bus.broker import find_mosquitto, start_broker
from apiary.bus.bus import Received
from apiary.bus.mqtt import MqttBus
from apiary.settings import BrokerSettings, StoreSettings
from apiary.wire.messages import NodeStatus, Prediction
from apiary_edge.samples.model import check_id
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


class Ear:
    """Hears what a node predicts, and what it tells Home Assistant; in a thread, to keep the link alive."""

    def __init__(self, port: int):
        self._heard: list[Received] = []
        self._over = threading.Event()
        self._bus = MqttBus(BrokerSettings(port=port), client_id="ear", will=None)
        self._bus.subscribe("apiary/default/node/pi-1/prediction")
        self._bus.subscribe("apiary/default/node/pi-1/status")
        self._bus.subscribe("homeassistant/#")
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def predictions(self) -> list[Prediction]:
        return [Prediction.decode(p, who="pi-1") for p in self.below("apiary/default/node/pi-1/prediction")]

    def statuses(self) -> list[NodeStatus]:
        return [NodeStatus.decode(p, who="pi-1") for p in self.below("apiary/default/node/pi-1/status")]

    def below(self, prefix: str) -> list[bytes]:
        return [e.payload for e in list(self._heard) if e.topic.startswith(prefix)]

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._over.is_set():
            self._heard += [e for e in self._bus.poll(0.2) if isinstance(e, Received)]
        self._bus.close()


@contextmanager
def federation(tmp_path: Path, exports: Path) -> Iterator[tuple[Program, Program, Ear]]:
    """A coordinator that waits for a node with 24 labelled pictures, the node with its pages, and an ear."""
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
            "APIARY_EDGE__PAGE__PORT": str(free_port()),
            "APIARY_EDGE__PREDICT__HOME_ASSISTANT": "true",
            "APIARY_EDGE__PERSONAL__ENABLED": "true",
        }
        (tmp_path / "run.toml").write_text(RUN)

        def program(name: str, environment: dict[str, str], *command: str) -> Program:
            made = Program(tmp_path / f"{name}.log", environment, *command)
            stack.callback(made.close)
            return made

        ear = Ear(broker.port)
        stack.callback(ear.close)
        test = str(tmp_path / "test")
        yield (
            program(
                "coordinator", shared, "coordinator", "--config", str(tmp_path / "run.toml"),
                "--test-data", test, "--rounds", "1", "--min-nodes", "1", "--run", "shades",
                "--state-dir", str(tmp_path / "coordinator"), "--runs-dir", str(tmp_path / "runs"),
                "--set", f"coordinator.exports_dir={exports}",
            ),
            program("edge", node, "edge"),
            ear,
        )  # fmt: skip


def wait_for(what: str, done: Callable[[], object], *programs: Program) -> None:
    end = time.monotonic() + WAIT_S
    while not done():
        said = "\n".join(p.log.read_text(errors="replace")[-2000:] for p in programs)
        assert time.monotonic() < end, f"{what} did not happen:\n{said}"
        time.sleep(0.05)


def test_forty_labels_become_a_model_that_the_page_shows(
    tab: Tab, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    assert pytestconfig.cache is not None
    exports = pytestconfig.cache.mkdir("exports")
    with federation(tmp_path, exports) as (coordinator, edge, ear):
        pages = edge.says(r"pages: (http://\S+)")[1]
        token = (tmp_path / "node" / "labelling.token").read_text().strip()
        store = SampleStore(tmp_path / "node" / "samples", None, StoreSettings(), time.time)
        wait_for("capture", lambda: store.counts().total == PICTURES, edge)

        tab.screen(1280, 800)
        tab.open(f"{pages}predictions/?token={token}")
        tab.until("document.getElementById('model-name')?.innerText === 'No model yet'")

        # The labels to choose from are the coordinator's: nobody has given one yet.
        coordinator.says("the untrained model has")
        tab.screen(390, 844, touch=True)
        wait_for("labels", (tmp_path / "node" / "predicting" / "labels.json").is_file, edge)
        tab.open(f"{pages}label/")
        tab.until("document.querySelectorAll('#labels button').length === 3")
        assert tab.value("[...document.querySelectorAll('#labels button > span')].map(e => e.innerText)")[
            :2
        ] == list(LABELS)
        label_forty(tab, store)
        assert sum(store.counts().labelled.values()) == 40

        coordinator.says(r"round=1 closed .*contributors=1", WAIT_S)
        tab.screen(390, 844, touch=True)
        tab.open(f"{pages}predictions/")
        tab.until("document.getElementById('model-name')?.innerText === 'round 1 of run shades'", WAIT_S)
        tab.until("document.getElementById('picture')?.naturalWidth > 0")
        # The last picture of the folder is still looked at, and the new model knows what it is.
        last = LABELS[(PICTURES - 1) % 2]
        tab.until(f"document.getElementById('label-name')?.innerText === '{last}'")
        assert tab.value("document.querySelectorAll('#bars li').length") == 2
        assert re.fullmatch(r"[\d.]+ ms", tab.value("document.getElementById('inference').innerText"))
        more = tab.value("document.getElementById('model-more').innerText")
        assert re.search(r"\d % right of \d+ held-out picture", more), more
        assert tab.value("document.documentElement.scrollWidth") <= 390
        # The bus hears it in words, and Home Assistant knows where to listen.
        wait_for("a prediction", lambda: any(p.label == last for p in ear.predictions()), edge)
        said = ear.predictions()[-1]
        assert said.probability > 0.5 and [t.label for t in said.top] == [last, LABELS[PICTURES % 2]]
        sensors = [json.loads(config) for config in ear.below("homeassistant/sensor/pi-1/")]
        assert {s["state_topic"] for s in sensors} == {"apiary/default/node/pi-1/prediction"}
        # What has no label yet is suggested one by the same model.
        wait_for("suggestions", lambda: sum(store.counts().suggested.values()) == PICTURES - 40, edge)
        # The head was tuned to this node's pictures, and both models were compared on what it holds out.
        wait_for("a comparison", lambda: ear.statuses()[-1].accuracy_personal is not None, edge)
        assert ear.statuses()[-1].accuracy_global is not None
        assert tab.complaints == []
        store.close()


def label_forty(tab: Tab, store: SampleStore) -> None:
    """As an owner would: look at the picture, press its label."""
    shown = ""
    for done in range(40):
        tab.until(f"!document.getElementById('picture').src.endsWith('/{shown}') && ready(true)")
        shown = tab.value("document.getElementById('picture').src.split('/').pop()")
        path = store.path(check_id(shown))
        assert path is not None
        tab.press(str(1 + LABELS.index(kind_of(path))))
        tab.until(f"document.getElementById('progress-text').innerText.startsWith('{done + 1} ')")
