"""`publish.json` of a run: what was published where, and the steps of it that are done."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from apiary.errors import PublishError, StoreError
from apiary.files import write_json
from apiary.folder_lock import hold

NAME: Final = "publish.json"


class PublishRecord:
    """One entry of the file. Steps done for something else than `wanted` are forgotten."""

    def __init__(self, folder: Path, entry: str, wanted: Mapping[str, Any], *, again: bool = False):
        self._folder = folder
        self._entry = entry
        known = read(folder).get(entry, {})
        same = known.get("wanted") == wanted and not again
        self._value: dict[str, Any] = {
            "wanted": dict(wanted),
            "state": known.get("state", "begun") if same else "begun",
            "steps": dict(known.get("steps", {})) if same else {},
            "result": known.get("result") if same else None,
            "error": None,
        }

    @property
    def result(self) -> dict[str, Any] | None:
        """What an earlier publishing of the same came to, None where it did not end well."""
        return self._value["result"] if self._value["state"] == "done" else None

    @property
    def steps(self) -> Mapping[str, Any]:
        """Name to result of the steps that are done."""
        steps: dict[str, Any] = self._value["steps"]
        return steps

    def step(self, name: str, result: Any) -> None:
        """A step is done; on disk when this returns."""
        self._value["steps"][name] = result
        self._write("begun")

    def forget(self, name: str) -> None:
        """A step must be done again."""
        if self._value["steps"].pop(name, None) is not None:
            self._write("begun")

    def done(self, result: Mapping[str, Any]) -> None:
        """All is done."""
        self._value["result"] = dict(result)
        self._write("done")

    def failed(self, why: str) -> None:
        """It failed; the steps that are done stay done."""
        self._value["error"] = why
        self._write("failed")

    def _write(self, state: str) -> None:
        self._value |= {"state": state, "updated": round(time.time(), 3)}
        write_json(
            self._folder / NAME, {"v": 1, "published": read(self._folder) | {self._entry: self._value}}
        )


def read(folder: Path) -> dict[str, Any]:
    """All entries of a run's publish.json, none where there is no such file. Raises StoreError."""
    path = folder / NAME
    try:
        value = json.loads(path.read_bytes())
        published = value["published"]
        if value["v"] != 1 or not all(isinstance(e, dict) for e in published.values()):
            raise ValueError
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(
            f"{path} is not a record of publishing: move it away, and all is published anew"
        ) from None
    return dict(published)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run's folder against a second publishing of it. Raises PublishError."""
    with hold(folder, PublishError(f"{folder} is being published by another process: wait for it")):
        yield
