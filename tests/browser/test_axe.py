"""What axe-core finds on the pages of a node: nothing, in any view, question or trouble."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.browser.axe import findings, needs_axe
from tests.browser.chromium import BINARY, Tab
from tests.browser.labelling_page import PHONE_AT_200, SIZES, labelling
from tests.browser.owners_pages import node, sign_in
from tests.unit.edge.labelling.parts import picture

from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.samples.model import Incoming

pytestmark = [
    pytest.mark.skipif(
        BINARY is None, reason="no chromium on this machine: tests/system-packages installs it"
    ),
    needs_axe,
]
WINDOWS = (*SIZES, PHONE_AT_200, (422, 195))
PHONE = SIZES[0]


def test_axe_on_the_labelling_page_with_25_labels(tab: Tab, tmp_path: Path) -> None:
    with labelling(tab, tmp_path, waiting=9) as page:
        more = (Incoming(picture(40 + i), "drawn", f"kind {i}") for i in range(23))
        list(page.here.store.add_many(more))
        page.here.store.set_suggestions("m" * 64, [(s, "helmet", 0.3) for s in page.ids])
        page.open()
        for size in WINDOWS:
            tab.screen(*size, touch=size[0] < 1000)
            page.shows(page.ids[0])
            assert tab.value("document.documentElement.scrollWidth") <= size[0]
            assert tab.value("document.documentElement.scrollHeight") <= size[1]
            box = tab.value("document.getElementById('picture').getBoundingClientRect().toJSON()")
            assert box["width"] * box["height"] > 0.2 * size[0] * size[1], "the picture is small"
            tools = "[...document.querySelectorAll('.tools button, nav button')].every((b) => {"
            tools += " const r = b.getBoundingClientRect(); return r.height > 33 && r.right <= innerWidth; })"
            assert tab.value(tools), size
            assert findings(tab) == [], size
            if size == PHONE:
                fit = "(({scrollHeight, clientHeight}) => scrollHeight <= clientHeight + 1)"
                assert tab.value(f"{fit}(document.getElementById('labels'))"), "25 labels fit a phone"
        assert tab.complaints == []


def test_a_new_label_can_be_given_beside_25_long_ones_without_a_search(tab: Tab, tmp_path: Path) -> None:
    with labelling(tab, tmp_path, waiting=2) as page:
        more = (Incoming(picture(40 + i), "drawn", f"a label of many words, {i}") for i in range(25))
        list(page.here.store.add_many(more))
        page.open()
        for size in (size for size in WINDOWS if size[1] > 260):
            tab.screen(*size, touch=size[0] < 1000)
            page.shows(page.ids[0])
            seen = "(() => { const b = document.querySelector('#labels .new'), r = b.getBoundingClientRect();"
            seen += " const at = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);"
            seen += " return b.contains(at) && r.bottom <= innerHeight; })()"
            assert tab.value(seen), size
            assert findings(tab) == [], size


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_on_every_view_and_question_of_the_labelling_page(tab: Tab, tmp_path: Path, dark: bool) -> None:
    with labelling(tab, tmp_path, waiting=3) as page:
        store, ids = page.here.store, page.ids
        page.open(PHONE_AT_200 if dark else PHONE)
        if dark:
            tab.screen(*PHONE_AT_200, touch=True, dark=True)
        page.shows(ids[0])
        for view in ("grid", "help", "one"):
            tab.value(f"show('{view}')")
            tab.until(f"view === '{view}' && !busy")
            assert findings(tab) == [], view
        page.shows(ids[0])
        tab.click("#labels .new")
        page.is_asked()
        assert findings(tab) == [], "a new label"
        tab.press("Escape")
        page.shows(ids[0])
        tab.press("Delete")
        page.is_asked()
        assert findings(tab) == [], "deleting"
        tab.press("Escape")
        page.shows(ids[0])
        store.label(ids[:1], "vest", "ann")
        tab.press("1")
        page.is_asked()
        assert findings(tab) == [], "labelled meanwhile"
        tab.press("Escape")
        page.shows(ids[1])
        store.delete(ids[1:2])
        tab.press("1")
        page.says("This picture is gone")
        assert findings(tab) == [], "gone"
        page.shows(ids[2])
        tab.press("ArrowRight")
        tab.until("!document.getElementById('empty').hidden && !busy")
        assert findings(tab) == [], "the last one"
        tab.send("Network.clearBrowserCookies")
        tab.open(f"{page.here.address}label/")
        tab.until("document.getElementById('asking')?.open")
        assert findings(tab) == [], "the token"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_on_the_predictions_page(tab: Tab, tmp_path: Path, dark: bool) -> None:
    labels = tuple(f"label {i}" for i in range(25)) if dark else ("helmet", "head", "vest")
    with node(tmp_path, labels, name="round 3 of run autumn", accuracy=0.94, tested_on=400) as pi:
        pi.see(**{label: 240 // (i + 1) for i, label in enumerate(labels)})
        tab.screen(*PHONE, touch=True, dark=dark)
        tab.open(sign_in(pi))
        tab.until("document.querySelectorAll('#bars li').length > 2")
        for size in WINDOWS:
            tab.screen(*size, touch=size[0] < 1000, dark=dark)
            assert findings(tab) == [], size
        tab.click("#hold")
        tab.until("performance.now() - document.querySelector('#bars button').since > 450")
        tab.click("#bars button", labels[1])
        tab.until(f"document.getElementById('said').innerText === 'Saved as {labels[1]}.'")
        assert findings(tab) == [], "saved"
        (sample,) = pi.store.page().samples
        pi.store.label([sample.id], labels[2], "ann")
        tab.until("performance.now() - quietAt > 450")
        tab.click("#bars button", labels[0])
        tab.until("document.getElementById('said').innerText.includes('by now')")
        assert findings(tab) == [], "labelled meanwhile"
        tab.value(f"choose({list(labels)}, drawnFrame.digest)")
        assert findings(tab) == [], "all labels"


def test_axe_where_something_is_wrong_or_nobody_has_signed_in(tab: Tab, tmp_path: Path) -> None:
    with node(tmp_path) as pi:
        pi.camera.append(
            CameraState("No picture: usb 0: no such device", works=False, todo="Check its cable.")
        )
        tab.screen(*PHONE, touch=True)
        tab.open(pi.address)
        tab.until("document.getElementById('asking')?.hidden === false")
        assert findings(tab) == []
        tab.open(f"{pi.address}predictions/")
        tab.until("document.getElementById('asking')?.open")
        assert findings(tab) == []
        tab.open(sign_in(pi))
        tab.until("document.getElementById('state')?.innerText === 'needs you'")
        assert findings(tab) == []
        tab.open(pi.address)
        tab.until("document.getElementById('to-label')?.offsetHeight > 0")
        assert findings(tab) == []
