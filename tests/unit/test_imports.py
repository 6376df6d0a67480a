"""The imports of the four packages, those inside of functions included, have no circle."""

from __future__ import annotations

import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest


def circle(*packages: str) -> str | None:
    """The modules of one circle, each importing the one before it; None where there is none."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as e:
        return " <- ".join(e.args[1])
    return None


def test_no_circle() -> None:
    assert circle("apiary", "apiary_cli", "apiary_coordinator", "apiary_edge") is None


def test_a_circle_that_a_late_import_hides_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ring"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "one.py").write_text("import ring.two\n")
    (folder / "two.py").write_text("def later():\n    from ring import one\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = circle("ring")
    assert found is not None and {"ring.one", "ring.two"} <= set(found.split(" <- "))
