"""Which slips are made, and that the list of harmless ones speaks of code that is there."""

from __future__ import annotations

import ast

import pytest
from tests.mutants.main import Count, harmless
from tests.mutants.modules import TESTS, files_at, files_for, modules
from tests.mutants.mutations import function_source, mutants
from tests.places import ROOT

SOURCE = '''
"""A module."""

MOST = 3


class Shelf:
    """Holds things."""

    def __init__(self) -> None:
        self.kept: list[int] = []

    def put(self, thing: int, *, loud: bool = False) -> bool | None:
        """Keep it."""
        if loud and thing > 1:
            log.info("thing=%d", thing)
        self.kept.append(thing)
        if not self.kept[:MOST]:
            raise ValueError(f"{thing + 1} is too much")
        return None
'''


def test_the_slips_of_a_module() -> None:
    found = mutants("core/shelf", SOURCE)
    keys = {m.key.removeprefix("core/shelf::") for m in found}
    assert {
        "::MOST = 3: 3 -> 4",
        "Shelf.put::loud and thing > 1 -> loud or thing > 1",
        "Shelf.put::loud and thing > 1 -> loud",
        "Shelf.put::thing > 1 -> thing >= 1",
        "Shelf.put::self.kept.append(thing) -> pass",
        "Shelf.put::not self.kept[:MOST] -> self.kept[:MOST]",
        "Shelf.put::self.kept[:MOST] -> self.kept",
    } <= keys
    assert not [k for k in keys if "log.info" in k or ("thing + 1" in k and "raise" not in k)]


def test_a_mutant_is_the_module_with_one_change_and_leaves_the_module_as_it_was() -> None:
    whole = ast.unparse(ast.parse(SOURCE))
    found = mutants("core/shelf", SOURCE)
    sources = [m.source for m in found]
    assert len(set(sources)) == len(sources) and whole not in sources
    assert sources == [m.source for m in found]
    assert [m.lines for m in found if "append" in m.key] == [range(17, 18)]


def test_the_same_text_twice_in_a_function_is_told_apart() -> None:
    found = mutants("core/two", "def f(a: int) -> None:\n    g(a)\n    g(a)\n")
    assert [m.key for m in found] == ["core/two::f::g(a) -> pass", "core/two::f::g(a) -> pass #2"]


def test_a_function_is_found_by_its_name() -> None:
    assert function_source(SOURCE, "Shelf.put").startswith("def put(")
    assert function_source(SOURCE, "Shelf.gone") == SOURCE


def test_the_share_is_of_those_that_are_not_harmless() -> None:
    assert Count(tried=20, noticed=18, harmless=1).share == 18 / 19
    assert Count(tried=2, noticed=0, harmless=2).share == 1.0


def test_the_harmless_are_mutants_of_this_code_each_with_its_reason() -> None:
    reasons = harmless()
    named = {key.split("::")[0] for key in reasons}
    assert named <= set(modules())
    there = {m.key for name in named for m in mutants(name, (ROOT / modules()[name]).read_text())}
    assert [key for key in reasons if key not in there] == []
    assert [key for key, why in reasons.items() if len(why) < 20] == []


def test_every_module_is_there_and_has_tests() -> None:
    for name, file in modules().items():
        assert (ROOT / file).is_file(), name
        assert files_for(name), name


def test_every_test_that_is_named_is_there_and_named_for_a_module() -> None:
    for beginning, places in TESTS.items():
        assert len(files_at(places)) >= len(places)
        assert [name for name in modules() if name.startswith(beginning)], beginning


@pytest.mark.parametrize("place", ["fleet/test_moved_away.py", "fleet/nowhere", "fixtures"])
def test_a_test_that_is_named_and_not_there_is_an_error(place: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"tests/{place}"):
        files_at(["golden", place])
