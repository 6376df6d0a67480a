"""The labelling page of a node in a browser: opened, looked at, in windows of four sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.browser.chromium import Tab
from tests.browser.owners_pages import Node, node
from tests.unit.edge.labelling.parts import picture

from apiary_edge.samples.model import Added, Incoming, SampleId

SIZES: Final = ((390, 844), (844, 390), (1280, 800), (640, 400))
"""A phone, on its side, a desktop, and that at 200 %: a page is laid out as in a window of half the size."""
PHONE_AT_200: Final = (195, 422)


@dataclass
class Labelled:
    """The page of `here` in `tab`; `ids` wait for a label, in the order in which the page shows them."""

    tab: Tab
    here: Node
    ids: list[SampleId]

    def open(self, size: tuple[int, int] = SIZES[0], tab: Tab | None = None, *, cache: bool = True) -> None:
        """Open it; without `cache` each picture is fetched from the node, though it was fetched ahead."""
        tab = tab or self.tab
        tab.complaints.clear()
        tab.send("Network.setCacheDisabled", cacheDisabled=not cache)
        tab.screen(*size, touch=size[0] < 1000)
        tab.open(f"{self.here.address}label/?token={self.here.token}")

    def at_each_size(self) -> Iterator[int]:
        """Open it once, and count through the sizes while the window has them."""
        self.open()
        for i, size in enumerate(SIZES):
            self.tab.screen(*size, touch=size[0] < 1000)
            yield i

    def shows(self, sample: SampleId, tab: Tab | None = None) -> None:
        """Wait until the picture is on the screen and input is taken."""
        (tab or self.tab).until(
            f"document.getElementById('picture')?.src.includes('{sample}')"
            " && document.getElementById('picture').complete && ready()"
        )

    def tap(self, label: str, tab: Tab | None = None) -> None:
        (tab or self.tab).click("#labels button", label)

    def says(self, text: str) -> None:
        """Wait until the line above the labels has this text in it, and nothing goes on."""
        self.tab.until(f"document.getElementById('said').innerText.includes({text!r}) && !busy")

    def is_asked(self) -> str:
        """Wait for a question; its title and text."""
        self.tab.until("document.getElementById('asking').open")
        return f"{self.tab.text('ask-title')} {self.tab.text('ask-text')}"

    def filter(self, name: str, value: str) -> None:
        """Choose an option of a filter, as a person does."""
        change = "e.dispatchEvent(new Event('change', {bubbles: true}))"
        self.tab.value(
            f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}'; {change}; }})()"
        )

    def label_of(self, sample: SampleId) -> str | None:
        found = self.here.store.get(sample)
        assert found is not None
        return found.label

    def changes(self) -> list[str]:
        """The requests so far that change something."""
        changing = ("/label/api/label", "/label/api/delete", "/label/api/undo")
        return [path for path in self.here.meddler.seen if path in changing]

    def focus(self) -> Any:
        """What has the focus: a label, an id, or a picture of the grid."""
        return self.tab.value("(({dataset, id}) => dataset.key ?? id)(document.activeElement)")


@contextmanager
def labelling(tab: Tab, folder: Path, waiting: int = 12) -> Iterator[Labelled]:
    """A node with `waiting` pictures to label, the labels helmet and head, and its page, not opened yet."""
    with node(folder) as here:
        incoming = [Incoming(picture(i), f"drawn {i}") for i in range(waiting)]
        ids = [o.id for o in here.store.add_many(incoming) if isinstance(o, Added)][::-1]
        given = [Incoming(picture(100 + i), "drawn", label) for i, label in enumerate(("helmet", "head"))]
        list(here.store.add_many(given))
        here.store.number_labels(["helmet", "head"])
        yield Labelled(tab, here, ids)
