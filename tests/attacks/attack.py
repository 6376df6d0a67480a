"""A row of `make attacks`: one function that attacks a fleet of real processes, and says what came of it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from tests.attacks.ground import Ground


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was tried, in figures, and what the honest nodes got. A row that does not hold raises."""

    tried: str
    honest: str


Row = Callable[[Ground], Outcome]


@dataclass(frozen=True, slots=True)
class Attack:
    """One row of the table."""

    name: str
    title: str
    run: Row
    mend: str | None = None
    """In `tests/attacks/unmended.py`; None: it is the broker's, or is not taken out here."""


_FOUND: dict[str, Attack] = {}


def attack(title: str, *, mend: str | None = None) -> Callable[[Row], Row]:
    """Make a function of a module in `tests/attacks/rows/` a row; its name is the row's."""

    def register(run: Row) -> Row:
        assert run.__name__ not in _FOUND, f"two rows are named {run.__name__}"
        _FOUND[run.__name__] = Attack(run.__name__, title, run, mend)
        return run

    return register


def attacks() -> dict[str, Attack]:
    """Every row by its name, in the order of the files in `rows/` and of the functions in each."""
    from tests.attacks import rows

    for module in sorted(m.name for m in pkgutil.iter_modules(rows.__path__)):
        importlib.import_module(f"tests.attacks.rows.{module}")
    return dict(_FOUND)
