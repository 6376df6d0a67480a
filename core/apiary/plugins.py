"""A plug-in is a module in its kind's package, named by its file: adding one is adding one file."""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from apiary.errors import SettingsError


@functools.cache
def names(package: str) -> tuple[str, ...]:
    """Names of all plug-ins of a kind, sorted; `base` and names with a leading underscore are none."""
    # Looked up once: a codec is loaded for each update, and its folder need not be read for each.
    path = importlib.import_module(package).__path__
    found = (m.name for m in pkgutil.iter_modules(path))
    return tuple(sorted(name for name in found if name != "base" and not name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """Import the plug-in `name` of the kind that `package` holds. Raises SettingsError."""
    check(package, name)
    return importlib.import_module(f"{package}.{name}")


def check(package: str, name: str) -> None:
    """Raises SettingsError with the names that there are where `name` is none of them; imports no plug-in."""
    known = names(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1]
        raise SettingsError(f"{kind}: no {name!r}{suggestion(name, known)} There are: {', '.join(known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest of the `known` as a question, or a stop."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."
