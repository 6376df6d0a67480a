"""The owner's predictions page in a browser: what is above the fold, what a tap corrects, what goes wrong."""

from __future__ import annotations

import io
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.browser.chromium import BINARY, Tab
from tests.browser.owners_pages import Node, frame, node, sign_in
from tests.unit.edge.predicting.scene import model_file

from apiary_edge.capture.worker import encode
from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.samples.model import check_id
from apiary_edge.web.sign_in_code import NONCE_BYTES, Instant, make_code

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no chromium on this machine: tests/system-packages installs it"
)
PHONE, ON_ITS_SIDE, DESKTOP, ZOOMED = (390, 844), (844, 390), (1280, 800), (640, 400)
PHONE_ZOOMED = (195, 422)
"""A browser at 200 % lays a page out as in a window of half the size."""
FIRST_BAR = "document.querySelector('#bars button')"
ABOVE_THE_FOLD = ("#picture", "#label-name", "#label-percent", "#state", "#model-more")


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[Node]:
    with node(tmp_path, name="round 3 of run autumn", accuracy=0.94, tested_on=400) as made:
        made.see(helmet=200, head=40, vest=10)
        yield made


@pytest.fixture
def page(tab: Tab, pi: Node) -> Iterator[Tab]:
    tab.screen(*PHONE, touch=True)
    tab.open(sign_in(pi))
    tab.until("document.getElementById('label-name')?.innerText === 'helmet'")
    yield tab


def settled(tab: Tab) -> None:
    moved = "Math.max(quietAt, ...[...document.querySelectorAll('#bars button')].map((b) => b.since))"
    tab.until(f"performance.now() - {moved} > 450")


def inside(tab: Tab, selector: str) -> bool:
    return bool(
        tab.value(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return r.width > 0 && r.top >= 0 && r.left >= 0 && r.bottom <= innerHeight"
            " && r.right <= innerWidth; })()"
        )
    )


@pytest.mark.parametrize(
    "size", [PHONE, ON_ITS_SIDE, DESKTOP, ZOOMED, PHONE_ZOOMED], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_what_matters_is_above_the_fold(page: Tab, pi: Node, size: tuple[int, int]) -> None:
    page.screen(*size, touch=size[0] < 1000)
    page.until(f"innerWidth === {size[0]}")
    for selector in ABOVE_THE_FOLD:
        assert inside(page, selector), selector
    assert page.value("document.documentElement.scrollWidth") <= size[0]
    shown = page.value("document.getElementById('picture').getBoundingClientRect().toJSON()")
    assert shown["width"] * shown["height"] > 0.2 * size[0] * size[1], "the picture is small"
    assert page.value("document.title") == "Predictions · pi-1"
    assert page.value("document.getElementById('label-percent').innerText") == "79 %"
    assert "94 % right of 400 held-out pictures" in page.value(
        "document.getElementById('model-more').innerText"
    )
    assert page.complaints == []


def test_one_tap_labels_the_picture_that_was_predicted_on(page: Tab, pi: Node) -> None:
    settled(page)
    page.click("#bars button", "head")
    page.until("document.getElementById('said').innerText === 'Saved as head.'")
    assert pi.labelled() == {"head": 1}
    (sample,) = pi.store.page().samples
    path = pi.store.path(sample.id)
    assert path is not None
    files = path.read_bytes(), encode(frame(pi.labels, {"helmet": 200, "head": 40, "vest": 10}), 90)
    stored, seen = (np.asarray(Image.open(io.BytesIO(data))) for data in files)
    assert np.array_equal(stored, seen)
    page.click("#act", "Undo")
    page.until("document.getElementById('said').innerText.startsWith('Taken back')")
    assert pi.labelled() == {} and pi.store.counts().total == 1


def test_the_label_goes_to_the_picture_under_the_finger_though_the_live_one_moves_on(
    page: Tab, pi: Node
) -> None:
    settled(page)
    digest = page.value("drawnFrame.digest")
    at = page.value(
        "(() => { const r = [...document.querySelectorAll('#bars button')][1].getBoundingClientRect();"
        " return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()"
    )
    page.send("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, **at)
    asked = len(pi.meddler.seen)
    pi.see(vest=240, helmet=5)
    page.until("info.shown.label === 'vest'")
    assert len(pi.meddler.seen) > asked and page.value("drawnFrame.digest") == digest, (
        "it stays while pressed"
    )
    page.send("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **at)
    page.until("document.getElementById('said').innerText === 'Saved as head.'")
    (sample,) = pi.store.page().samples
    assert sample.label == "head" and pi.store.knows(check_id(digest)) == sample.id


def test_a_tap_on_what_has_just_moved_holds_the_picture_and_labels_nothing(page: Tab, pi: Node) -> None:
    settled(page)
    pi.see(vest=240, helmet=5)
    page.until("document.getElementById('label-name').innerText === 'vest'")
    # Within the time that a finger is on its way, and twice: a double tap.
    page.value(f"{FIRST_BAR}.since = performance.now(), {FIRST_BAR}.click(), {FIRST_BAR}.click()")
    page.until("document.getElementById('said').innerText !== '' && held")
    assert "tap again" in page.text("said")
    assert pi.store.counts().total == 0 and "/predictions/api/correct" not in pi.meddler.seen
    settled(page)
    page.click("#bars button", "helmet")
    page.until("document.getElementById('said').innerText === 'Saved as helmet.'")


def test_the_second_tap_of_a_double_tap_labels_nothing(page: Tab, pi: Node) -> None:
    page.click("#hold")
    page.value("choose(['head', 'vest'], drawnFrame.digest)")
    page.value(  # on a bar that lies where Cancel was
        "new Promise((done) => { $('choosing').addEventListener('close', () => done(), {once: true});"
        f" $('choosing-no').click(); }}).then(() => {FIRST_BAR}.click())"
    )
    page.until("!sending")
    assert page.text("said") == "" and "/predictions/api/correct" not in pi.meddler.seen
    settled(page)
    page.value(
        f"new Promise((done) => {{ {FIRST_BAR}.click(); const look = () => {{"
        " if ($('said').innerText !== 'Saved as helmet.') return requestAnimationFrame(look);"
        f" {FIRST_BAR}.click(); done(); }}; look(); }})"
    )
    page.until("!sending")
    assert (page.text("said"), page.text("act")) == ("Saved as helmet.", "Undo"), "the way back is gone"


def test_a_slow_link_shows_that_it_saves_and_takes_one_tap(page: Tab, pi: Node) -> None:
    settled(page)
    with pi.meddler.held("/predictions/api/correct") as gate:
        page.click("#bars button", "head")
        page.until("document.getElementById('said').innerText === 'Saving …'")
        assert page.value(
            "[...document.querySelectorAll('#bars button')].every(b => b.ariaDisabled === 'true')"
        )
        page.click("#bars button", "vest")
        gate.set()
        page.until("document.getElementById('said').innerText === 'Saved as head.'")
    assert pi.meddler.seen.count("/predictions/api/correct") == 1 and pi.labelled() == {"head": 1}


def test_a_correction_that_fails_says_so_and_is_tried_again_for_the_same_picture(page: Tab, pi: Node) -> None:
    settled(page)
    digest = page.value("drawnFrame.digest")
    with pi.meddler.refused("/predictions/api/correct", 507):
        page.click("#bars button", "head")
        page.until("document.getElementById('said').innerText === 'Not saved: the disk is full'")
        assert page.value("document.getElementById('told').className") == "bad"
    pi.see(vest=240)
    page.click("#act", "Try again")
    page.until("document.getElementById('said').innerText === 'Saved as head.'")
    (sample,) = pi.store.page().samples
    assert pi.store.knows(check_id(digest)) == sample.id


def test_a_label_of_somebody_else_is_asked_about(page: Tab, pi: Node) -> None:
    page.click("#hold", "Hold")
    settled(page)
    page.click("#bars button", "head")
    page.until("document.getElementById('said').innerText === 'Saved as head.'")
    settled(page)
    (sample,) = pi.store.page().samples
    pi.store.label([sample.id], "vest", "page")
    page.click("#bars button", "helmet")
    page.until("document.getElementById('said').innerText === 'It has the label vest by now.'")
    assert pi.labelled() == {"vest": 1}
    page.click("#act", "Change to helmet")
    page.until("document.getElementById('said').innerText === 'Saved as helmet.'")
    assert pi.labelled() == {"helmet": 1}


def test_a_picture_that_is_gone_says_so(tab: Tab, tmp_path: Path) -> None:
    with node(tmp_path, looked_bytes=1, name="round 1") as pi:
        pi.see(helmet=200)
        tab.screen(*PHONE, touch=True)
        tab.open(sign_in(pi))
        tab.until("document.getElementById('label-name')?.innerText === 'helmet'")
        tab.click("#hold", "Hold")
        settled(tab)
        pi.see(vest=240)
        pi.look()
        tab.click("#bars button", "head")
        tab.until("document.getElementById('said').innerText.includes('no longer kept')")
        assert pi.store.counts().total == 0


def test_a_second_correction_of_this_page_is_no_question_and_the_focus_stays(page: Tab, pi: Node) -> None:
    page.click("#hold", "Hold")
    for label in ("head", "vest"):
        settled(page)
        page.value(f"document.querySelector('#bars [data-label={label}]').focus()")
        page.press(" ")
        page.until(f"document.getElementById('said').innerText === 'Saved as {label}.'")
        assert page.value("document.activeElement.dataset.label") == label
    page.value("$('act').focus()")
    page.press("Enter")
    page.until("document.getElementById('said').innerText === 'Taken back: its label is head again.'")
    assert page.value("document.activeElement.id") == "hold" and pi.labelled() == {"head": 1}


def test_of_two_pictures_of_the_owners_the_last_one_is_shown_whichever_answer_comes_last(
    page: Tab, pi: Node
) -> None:
    page.value(
        "window.drawn2 = (colour) => new Promise((done) => { const c = document.createElement('canvas');"
        " c.width = c.height = 8; const p = c.getContext('2d'); p.fillStyle = colour; p.fillRect(0, 0, 8, 8);"
        " c.toBlob((b) => done(new File([b], `${colour}.png`, {type: 'image/png'}))); })"
    )
    with pi.meddler.first_held("/predictions/api/image") as gate:
        page.value("drawn2('red').then((f) => { window.first = tryPicture(f); })")
        pi.meddler.wait_for("/predictions/api/image")
        page.value("drawn2('lime').then((f) => tryPicture(f))")
        page.until("document.getElementById('said').innerText.startsWith('lime.png')")
        gate.set()
        page.value("first")
    assert page.text("said").startswith("lime.png") and page.value("held")
    assert page.value("[...$('canvas').getContext('2d').getImageData(2, 2, 1, 1).data]") == [0, 255, 0, 255]


def test_a_frame_that_comes_late_is_not_drawn_over_a_held_one(page: Tab, pi: Node) -> None:
    newest = pi.scene.live.newest
    assert newest is not None
    number = newest.number + 1
    with pi.meddler.held(f"/predictions/frame/{number}") as gate:
        pi.see(vest=240)
        page.until("info.shown.label === 'vest'")
        page.click("#hold", "Hold")
        gate.set()
        page.until(f"info.shown.number === {number}")
    settled(page)
    assert page.value("document.getElementById('label-name').innerText") == "helmet"
    assert page.value("drawnFrame.label") == "helmet" and page.value("held")


def test_twenty_five_labels_fit_a_phone(tab: Tab, tmp_path: Path) -> None:
    labels = tuple(f"label number {i}" for i in range(25))
    with node(tmp_path, labels, name="round 1", accuracy=0.5, tested_on=12) as pi:
        pi.see(**{label: 240 - i for i, label in enumerate(labels)})
        tab.screen(*PHONE, touch=True)
        tab.open(sign_in(pi))
        tab.until("document.getElementById('label-name')?.innerText === 'Not sure'")
        assert "(few: one is 8.3 %)" in tab.value("document.getElementById('model-more').innerText")
        for selector in (*ABOVE_THE_FOLD, "#all", "#hold"):
            assert inside(tab, selector), selector
        tab.click("#all")
        tab.until("document.getElementById('choosing').open")
        assert tab.value("document.querySelectorAll('#choices button').length") == 25
        assert tab.value("document.documentElement.scrollWidth") <= 390
        tab.click("#choices button", "label number 24")
        tab.until("document.getElementById('said').innerText === 'Saved as label number 24.'")
        assert pi.labelled() == {"label number 24": 1}


def test_what_keeps_it_from_predicting_is_visible_with_what_to_do(tab: Tab, tmp_path: Path) -> None:
    with node(tmp_path) as pi:
        tab.screen(*PHONE, touch=True)
        pi.camera.append(
            CameraState("No picture: usb 0: no such device", works=False, todo="Check its cable.")
        )
        tab.open(sign_in(pi))
        tab.until("document.getElementById('state')?.innerText === 'needs you'")
        assert "Check its cable" in tab.value("document.getElementById('empty').innerText")
        assert "first round" in tab.value("document.getElementById('model-more').innerText")
        for selector in ("#empty", "#state", "#model-more"):
            assert inside(tab, selector), selector
        # A model that comes and cannot be used.
        pi.scene.refuses.add("round 1")
        pi.scene.publish(model_file("round 1", labels=pi.labels))
        pi.scene.turn()
        tab.until("!document.getElementById('trouble').hidden")
        assert "tried again every minute" in tab.value("document.getElementById('trouble').innerText")
        assert inside(tab, "#trouble")


def test_a_node_that_is_away_is_offline_and_comes_back(page: Tab, pi: Node) -> None:
    with pi.meddler.refused("/predictions/api/now", 503):
        page.until("document.getElementById('state').innerText === 'offline'")
    page.until("document.getElementById('state').innerText !== 'offline'")


def test_the_overview_leads_to_both_pages_and_a_code_signs_in_once(tab: Tab, pi: Node) -> None:
    tab.send("Network.clearBrowserCookies")
    tab.screen(*PHONE, touch=True)
    now = Instant(time.monotonic(), time.time())
    code = make_code(pi.token, 0, now, secrets.token_bytes(NONCE_BYTES))
    tab.open(f"{pi.address}#code={code}")
    tab.until("document.querySelectorAll('#pages a:not([hidden])').length === 2")
    assert code not in tab.value("location.href") and tab.value("document.cookie") == ""
    assert code not in json.dumps(tab.send("Page.getNavigationHistory")["entries"][-1]["url"])
    assert not any(code in path for path in pi.meddler.seen)
    assert tab.value("document.title") == "Apiary · pi-1"
    tab.click("#to-predictions")
    tab.until("document.getElementById('label-name')?.innerText === 'helmet'")
    tab.click("#home")
    tab.until("document.getElementById('to-label')?.offsetHeight > 0")
    tab.click("#to-label")
    tab.until("location.pathname === '/label/' && document.title.endsWith('· pi-1')")
    # The code was good once.
    tab.send("Network.clearBrowserCookies")
    tab.open("about:blank")
    tab.open(f"{pi.address}#code={code}")
    tab.until(
        "document.getElementById('asking')?.hidden === false"
        " && document.getElementById('said').innerText !== ''"
    )
    assert "type apiary label --qr again" in tab.value("document.getElementById('said').innerText")
    tab.click("#ask-input")
    tab.type(pi.token)
    tab.press("Enter")
    tab.until("document.querySelectorAll('#pages a:not([hidden])').length === 2")
