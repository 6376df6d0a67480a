"""A process of a row with that row's mend taken out, so that the row must not hold.

python tests/attacks/unmended.py MEND party SETTINGS.toml NAME
python tests/attacks/unmended.py MEND cli WORDS...
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.stand_ins import fleet_party

import apiary.http.server
from apiary.http.places import Room
from apiary_cli.main import main as cli
from apiary_coordinator.fleet import roster
from apiary_coordinator.round import aggregation, runner
from apiary_coordinator.updates import screening

_NOT_SILENT: Final = 1e9


def _put(module: Any, name: str, value: object) -> Callable[[], None]:
    def put() -> None:
        assert hasattr(module, name), f"{module.__name__} has no {name}: the mend is elsewhere now"
        setattr(module, name, value)

    return put


MENDS: Final[dict[str, Callable[[], None]]] = {
    # The cap on weights is what a claim may be at all.
    "weights": _put(runner, "weight_cap", lambda samples, goal, ratio: 2**24),
    # The bound on norms is the setting's alone.
    "norms": _put(runner, "norm_bound", lambda last, model, clip, most: most),
    # Nothing is left out of a mean.
    "leave-out": _put(aggregation, "without_harmful", lambda pulls, found, *_, **__: ([], found)),
    # An update's numbers are not looked at.
    "numbers": _put(screening, "_screen_numbers", lambda *_: None),
    # An update may have the bytes that the setting allows, whatever the model.
    "bytes": _put(runner, "_most_bytes", lambda bounds, plan, server: bounds.max_bytes),
    # No node is ever silent.
    "silence": _put(roster, "SILENT_AFTER", _NOT_SILENT),
    # Nobody gives way: the first that come keep their places.
    "places": _put(
        apiary.http.server,
        "room_for",
        lambda party, taken, limits: Room(free=len(taken) < limits.max_connections),
    ),
}
"""What is put in place of a mend, by its name in `attack(..., mend=)`."""


def main(mend: str, what: str, *words: str) -> int:
    MENDS[mend]()
    if what == "cli":
        return cli(list(words))
    fleet_party.main(*words)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
