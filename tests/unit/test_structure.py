"""The shape of the product's code: folders that can be read at a glance, names with one meaning, no bags."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.places import ROOT

ROOTS = ("core/apiary", "coordinator/apiary_coordinator", "edge/apiary_edge", "cli/apiary_cli")
MAX_MODULES = 20
MAX_PARAMETERS = 8
"""Of a constructor, or fields of a dataclass: more is a bag that hides what its user needs."""
DATA = {
    "CardPlan": "what a card holds, as plain data",
    "Candidate": "a finished model as publishers read it",
    "Fault": "one fault of a schedule",
    "Imported": "what an import of a folder did",
    "Issued": "a row of the authority's index",
    "Parity": "what the export gate measured of one runtime",
    "Readings": "one look at a machine",
    "Rollout": "the state of a release's way through the fleet",
    "Round": "the state of a round",
    "Sample": "a row of the sample store",
    "Session": "the state of a node's part in a round",
}
"""Values, not services: what they hold belongs together, and is written down or compared as a whole."""
PLUG_IN_NAMES = {"Options"}
"""What each plug-in of a kind has under the same name."""


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for root in ROOTS:
        for path in sorted((ROOT / root).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                yield path, node


def parameters(node: ast.ClassDef) -> int:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return len(method.args.args) + len(method.args.kwonlyargs) - 1
    if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return 0
    fields = [s for s in node.body if isinstance(s, ast.AnnAssign) and "ClassVar" not in ast.unparse(s)]
    return sum(
        not ast.unparse(f.target).startswith("_") and "init=False" not in ast.unparse(f) for f in fields
    )


def too_large(found: Iterator[tuple[Path, ast.ClassDef]]) -> list[str]:
    return [
        f"{path}: {node.name} has {parameters(node)}"
        for path, node in found
        if parameters(node) > MAX_PARAMETERS and not node.name.startswith("_") and node.name not in DATA
    ]


def test_no_folder_has_more_modules_than_a_reader_can_see() -> None:
    counted: dict[Path, int] = defaultdict(int)
    for path in [*(path for path, _ in modules()), *(ROOT / "tests").rglob("*.py")]:
        counted[path.parent] += path.name != "__init__.py"
    crowded = {f: n for f, n in counted.items() if n > MAX_MODULES and f.name != "commands"}
    assert not crowded


def test_a_public_class_name_has_one_meaning() -> None:
    found: dict[str, list[Path]] = defaultdict(list)
    for path, node in classes():
        if not node.name.startswith("_") and node.name not in PLUG_IN_NAMES:
            found[node.name].append(path)
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_services_are_handed_over_as_what_their_user_needs() -> None:
    assert too_large(classes()) == []


@pytest.mark.parametrize(
    "text",
    [
        "class Bag:\n    def __init__(self, a, b, c, d, e, f, g, h, i): ...",
        "@dataclass\nclass Bag:\n" + "".join(f"    f{i}: int\n" for i in range(9)),
    ],
    ids=["constructor", "dataclass"],
)
def test_a_bag_is_found(text: str) -> None:
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.ClassDef)
    assert too_large(iter([(Path("bag.py"), node)])) == ["bag.py: Bag has 9"]
