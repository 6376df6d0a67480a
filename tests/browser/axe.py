"""axe-core, run in the open page: what it finds wrong for people who use a keyboard or a screen reader."""

from __future__ import annotations

from typing import Final

import pytest
from tests.browser.chromium import Tab
from tests.places import AXE

_RUN: Final = """
axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations.map((v) =>
  `${v.id}: ${v.help}: ` + v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("; ")))
"""

needs_axe = pytest.mark.skipif(
    not AXE.is_file(), reason="no axe-core: `make test` fetches it where there is npm"
)


def findings(tab: Tab) -> list[str]:
    """Every rule of axe-core's that the page breaks, and where."""
    if not tab.value("'axe' in window"):
        tab.value(AXE.read_text(encoding="utf-8") + "; true")
    found: list[str] = tab.value(_RUN)
    return found
