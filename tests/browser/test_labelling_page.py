"""The labelling page in a real browser: forty pictures by keys and clicks, and the store has their labels."""

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
from tests.browser.chromium import BINARY, Tab, chromium

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


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[SampleStore, str, list[SampleId]]]:
    """A store with 48 pictures, a page on it in a process of its own, and the page's address."""
    state = tmp_path / "edge"
    store = SampleStore(state / "samples", state / "cache", StoreSettings(min_free_mb=0), time.time)
    outcomes = list(store.add_many(Incoming(drawn(i), f"drawn {i}") for i in range(48)))
    ids = [o.id for o in outcomes if isinstance(o, Added)]
    assert len(ids) == 48
    # The first 30 have a suggestion, the first of them the least certain.
    store.set_suggestions("ab" * 32, [(s, LABELS[i % 3], 0.4 + i / 60) for i, s in enumerate(ids[:30])])
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


def test_labels_forty_pictures_by_keys_and_clicks(
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
    assert "head, 40 %" in tab.value("document.getElementById('caption').innerText")
    assert tab.value("document.querySelector('#labels .suggested').offsetHeight") >= 56

    for i in range(20):  # with a finger
        tab.until(f"document.getElementById('picture').src.includes('{ids[i]}') && ready(true)")
        tab.click("#labels button", LABELS[i % 3])
        tab.until(f"info.labelled && Object.values(info.labelled).reduce((a, b) => a + b, 0) === {i + 1}")
    tab.screen(1280, 800)
    for i in range(20, 29):  # with the keys of the labels
        tab.until(f"document.getElementById('picture').src.includes('{ids[i]}') && ready(true)")
        tab.press(str(i % 3 + 1))
    tab.until(f"document.getElementById('picture').src.includes('{ids[29]}') && ready(true)")
    tab.press("Enter")  # the suggestion
    tab.until("document.getElementById('progress-text').innerText.startsWith('30 ') && ready(true)")
    held = [store.get(s) for s in ids[:30]]
    assert [s and s.label for s in held] == [LABELS[i % 3] for i in range(30)]
    tab.press("u")
    tab.until(f"document.getElementById('picture').src.includes('{ids[29]}') && ready(true)")
    assert store.counts().labelled == {"head": 10, "helmet": 10, "vest": 9}
    tab.press("3")
    tab.until("document.getElementById('progress-text').innerText.startsWith('30 ') && ready(true)")

    tab.click("#show-grid")  # the other ten at once, with a label that is new
    tab.until("document.querySelectorAll('.cell').length === 18 && ready(true)")
    tab.until("[...document.querySelectorAll('.cell img')].slice(0, 10).every((i) => i.naturalWidth)")
    for n in range(10):
        tab.click(f".cell:nth-child({n + 1})")
    tab.click("#labels button", "new label")
    tab.until("document.getElementById('asking').open")
    tab.type("<b>ladder</b>".replace("/", ""))
    tab.press("Enter")
    tab.until("document.getElementById('progress-text').innerText === '40 of 48' && ready(true)")
    assert store.counts().labelled == {"head": 10, "helmet": 10, "vest": 10, "<b>ladder<b>": 10}
    assert tab.value("document.querySelectorAll('#labels b').length") == 0, "a label became HTML"

    assert tab.complaints == []


def test_deleting_asks_and_undo_does_not_surprise(
    tab: Tab, node: tuple[SampleStore, str, list[SampleId]]
) -> None:
    store, address, ids = node
    tab.screen(1280, 800)
    tab.open(address)
    tab.until("document.getElementById('picture')?.naturalWidth > 0 && ready(true)")
    tab.press("1")
    tab.until(f"document.getElementById('picture').src.includes('{ids[1]}') && ready(true)")
    tab.click("#delete")
    tab.until("document.getElementById('asking').open")
    assert tab.value("document.activeElement.id") == "ask-no"
    tab.press("Enter")
    tab.until("!document.getElementById('asking').open && ready(true)")
    assert store.counts().total == 48
    tab.click("#delete")
    tab.click("#ask-yes")
    tab.until("document.getElementById('progress-text').innerText === '1 of 47' && ready(true)")
    assert store.get(ids[1]) is None
    tab.press("u")  # does not take the labelling before it back unasked
    tab.until("document.getElementById('said').innerText.includes('does not come back') && ready(true)")
    assert store.counts().labelled == {"head": 1}
    tab.press("u")
    tab.until("document.getElementById('progress-text').innerText === '0 of 47' && ready(true)")
    assert store.counts().labelled == {}
    assert tab.complaints == []


def test_a_browser_without_the_token_sees_no_picture(
    tab: Tab, node: tuple[SampleStore, str, list[SampleId]]
) -> None:
    _, address, _ = node
    base, token = address.split("?token=")
    tab.send("Network.clearBrowserCookies")
    tab.open(base)
    tab.until("document.getElementById('asking')?.open")
    assert tab.value("document.querySelectorAll('img[src]').length") == 0
    tab.until("document.activeElement.id === 'ask-input'")
    tab.type(token)
    tab.press("Enter")
    tab.until("document.getElementById('picture').naturalWidth > 0")
