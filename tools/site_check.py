"""Check the built documentation: every link leads somewhere, and no page loads anything from another host.

Run by `make docs` after mkdocs, whose strict mode checks the sources; this checks the result, offline.
Usage: `python tools/site_check.py build/site`.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_LOADS: Final = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
_HINTS: Final = {"canonical", "next", "prev", "alternate"}
"""`<link rel=...>` that a browser does not fetch."""


class PageParser(HTMLParser):
    """Collects the ids, links and resources of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag names."""
        values = {name: value or "" for name, value in attrs}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        wanted = _LOADS.get(tag)
        if wanted in values and not (tag == "link" and values.get("rel") in _HINTS):
            self.loads.append(values[wanted])


def problems(site: Path) -> list[str]:
    """One line for every link without a target and every resource of another host."""
    pages = {}
    for path in site.rglob("*.html"):
        pages[path.resolve()] = parser = PageParser()
        parser.feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        if where.name == "404.html":  # served at any address; its links begin at the site's root
            continue
        for link in (*page.links, *page.loads):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                found.append(f"{where}: {link} leads to no file")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                found.append(f"{where}: {link} leads to no place on {target.name}")
        for load in page.loads:
            if urlsplit(load).netloc:
                found.append(f"{where}: {load} is loaded from another host")
    for path in site.rglob("*.css"):
        for url in re.findall(
            r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)", path.read_text(encoding="utf-8")
        ):
            found.append(f"{path.relative_to(site)}: {url} is loaded from another host")
    return found


def main() -> int:
    """Print what is wrong; 1 where anything is."""
    site = Path(sys.argv[1])
    found = problems(site)
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages: every link leads somewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
