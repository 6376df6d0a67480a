"""What is known of releases, in one file that is whole or not there: written before anything is published."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from apiary.errors import StoreError
from apiary.files import write_json
from apiary.settings import ReleaseSettings
from apiary.wire.messages import Release, ReleaseCurrent
from apiary_coordinator.releases.rollout import Rollout
from apiary_coordinator.releases.rollout_events import Pins

log = logging.getLogger(__name__)

NAME: Final = "releases.json"
MAX_HISTORY: Final = 200
MAX_RELEASES: Final = 200
"""Remembered by name; the files of most are gone long before (`release.keep`)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A release and its outcome."""

    release: Release
    outcome: str = "rolling"


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """A line of the history; `at` is seconds since 1970."""

    at: float
    text: str
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Book:
    """Everything that must survive. `serial` is the highest that was used."""

    serial: int = 0
    entries: Mapping[str, Entry] = field(default_factory=dict)
    rollout: Rollout | None = None
    pins: Pins = field(default_factory=Pins)
    history: tuple[HistoryLine, ...] = ()

    def with_rollout(self, rollout: Rollout, note: HistoryLine) -> Book:
        """The roll-out as it stands now, and why."""
        entries = dict(self.entries)
        name = rollout.release.name
        entries[name] = Entry(rollout.release, rollout.state)
        while len(entries) > MAX_RELEASES:
            entries.pop(next(n for n in entries if n not in self.in_use(rollout)))
        return replace(
            self,
            rollout=rollout,
            pins=rollout.pins,
            entries=entries,
            history=(*self.history, note)[-MAX_HISTORY:],
        )

    def next_serial(self, wall: float) -> int:
        """Larger than all before, also where the folder was lost: the clock takes part."""
        return max(self.serial + 1, int(wall * 1000))

    def stable(self) -> Release | None:
        """What the fleet is to have where the next release fails."""
        if self.rollout is None:
            return None
        return self.rollout.release if self.rollout.state == "done" else self.rollout.stable

    def in_use(self, rollout: Rollout | None = None) -> set[str]:
        """Releases that some node is to have."""
        now = rollout or self.rollout
        named = [now.release, now.stable] if now is not None else []
        return {r.name for r in named if r is not None} | set(self.pins.releases)


def current(rollout: Rollout, serial: int) -> ReleaseCurrent:
    """The message for the fleet."""
    return ReleaseCurrent(
        serial=serial,
        state=rollout.state,
        release=rollout.release,
        share=rollout.share,
        canaries=list(rollout.canaries),
        stable=rollout.stable,
        pins=dict(rollout.pins.nodes),
        tag_pins=dict(rollout.pins.tags),
        pinned=list(rollout.pins.releases.values()),
    )


class Ledger:
    """The book on disk."""

    def __init__(self, folder: Path, policy: ReleaseSettings):
        self._path = folder / NAME
        self.book = _read(self._path, policy)

    def write(self, book: Book) -> None:
        """Journal it; it counts when this returns. Raises StoreError."""
        write_json(self._path, _to_json(book))
        self.book = book


def _to_json(book: Book) -> dict[str, Any]:
    rollout = book.rollout
    return {
        "v": 1,
        "serial": book.serial,
        "releases": [
            {"release": e.release.model_dump(exclude_none=True), "outcome": e.outcome}
            for e in book.entries.values()
        ],
        "pins": {"nodes": dict(book.pins.nodes), "tags": dict(book.pins.tags)},
        "rollout": None
        if rollout is None
        else {
            "release": rollout.release.name,
            "stable": rollout.stable.name if rollout.stable is not None else None,
            "state": rollout.state,
            "wave": rollout.wave,
            "share": rollout.share,
            "canaries": list(rollout.canaries),
            "members": sorted(rollout.members),
            "why": rollout.why,
        },
        "history": [{"at": n.at, "text": n.text, "bad": n.bad} for n in book.history],
    }


def _read(path: Path, policy: ReleaseSettings) -> Book:
    try:
        stored = json.loads(path.read_bytes())
        if stored["v"] == 1:
            return _from_json(stored, policy)
    except FileNotFoundError:
        return Book()
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, ValidationError) as e:
        return _begun_anew(path, str(e)[:100])
    raise StoreError(
        f"{path} is not a record of releases of version 1, but {str(stored['v'])[:20]}: upgrade the "
        "program, or move the file away; the nodes keep what they have"
    )


def _begun_anew(path: Path, why: str) -> Book:
    """A torn record must not keep the fleet from training: no release is published until one is created.

    Serials go on by the clock, so that nodes take the next release as newer.
    """
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except OSError as e:
        raise StoreError(f"{path} is not a record of releases ({why}), and {e.strerror}") from None
    log.error(
        "%s is not a record of releases (%s): moved to %s. The nodes keep what they have; restore a backup "
        "of it, or create the next release",
        path, why, aside.name,
    )  # fmt: skip
    return Book()


def _from_json(stored: dict[str, Any], policy: ReleaseSettings) -> Book:
    entries = {}
    for one in stored["releases"]:
        release = Release.model_validate(one["release"])
        entries[release.name] = Entry(release, str(one["outcome"]))
    nodes, tags = dict(stored["pins"]["nodes"]), dict(stored["pins"]["tags"])
    pins = Pins(nodes, tags, {n: entries[n].release for n in sorted({*nodes.values(), *tags.values()})})
    return Book(
        serial=int(stored["serial"]),
        entries=entries,
        rollout=_rollout(stored["rollout"], entries, pins, policy),
        pins=pins,
        history=tuple(HistoryLine(float(n["at"]), str(n["text"]), bool(n["bad"])) for n in stored["history"]),
    )


def _rollout(
    stored: dict[str, Any] | None, entries: Mapping[str, Entry], pins: Pins, policy: ReleaseSettings
) -> Rollout | None:
    if stored is None:
        return None
    return Rollout(
        release=entries[stored["release"]].release,
        stable=entries[stored["stable"]].release if stored["stable"] is not None else None,
        policy=policy,
        state=stored["state"],
        # The waves of the settings may be fewer than those it began with.
        wave=min(int(stored["wave"]), len(policy.waves) - 1),
        share=float(stored["share"]),
        canaries=tuple(stored["canaries"]),
        members=frozenset(stored["members"]),
        why=str(stored["why"]),
        pins=pins,
    )
