"""What runs a training step: one runtime a file. what each must offer is in `base`."""

from typing import Final, cast

from apiary.errors import RuntimeUnavailable
from apiary.learn.runtimes.base import Runtime
from apiary.plugins import load, names

_PREFERRED: Final = ("litert", "keras")
"""Lightest first; a runtime that is not named here comes after these."""


def choose(name: str = "auto") -> Runtime:
    """The runtime of that name, or the lightest that this machine can use.

    Raises RuntimeUnavailable with each reason, SettingsError for a name that there is not.
    """
    reasons = []
    for each in _order() if name == "auto" else (name,):
        runtime = cast("Runtime", load(__name__, each))
        why = runtime.unavailable()
        if why is None:
            return runtime
        reasons.append(f"{each}: {why}")
    raise RuntimeUnavailable("no runtime can train here. " + "; ".join(reasons))


def usable() -> list[str]:
    """Names of the runtimes that this machine can use, the preferred first."""
    return [n for n in _order() if cast("Runtime", load(__name__, n)).unavailable() is None]


def _order() -> list[str]:
    rank = {name: i for i, name in enumerate(_PREFERRED)}
    return sorted(names(__name__), key=lambda n: (rank.get(n, len(rank)), n))
