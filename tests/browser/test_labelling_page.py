"""The labelling page in a real browser: pictures by keys and clicks, and the store has their labels."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from tests.browser.chromium import BINARY, Tab

from apiary.settings import StoreSettings
from apiary_edge.samples.model import Added, Incoming, SampleId
from apiary_edge.samples.store import SampleStore

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no chromium on this machine: tests/system-packages installs it"
)
LABELS = ("head", "helmet", "vest")


def drawn(i: int) -> bytes:
    """A picture whose colour tells its label."""
    picture = Image.new("RGB", (640, 480), [(200, 60, 40), (240, 200, 40), (60, 160, 80)][i % 3])
    ImageDraw.Draw(picture).ellipse((200 + i, 120, 440 + i, 360), fill=(i * 5 % 255, 90, 160))
    out = io.BytesIO()
    picture.save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[SampleStore, str, list[SampleId]]]:
    """A store with twelve pictures, a page on it in a process of its own, and the page's address."""
    state = tmp_path / "edge"
    store = SampleStore(state / "samples", state / "cache", StoreSettings(min_free_mb=0), time.time)
    outcomes = list(store.add_many(Incoming(drawn(i), f"drawn {i}") for i in range(12)))
    ids = [o.id for o in outcomes if isinstance(o, Added)]
    assert len(ids) == 12
    # The first eight have a suggestion, the first of them the least certain.
    store.set_suggestions("ab" * 32, [(s, LABELS[i % 3], 0.4 + i / 60) for i, s in enumerate(ids[:8])])
    command = [sys.executable, "-m", "apiary_cli", "label", "--state-dir", str(state), "--port", "0"]
    child = subprocess.Popen([*command, "--labels", ",".join(LABELS), "--new-labels"], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        found = re.search(r"http://\S+", child.stdout.readline().decode())
        assert found is not None
        yield store, found[0], ids
    finally:
        child.terminate()
        code = child.wait(10)
        assert child.stdout is not None
        child.stdout.close()
        store.close()
    assert code == 0


def test_labels_all_pictures_by_keys_and_clicks(
    tab: Tab, node: tuple[SampleStore, str, list[SampleId]]
) -> None:
    store, address, ids = node
    tab.screen(390, 844, touch=True)
    tab.open(address)
    tab.until("document.querySelectorAll('#labels button').length === 4")
    tab.until("document.getElementById('picture').naturalWidth > 0")
    assert "token" not in tab.value("location.href")
    assert tab.value("document.cookie") == "", "a script can read the cookie"
    assert tab.value("document.documentElement.scrollWidth") <= 390
    # The least certain comes first, and the model's say with it.
    assert ids[0] in tab.value("document.getElementById('picture').src")
    assert "head, 40 %" in tab.text("caption")
    assert tab.value("document.querySelector('#labels .suggested').offsetHeight") >= 56

    def shows(i: int) -> None:
        tab.until(f"document.getElementById('picture').src.includes('{ids[i]}') && ready(true)")

    for i in range(4):  # with a finger
        shows(i)
        tab.click("#labels button", LABELS[i % 3])
    tab.screen(1280, 800)
    for i in range(4, 7):  # with the keys of the labels
        shows(i)
        tab.press(str(i % 3 + 1))
    shows(7)
    tab.press("Enter")  # the suggestion
    tab.until("document.getElementById('progress-text').innerText.startsWith('8 ') && ready(true)")
    held = [store.get(s) for s in ids[:8]]
    assert [s and s.label for s in held] == [LABELS[i % 3] for i in range(8)]
    tab.press("u")
    shows(7)
    assert store.counts().labelled == {"head": 3, "helmet": 2, "vest": 2}
    tab.press("2")
    tab.until("document.getElementById('progress-text').innerText.startsWith('8 ') && ready(true)")

    tab.click("#show-grid")  # the other four at once, with a label that is new
    tab.until("document.querySelectorAll('.cell').length === 4 && ready(true)")
    tab.until("[...document.querySelectorAll('.cell img')].every((i) => i.naturalWidth)")
    tab.click("#skip", "All")
    tab.until("document.getElementById('delete').innerText === 'Delete 4' && ready(true)")
    tab.click("#labels button", "new label")
    tab.until("document.getElementById('asking').open")
    tab.type("<b>ladder</b>".replace("/", ""))
    tab.press("Enter")
    tab.until("document.getElementById('progress-text').innerText === '12 of 12' && ready(true)")
    assert store.counts().labelled == {"head": 3, "helmet": 3, "vest": 2, "<b>ladder<b>": 4}
    assert tab.value("document.querySelectorAll('#labels b').length") == 0, "a label became HTML"
    tab.click("#show-one")
    tab.until("document.getElementById('empty').innerText.startsWith('Nothing is left to label')")
    assert tab.complaints == []
