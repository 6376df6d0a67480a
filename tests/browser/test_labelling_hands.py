"""The labelling page with somebody in a hurry: focus, keys, double taps, no network, two phones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser.chromium import BINARY, Chromium, Tab
from tests.browser.labelling_page import SIZES, Labelled, labelling

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no chromium on this machine: tests/system-packages installs it"
)
PHONE, ON_ITS_SIDE, DESKTOP, ZOOMED = SIZES


@pytest.fixture
def page(tab: Tab, tmp_path: Path) -> Iterator[Labelled]:
    with labelling(tab, tmp_path, waiting=6) as made:
        yield made


def suggest(page: Labelled, label: str, count: int | None = None) -> None:
    """For so many pictures, the first ones; by default for all."""
    rows = [(s, label, 0.3 + i / 90) for i, s in enumerate(page.ids[:count])]
    page.here.store.set_suggestions("m" * 64, rows)


def grid(page: Labelled) -> None:
    page.tab.click("#show-grid")
    page.tab.until("view === 'grid' && ready()")
    page.tab.until("[...document.querySelectorAll('.cell img')].every((e) => e.naturalWidth)")


def test_enter_takes_the_suggestion_and_does_one_thing_only(page: Labelled) -> None:
    ids, tab = page.ids, page.tab
    suggest(page, "helmet", 3)
    page.open(ZOOMED)
    page.shows(ids[0])
    tab.click("#delete")  # by hand: the focus is there afterwards
    page.is_asked()
    tab.press("Escape")
    page.shows(ids[0])
    assert page.focus() == "delete"
    tab.press("Enter")
    page.shows(ids[1])
    assert page.label_of(ids[0]) == "helmet" and not tab.value("document.getElementById('asking').open")
    tab.value("document.querySelector('#labels [data-label=head]').focus()")
    tab.press("Tab")
    tab.value("document.querySelector('#labels [data-label=head]').focus()")
    tab.press("Enter")  # on a label's button, too
    page.shows(ids[2])
    assert page.label_of(ids[1]) == "helmet" and page.focus() == "head"
    tab.value("document.getElementById('undo').focus()")
    tab.press("Tab")
    assert page.focus() == "delete"
    tab.press("Enter")  # brought there on purpose
    page.is_asked()
    tab.press("Escape")
    page.shows(ids[2])
    assert page.label_of(ids[2]) is None
    # Without a suggestion a label that was tapped before is not given once more.
    page.tap("head")
    page.shows(ids[3])
    assert page.focus() == "head"
    tab.press("Enter")
    tab.press("ArrowRight")
    page.shows(ids[4])
    assert page.label_of(ids[3]) is None


def test_the_focus_is_never_lost(page: Labelled) -> None:
    ids, tab = page.ids, page.tab
    page.open(DESKTOP)
    page.shows(ids[0])
    tab.value("document.getElementById('skip').focus()")
    for i in range(6):
        page.shows(ids[i])
        tab.press(" ")
    tab.until("!document.getElementById('empty').hidden && !busy")
    assert page.focus() == "skip" and tab.value("document.activeElement.ariaDisabled") == "true"
    tab.value("document.getElementById('back').focus()")
    for i in range(6):
        tab.until("ready(true)")
        tab.press(" ")
        page.shows(ids[5 - i])
    assert page.focus() == "back"
    tab.press(" ")  # it can go no further
    page.tap("head")
    page.shows(ids[1])
    tab.press("ArrowLeft")
    page.shows(ids[0])
    tab.value("document.getElementById('clear').focus()")
    tab.press(" ")
    page.shows(ids[1])
    assert page.focus() == "clear" and page.label_of(ids[0]) is None
    tab.value("document.getElementById('delete').focus()")
    tab.press(" ")
    page.is_asked()
    tab.click("#ask-yes", "Delete")
    page.says("1 picture deleted")
    assert page.focus() == "delete"
    grid(page)
    tab.value(f"document.querySelector('.cell[data-key=\"{ids[3]}\"]').focus()")
    tab.press(" ")
    assert page.focus() == ids[3]
    tab.press("1")
    page.says("1 picture: helmet")
    assert page.focus() == ids[4], "the one that is in its place now"
    tab.press("g")
    page.shows(ids[0])
    assert page.focus() == "shown", "the picture"
    with page.here.meddler.refused(f"/label/picture/large/{ids[2]}", 503):
        tab.send("Network.setCacheDisabled", cacheDisabled=True)
        tab.value(f"samples = samples.filter((s) => s.id === '{ids[2]}'), at = 0, draw()")
        tab.until("!document.getElementById('retry').hidden")
    tab.value("document.getElementById('retry').focus()")
    tab.press("Tab")
    tab.value("document.getElementById('retry').focus()")
    tab.press("Enter")
    page.shows(ids[2])
    assert page.focus() == "shown"


def test_filters_say_what_is_left_to_label_elsewhere(page: Labelled) -> None:
    tab = page.tab
    page.open(ON_ITS_SIDE)
    page.shows(page.ids[0])
    page.filter("state", "suggested")
    tab.until(
        "document.getElementById('empty').innerText.includes('6 pictures to label under other filters')"
    )
    page.tab.until("!busy")
    tab.click("#show-all", "Show what is left")
    page.shows(page.ids[0])
    page.here.store.label(page.ids, "helmet", "test")
    page.filter("label", "head")
    tab.until("document.getElementById('empty').innerText.includes('all 8 pictures have a label')")
    assert "other filters" not in tab.text("empty")


def test_keys_stay_where_they_are_as_labels_come(page: Labelled) -> None:
    page.open(DESKTOP)
    for i, name in enumerate(("2", "apron")):
        page.shows(page.ids[i])
        page.tab.click("#labels button", "new label")
        page.is_asked()
        page.tab.type(name)
        page.tab.press("Enter")
    page.shows(page.ids[2])
    assert page.tab.value("info.labels.join()") == "helmet,head,2,apron"
    page.tab.press("2")
    page.shows(page.ids[3])
    assert page.label_of(page.ids[2]) == "head", "as before"
    page.tab.press("4")
    page.shows(page.ids[4])
    assert page.label_of(page.ids[3]) == "apron"


def test_a_double_tap_undoes_one_step_and_cancels_one_question(page: Labelled) -> None:
    ids, tab = page.ids, page.tab
    page.open(PHONE)
    page.shows(ids[0])
    grid(page)
    for sample in ids[:2]:
        tab.click(f".cell[data-key='{sample}']")
        tab.until("ready()")
        page.tap("head")
        page.says("1 picture: head")
        tab.until("ready()")
    tab.value(
        "new Promise((done) => { $('undo').click(); const look = () => {"
        " if (busy) return requestAnimationFrame(look); $('undo').click(); done(); }; look(); })"
    )
    page.says("Undone: 1 picture")
    assert [page.label_of(s) for s in ids[:2]] == ["head", None]
    tab.click("#show-one")
    page.shows(ids[1])
    tab.click("#labels button", "new label")
    page.is_asked()
    tab.value(
        "new Promise((done) => { $('asking').addEventListener('close', () => done()); $('ask-no').click(); })"
        ".then(() => document.querySelector('#labels button').click())"
    )
    tab.until("ready()")
    assert page.label_of(ids[1]) is None, "the label lay under Cancel"


def test_what_is_not_loaded_is_not_chosen_in_the_grid(page: Labelled) -> None:
    tab, ids = page.tab, page.ids
    with page.here.meddler.held(f"/label/picture/small/{ids[0]}"):
        page.open(PHONE)
        page.shows(ids[0])
        tab.click("#show-grid")
        tab.until("view === 'grid' && ready()")
        tab.until("[...document.querySelectorAll('.cell img')].slice(1).every((e) => e.naturalWidth)")
        tab.click(f".cell[data-key='{ids[0]}']")
        assert "not loaded yet" in tab.text("said") and tab.value("chosen.size") == 0
        tab.until("ready()")
        tab.click("#skip", "All")
        page.says("1 picture not chosen")
        assert tab.value("chosen.size") == 5
        tab.until("ready()")
        page.tap("head")
        page.says("5 pictures: head")
    assert page.label_of(ids[0]) is None


def test_without_a_network_nothing_is_lost_and_it_goes_on(page: Labelled) -> None:
    tab, ids = page.tab, page.ids
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.open(PHONE)
    page.shows(ids[0])
    page.tap("head")
    page.shows(ids[1])
    tab.send("Network.emulateNetworkConditions", offline=True, **network)
    page.tap("helmet")
    page.says("The node does not answer")
    page.shows(ids[1])
    page.filter("state", "labelled")
    page.says("The node does not answer")
    assert tab.text("empty") == "The pictures could not be loaded."
    tab.send("Network.emulateNetworkConditions", offline=False, **network)
    page.filter("state", "todo")
    page.shows(ids[1])
    page.tap("helmet")
    page.shows(ids[2])
    assert [page.label_of(s) for s in ids[:3]] == ["head", "helmet", None]


def test_a_label_is_saved_though_the_page_is_left_at_once_and_found_after_going_back(page: Labelled) -> None:
    tab, ids = page.tab, page.ids
    page.open(PHONE)
    page.shows(ids[0])
    slow = {"offline": False, "latency": 400, "downloadThroughput": -1, "uploadThroughput": -1}
    tab.send("Network.emulateNetworkConditions", **slow)
    tab.value("document.querySelector('#labels [data-label=head]').click(); location.href = '../'")
    tab.until("document.getElementById('to-label')?.offsetHeight > 0")
    tab.send("Network.emulateNetworkConditions", **{**slow, "latency": 0})
    tab.value("history.back()")
    page.shows(ids[1])
    assert page.label_of(ids[0]) == "head"
    tab.send("Page.reload")
    tab.until("typeof info !== 'undefined' && info.total && !busy")
    page.shows(ids[1])
    tab.press("u")
    assert "on a page like this one" in page.is_asked(), "after a reload it does not know it as its own"


def test_two_phones_label_one_queue(page: Labelled, browser: Chromium) -> None:
    ids = page.ids
    with browser.tab() as second:
        page.open(PHONE)
        page.open(PHONE, second)
        page.shows(ids[0])
        page.shows(ids[0], second)
        for i in range(3):
            page.tap("head", second)
            page.shows(ids[i + 1], second)
        page.tap("head")  # the same: no question
        page.shows(ids[3])  # what the other one labelled meanwhile is not shown
        page.filter("order", "oldest")
        page.shows(ids[5])
        page.tap("helmet")
        page.shows(ids[4])
        page.tap("head", second)
        page.shows(ids[4], second)
    assert [page.label_of(s) for s in ids] == ["head"] * 4 + [None, "helmet"]
