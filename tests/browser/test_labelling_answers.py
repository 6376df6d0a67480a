"""The labelling page where answers come late, fail or come out of order, and where others label as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser.axe import findings, needs_axe
from tests.browser.chromium import BINARY, Tab, chromium
from tests.browser.owners_pages import Node, node
from tests.unit.edge.labelling.parts import picture

from apiary_edge.samples.model import Added, Incoming, SampleId

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no chromium on this machine: tests/system-packages installs it"
)
SIZES = [(390, 844), (844, 390), (1280, 800), (640, 400), (195, 422)]
"""A phone, on its side, a desktop; at 200 % a browser lays a page out as in a window of half the size."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[tuple[Node, list[SampleId]]]:
    with node(tmp_path) as made:
        incoming = [Incoming(picture(i), f"drawn {i}") for i in range(6)]
        ids = [o.id for o in made.store.add_many(incoming) if isinstance(o, Added)][::-1]
        made.store.label(ids[4:5], "head", "test")
        made.store.label(ids[5:6], "helmet", "test")
        yield made, ids


def opened(tab: Tab, pi: Node, size: tuple[int, int] = (390, 844)) -> None:
    tab.complaints.clear()
    tab.screen(*size, touch=size[0] < 1000)
    tab.open(f"{pi.address}label/?token={pi.token}")


def shows(tab: Tab, sample: SampleId) -> None:
    tab.until(
        f"document.getElementById('picture')?.src.includes('{sample}')"
        " && document.getElementById('picture').complete"
        " && (typeof ready === 'function' ? ready() : !busy)"
    )


def label_of(pi: Node, sample: SampleId) -> str | None:
    found = pi.store.get(sample)
    assert found is not None
    return found.label


def test_no_input_is_taken_while_a_picture_loads(tab: Tab, pi: tuple[Node, list[SampleId]]) -> None:
    here, ids = pi
    with here.meddler.held(f"/label/picture/large/{ids[0]}") as gate:
        opened(tab, here)
        tab.until("document.querySelectorAll('#labels button').length > 1 && !busy")
        tab.press("1")
        tab.click("#labels button", "head")
        tab.until("!busy")
        assert "/label/api/label" not in here.meddler.seen
        tab.until("document.getElementById('working')?.hidden === false")
        gate.set()
        shows(tab, ids[0])
    tab.click("#labels button", "head")
    shows(tab, ids[1])
    assert label_of(here, ids[0]) == "head"


def test_a_picture_that_cannot_be_loaded_is_not_labelled_unseen(
    tab: Tab, pi: tuple[Node, list[SampleId]]
) -> None:
    here, ids = pi
    with here.meddler.refused(f"/label/picture/large/{ids[0]}", 503):
        opened(tab, here)
        tab.until("document.getElementById('said')?.classList.contains('bad')")
        tab.press("1")
        tab.until("!busy")
        assert "/label/api/label" not in here.meddler.seen
    tab.click("#retry")
    shows(tab, ids[0])


def test_a_second_tap_is_not_for_the_next_picture(tab: Tab, pi: tuple[Node, list[SampleId]]) -> None:
    here, ids = pi
    opened(tab, here)
    shows(tab, ids[0])
    with here.meddler.held("/label/api/label") as gate:
        tab.value("document.querySelector('#labels button').click()")
        tab.value("document.querySelector('#labels button').click()")
        gate.set()
        # As quickly as a page can: the tap comes in the very frame in which the next picture is there.
        tab.value(
            "new Promise((done) => { const look = () => { const p = document.getElementById('picture');"
            f" if (p.src.includes('{ids[1]}') && p.complete && !busy) {{"
            " document.querySelector('#labels button').click(); done(true); }"
            " else requestAnimationFrame(look); }; look(); })"
        )
    shows(tab, ids[1])
    assert [label_of(here, s) is None for s in ids[:3]] == [False, True, True]


def test_what_somebody_else_labelled_is_a_question(tab: Tab, pi: tuple[Node, list[SampleId]]) -> None:
    here, ids = pi
    opened(tab, here)
    shows(tab, ids[0])
    here.store.label(ids[:1], "vest", "ann")
    tab.click("#labels button", "head")
    tab.until("document.getElementById('asking').open")
    assert "vest" in tab.value("document.getElementById('ask-title').innerText")
    assert "ann" in tab.value("document.getElementById('ask-text').innerText")
    assert tab.value("document.activeElement.innerText") == "Keep theirs"
    tab.press("Enter")
    shows(tab, ids[1])
    assert label_of(here, ids[0]) == "vest"
    here.store.label(ids[1:2], "vest", "ann")
    tab.click("#labels button", "head")
    tab.until("document.getElementById('asking').open")
    tab.click("#ask-yes", "Use mine")
    shows(tab, ids[2])
    assert label_of(here, ids[1]) == "head"


def test_a_picture_that_is_gone_says_so(tab: Tab, pi: tuple[Node, list[SampleId]]) -> None:
    here, ids = pi
    opened(tab, here)
    shows(tab, ids[0])
    here.store.delete(ids[:1])
    tab.click("#labels button", "head")
    tab.until("document.getElementById('said').innerText.includes('gone')")
    shows(tab, ids[1])
    assert label_of(here, ids[1]) is None


def test_undo_takes_no_labelling_of_somebody_else_unasked(tab: Tab, pi: tuple[Node, list[SampleId]]) -> None:
    here, ids = pi
    opened(tab, here)
    shows(tab, ids[0])
    tab.click("#labels button", "head")
    shows(tab, ids[1])
    here.store.label(ids[3:4], "vest", "ann")
    tab.press("u")
    tab.until("document.getElementById('asking').open")
    tab.click("#ask-no")
    tab.until("!busy")
    assert (label_of(here, ids[3]), label_of(here, ids[0])) == ("vest", "head")


def test_a_failed_request_keeps_the_picture_and_can_be_repeated(
    tab: Tab, pi: tuple[Node, list[SampleId]]
) -> None:
    here, ids = pi
    opened(tab, here)
    shows(tab, ids[0])
    tab.value("document.querySelector('#labels button[data-label=head]').focus()")
    with here.meddler.refused("/label/api/label", 503):
        tab.press(" ")
        tab.until("document.getElementById('said').classList.contains('bad')")
    shows(tab, ids[0])
    assert tab.value("document.activeElement.dataset.label") == "head", "the focus stays"
    tab.press(" ")
    shows(tab, ids[1])
    assert label_of(here, ids[0]) == "head"
    assert tab.value("document.activeElement.dataset.label") == "head"


def test_what_was_done_and_not_answered_is_not_done_twice(tab: Tab, pi: tuple[Node, list[SampleId]]) -> None:
    here, ids = pi
    opened(tab, here)
    shows(tab, ids[0])
    tab.click("#labels button", "head")
    shows(tab, ids[1])
    with here.meddler.lost("/label/api/label"):
        tab.click("#labels button", "helmet")
        tab.until("document.getElementById('said').classList.contains('bad')")
    shows(tab, ids[1])
    tab.click("#labels button", "helmet")  # the same label is there already: that counts as done
    shows(tab, ids[2])
    with here.meddler.lost("/label/api/undo"):
        tab.press("u")
        tab.until("document.getElementById('asking').open")
        tab.click("#ask-yes", "Undo")  # that labelling had no answer: the page does not know it as its own
        tab.until("document.getElementById('said').classList.contains('bad')")
    tab.until("ready(true)")
    tab.press("u")
    tab.until("document.getElementById('said').innerText.startsWith('Undone')")
    assert [label_of(here, s) for s in ids[:3]] == ["head", None, None]


def test_hardhat_or_another_spelling_is_asked(tab: Tab, pi: tuple[Node, list[SampleId]]) -> None:
    here, ids = pi
    opened(tab, here)
    shows(tab, ids[0])
    tab.click("#labels button", "new label")
    tab.type("Helmet")
    tab.press("Enter")
    tab.until("document.getElementById('ask-title').innerText === 'helmet or Helmet?'")
    tab.click("#ask-yes")
    shows(tab, ids[1])
    assert label_of(here, ids[0]) == "helmet"


@needs_axe
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_twenty_five_labels_fit_and_nothing_is_wrong(
    tab: Tab, pi: tuple[Node, list[SampleId]], size: tuple[int, int], tmp_path: Path
) -> None:
    here, ids = pi
    for i in range(25):
        here.store.label(ids[4:5], f"kind {i}", "test")
    incoming = [Incoming(picture(40 + i), f"more {i}", f"kind {i}") for i in range(25)]
    list(here.store.add_many(incoming))
    opened(tab, here, size)
    tab.until("document.querySelectorAll('#labels button').length > 25")
    shows(tab, ids[0])
    assert tab.value("document.documentElement.scrollWidth") <= size[0]
    box = tab.value("document.getElementById('picture').getBoundingClientRect().toJSON()")
    assert box["width"] * box["height"] > 0.2 * size[0] * size[1], "the picture is small"
    assert findings(tab) == []
    tab.picture(tmp_path / "page.png")
    tab.click("#labels button", "new label")
    tab.until("document.getElementById('asking').open")
    assert findings(tab) == []
    assert tab.complaints == []
