"""The labelling page where answers come late, fail or come out of order, and where others label as well.

What a label goes to is tried at the sizes of a phone, a phone on its side, a desktop, and that at 200 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser.chromium import BINARY, Chromium, Tab
from tests.browser.labelling_page import SIZES, Labelled, labelling

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no chromium on this machine: tests/system-packages installs it"
)
LABEL, UNDO, DELETE = "/label/api/label", "/label/api/undo", "/label/api/delete"


@pytest.fixture
def page(tab: Tab, tmp_path: Path) -> Iterator[Labelled]:
    with labelling(tab, tmp_path) as made:
        yield made


def test_no_input_is_taken_while_a_picture_loads(page: Labelled) -> None:
    tab, meddler = page.tab, page.here.meddler
    page.here.store.set_suggestions("m" * 64, [(s, "helmet", 0.3 + i / 90) for i, s in enumerate(page.ids)])
    for i, size in enumerate(SIZES):
        with meddler.held(f"/label/picture/large/{page.ids[i]}") as gate:
            page.open(size, cache=False)
            tab.until("document.querySelectorAll('#labels button').length > 1 && !busy")
            tab.until("performance.now() - endedAt > SETTLE_MS")  # nothing but the picture is waited for
            before = page.changes()
            for key in ("1", "Enter", "ArrowRight", "Delete", "u"):
                tab.press(key)
            page.tap("head")
            tab.until("!busy && document.getElementById('working')?.hidden === false")
            assert page.changes() == before and not tab.value("document.getElementById('asking').open")
            assert tab.value("at") == 0
            gate.set()
            page.shows(page.ids[i])
        page.tap("head")
        page.shows(page.ids[i + 1])
        assert page.label_of(page.ids[i]) == "head"


def test_a_picture_that_cannot_be_loaded_is_not_labelled_unseen(page: Labelled) -> None:
    for size in SIZES:
        with page.here.meddler.refused(f"/label/picture/large/{page.ids[0]}", 503):
            page.open(size, cache=False)
            page.tab.until("document.getElementById('said')?.innerText.includes('could not be loaded')")
            page.tab.until("ready(true)")
            page.tab.press("1")
            page.tap("head")
            page.tab.until("!busy")
            assert page.changes() == []
        page.tab.click("#retry")
        page.shows(page.ids[0])


def test_a_picture_that_is_gone_says_so_where_it_should_appear(page: Labelled) -> None:
    for i, size in enumerate(SIZES):
        with page.here.meddler.held(f"/label/picture/large/{page.ids[i]}") as gate:
            page.open(size, cache=False)
            page.tab.until("document.querySelectorAll('#labels button').length > 1 && !busy")
            page.here.store.delete(page.ids[i : i + 1])
            gate.set()
            page.says("This picture is gone")
        page.shows(page.ids[i + 1])
        assert page.tab.text("said").startswith("This picture is gone"), "the next one's coming hides it"
    assert page.changes() == []


def test_a_second_tap_is_not_for_the_next_picture(page: Labelled) -> None:
    tap = "document.querySelector('#labels button').click()"
    for i in page.at_each_size():
        page.shows(page.ids[i])
        with page.here.meddler.held(LABEL) as gate:
            page.tab.value(tap)
            page.tab.value(tap)
            gate.set()
            # As quickly as a page can: the tap comes in the very frame in which the next picture is there.
            page.tab.value(
                "new Promise((done) => { const look = () => { const p = document.getElementById('picture');"
                f" if (p.src.includes('{page.ids[i + 1]}') && p.complete && !busy) {{ {tap}; done(true); }}"
                " else requestAnimationFrame(look); }; look(); })"
            )
        page.shows(page.ids[i + 1])
        assert [page.label_of(s) is None for s in page.ids[i : i + 3]] == [False, True, True]
    assert page.changes() == [LABEL] * len(SIZES)


def test_a_key_that_is_held_down_labels_one_picture(page: Labelled) -> None:
    for i in page.at_each_size():
        page.shows(page.ids[i])
        page.tab.hold("1")
        page.shows(page.ids[i + 1])
        page.tab.hold("1", again=True)  # the next picture is there, and input is taken
        page.tab.let_go("1")
        page.tab.until("!busy")
        assert [page.label_of(s) for s in page.ids[i : i + 2]] == ["helmet", None]
    assert page.changes() == [LABEL] * len(SIZES)


def test_what_somebody_else_labelled_is_a_question(page: Labelled) -> None:
    ids = page.ids
    for i in page.at_each_size():
        page.shows(ids[2 * i])
        page.here.store.label(ids[2 * i : 2 * i + 1], "vest", "ann")
        page.tap("head")
        asked = page.is_asked()
        assert "It has “vest” by now" in asked and "by ann" in asked
        assert page.tab.value("document.activeElement.innerText") == "Keep theirs"
        page.tab.press("Enter")
        page.shows(ids[2 * i + 1])
        assert page.label_of(ids[2 * i]) == "vest"
        page.here.store.label(ids[2 * i + 1 : 2 * i + 2], "vest", "ann")
        page.tap("head")
        page.is_asked()
        page.tab.click("#ask-yes", "Use mine")
        page.shows(ids[2 * i + 2])
        assert page.label_of(ids[2 * i + 1]) == "head"


def test_what_somebody_else_labelled_is_not_deleted_unasked(page: Labelled) -> None:
    ids = page.ids
    for i in page.at_each_size():
        page.shows(ids[i])
        page.tab.click("#delete")
        page.is_asked()
        page.here.store.label(ids[i : i + 1], "vest", "ann")  # while the first question stands
        page.tab.click("#ask-yes", "Delete")
        page.tab.until("document.getElementById('ask-title').innerText.includes('vest')")
        assert "by ann" in page.is_asked() and page.label_of(ids[i]) == "vest"
        page.tab.click("#ask-no", "Keep")
        page.says("Nothing was deleted")
        page.tab.until("ready(true)")
        page.tab.click("#delete")
        page.tab.click("#ask-yes", "Delete")
        page.shows(ids[i + 1])
        assert page.here.store.get(ids[i]) is None


def test_a_picture_that_is_gone_says_so(page: Labelled) -> None:
    for i in page.at_each_size():
        page.shows(page.ids[i])
        page.here.store.delete(page.ids[i : i + 1])
        page.tap("head")
        page.says("This picture is gone")
        page.shows(page.ids[i + 1])
        assert page.label_of(page.ids[i + 1]) is None


def test_undo_takes_no_labelling_of_somebody_else_unasked(page: Labelled) -> None:
    ids = page.ids
    for i in page.at_each_size():
        page.shows(ids[i])
        page.tap("head")
        page.shows(ids[i + 1])
        page.here.store.label(ids[-1 - i : len(ids) - i], "vest", "ann")
        page.tab.press("u")
        assert "by ann" in page.is_asked()
        page.tab.click("#ask-no")
        page.tab.until("ready(true)")
        assert (page.label_of(ids[-1 - i]), page.label_of(ids[i])) == ("vest", "head")


def test_a_failed_request_keeps_the_picture_and_can_be_repeated(page: Labelled) -> None:
    tab = page.tab
    for i in page.at_each_size():
        page.shows(page.ids[i])
        tab.value("document.querySelector('#labels button[data-label=head]').focus()")
        with page.here.meddler.refused(LABEL, 503):
            tab.press(" ")
            page.says("the disk is full")
        page.shows(page.ids[i])
        assert page.focus() == "head", "the focus stays"
        tab.press(" ")
        page.shows(page.ids[i + 1])
        assert page.label_of(page.ids[i]) == "head" and page.focus() == "head"
        with page.here.meddler.refused(DELETE, 503):
            tab.click("#delete")
            tab.click("#ask-yes", "Delete")
            page.says("the disk is full")
        page.shows(page.ids[i + 1])


def test_what_was_done_and_not_answered_is_not_done_twice(page: Labelled) -> None:
    ids, tab = page.ids, page.tab
    page.open(SIZES[1])
    page.shows(ids[0])
    page.tap("head")
    page.shows(ids[1])
    with page.here.meddler.lost(LABEL):
        page.tap("helmet")
        page.says("the answer was lost")
    page.shows(ids[1])
    page.tap("helmet")  # the same label is there already: that counts as done
    page.shows(ids[2])
    with page.here.meddler.lost(UNDO):
        tab.press("u")
        page.is_asked()  # that labelling had no answer: the page does not know it as its own
        tab.click("#ask-yes", "Undo")
        page.says("the answer was lost")
    tab.until("ready(true)")
    tab.press("u")
    tab.until("document.getElementById('said').innerText.startsWith('Undone')")
    assert [page.label_of(s) for s in ids[:3]] == ["head", None, None]


def test_the_filters_that_were_chosen_last_count_whichever_answer_comes_last(page: Labelled) -> None:
    page.open(SIZES[2])
    page.shows(page.ids[0])
    with page.here.meddler.first_held("/label/api/page") as gate:
        page.filter("state", "labelled")
        page.filter("order", "oldest")
        page.filter("state", "all")
        gate.set()
        page.shows(page.ids[-1])
    assert page.tab.value("samples.length") == 14


@pytest.mark.parametrize("late", ["state", "page"])
def test_pictures_and_counts_may_come_in_either_order(page: Labelled, late: str) -> None:
    with page.here.meddler.held(f"/label/api/{late}") as gate:
        page.open(SIZES[3])
        page.tab.until("document.getElementById('working')?.hidden === false")
        page.tab.press("1")
        gate.set()
        page.shows(page.ids[0])
    page.tab.press("1")
    page.shows(page.ids[1])
    assert page.changes() == [LABEL]


def test_a_picture_that_comes_late_is_not_taken_for_the_one_on_the_screen(page: Labelled) -> None:
    first, other = page.ids[0], page.ids[-1]
    meddler = page.here.meddler
    with (
        meddler.held(f"/label/picture/large/{first}") as gate,
        meddler.held(f"/label/picture/large/{other}") as other_gate,
    ):
        page.open(SIZES[0], cache=False)
        page.tab.until("document.querySelectorAll('#labels button').length > 1 && !busy")
        page.filter("order", "oldest")
        page.tab.until(f"document.getElementById('picture').src.includes('{other}') && !busy")
        gate.set()  # the one that was wanted before is here now
        page.tab.until(f"fetch('picture/large/{first}').then((a) => a.ok)")
        page.tab.until("performance.now() - endedAt > SETTLE_MS")
        page.tab.press("1")
        page.tap("head")
        assert page.changes() == []
        other_gate.set()
        page.shows(other)


def test_of_two_phones_the_one_that_is_answered_later_is_asked(page: Labelled, browser: Chromium) -> None:
    with browser.tab() as second:
        for i, size in enumerate(SIZES):
            page.open(size)
            page.open(size, second)
            page.shows(page.ids[i])
            page.shows(page.ids[i], second)
            with page.here.meddler.first_held(LABEL) as gate:
                page.here.meddler.seen.clear()
                page.tap("head")
                page.here.meddler.wait_for(LABEL)
                page.tap("helmet", second)
                page.shows(page.ids[i + 1], second)
                gate.set()
                assert "It has “helmet” by now" in page.is_asked()
            page.tab.click("#ask-no")
            page.shows(page.ids[i + 1])
            assert page.label_of(page.ids[i]) == "helmet"


def test_in_the_grid_one_that_changed_or_is_gone_stops_none_of_the_others(page: Labelled) -> None:
    tab, (mine, theirs, gone) = page.tab, page.ids[:3]
    page.open(SIZES[1])
    page.shows(mine)
    tab.click("#show-grid")
    tab.until("document.querySelectorAll('.cell').length > 3 && ready()")
    tab.until("[...document.querySelectorAll('.cell img')].slice(0, 3).every((e) => e.naturalWidth)")
    for sample in (mine, theirs, gone):
        tab.click(f".cell[data-key='{sample}']")
    page.here.store.label([theirs], "vest", "ann")
    page.here.store.delete([gone])
    page.tap("head")
    assert "It has “vest” by now" in page.is_asked()
    assert page.label_of(mine) is None, "all of it, or none"
    tab.click("#ask-no")
    page.says("1 picture: head")
    assert (page.label_of(mine), page.label_of(theirs)) == ("head", "vest")


def test_hardhat_or_another_spelling_is_asked(page: Labelled) -> None:
    page.open(SIZES[2])
    page.shows(page.ids[0])
    page.tab.click("#labels button", "new label")
    page.is_asked()
    page.tab.type("Helmet")
    page.tab.press("Enter")
    page.tab.until("document.getElementById('ask-title').innerText === 'helmet or Helmet?'")
    page.tab.click("#ask-yes")
    page.shows(page.ids[1])
    assert page.label_of(page.ids[0]) == "helmet"
