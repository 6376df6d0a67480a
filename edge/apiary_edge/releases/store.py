"""The slots on disk: `current.json` for whoever predicts, `ledger.json` for what must not be forgotten.

A file is named by its digest and is never changed. At most three are kept: the current release, the one
before it, and one that is being tested. The order of writes is such that after a power cut at any of them
the node has the old release or the new one, whole, and still refuses what it refused.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from apiary.errors import StoreError
from apiary.files import clear_partial, make_folder, remove, sha256_of, sync_folder, write_json
from apiary.wire.messages import Release
from apiary_edge.releases.slot import Findings, Slot, from_json, slot_of, to_json

log = logging.getLogger(__name__)

CURRENT: Final = "current.json"
LEDGER: Final = "ledger.json"
FILES: Final = "files"
MAX_REFUSED: Final = 50
"""Refusals remembered; a release that old is not offered any more."""


def folder_of(state_dir: Path) -> Path:
    """Where a node's slots lie."""
    return state_dir / "slots"


def current_file(state_dir: Path) -> Path:
    """Describes the release that is installed."""
    return folder_of(state_dir) / CURRENT


def current(state_dir: Path) -> Slot | None:
    """The slot to predict with, read from `current.json` for any process; None where there is none."""
    return _read_current(folder_of(state_dir))


def described(slot: Slot) -> dict[str, Any]:
    """The content of `current.json`."""
    return to_json(slot) | {"file": f"{FILES}/{slot.path.name}"}


class ReleaseStore:
    """The node's slots. One process at a time writes them (the node's state folder is held)."""

    def __init__(self, folder: Path):
        """Take up what is there: files that nothing names are removed, a damaged release is given up."""
        self.folder = folder
        make_folder(folder / FILES)
        clear_partial(folder)
        ledger = _read(folder / LEDGER) or {}
        self.serial = _whole(ledger.get("serial"))
        self.key: str | None = ledger.get("key") if isinstance(ledger.get("key"), str) else None
        record = ledger.get("refused")
        self.refused: dict[str, str] = (
            {str(k): str(v) for k, v in record.items()} if isinstance(record, dict) else {}
        )
        self.previous = _slot(ledger.get("previous"), folder)
        self.current = _read_current(folder)
        self._mend()
        self.tidy()

    def seen(self, serial: int) -> None:
        """Remember the highest serial number; what is lower from now on is a replay."""
        if serial > self.serial:
            self._write(serial=serial)

    def pin_key(self, key: str) -> None:
        """Trust this release key from now on."""
        self._write(key=key)

    def path(self, release: Release) -> Path:
        """Where the file of a release lies, whether or not it is there."""
        return self.folder / FILES / f"{release.file.digest}.{release.kind}"

    def take(self, blob: Path, release: Release) -> Path:
        """Give a downloaded, verified file its place, executable where it is a program. Raises StoreError."""
        path = self.path(release)
        try:
            if not path.is_file():
                aside = path.with_name(f".{path.name}.part")
                aside.unlink(missing_ok=True)
                try:
                    os.link(blob, aside)  # another name for the same bytes: no room is needed twice
                except OSError:
                    shutil.copyfile(blob, aside)
                    with aside.open("rb") as f:
                        os.fsync(f.fileno())
                aside.chmod(0o755 if release.kind == "eim" else 0o644)
                aside.replace(path)
                sync_folder(path.parent)
            whole = sha256_of(path) == release.file.digest
            if not whole:
                path.unlink()
        except OSError as e:
            raise StoreError(f"cannot keep release {release.name} in {self.folder}: {e.strerror}") from e
        if not whole:
            raise StoreError(f"release {release.name} was damaged on this node's disk and has been removed")
        return path

    def swap(self, release: Release, tested: Findings) -> Slot:
        """From now on this one; the one before is kept. Raises StoreError."""
        slot = slot_of(release, self.path(release), tested)
        if self.current is not None and self.current.digest != slot.digest:
            # First, so that no cut leaves the old one without a name.
            self._write(previous=self.current)
        self._set(slot)
        self.tidy()
        return slot

    def restore(self, release: Release | None = None) -> Slot | None:
        """Back to the release before, under the name and attempt of `release` where one is given."""
        slot = self.previous
        if slot is not None and release is not None:
            slot = slot.model_copy(update={"release": release.name, "attempt": release.attempt})
        self._set(slot)
        self._write(previous=None)
        self.tidy()
        return slot

    def clear(self) -> None:
        """No release any more."""
        self._set(None)
        self._write(previous=None)
        self.tidy()

    def refuse(self, release: str, attempt: int, why: str) -> None:
        """Never again this attempt at this release."""
        kept = list(self.refused.items())[-(MAX_REFUSED - 1) :]
        self._write(refused={**dict(kept), _key(release, attempt): why})

    def why_refused(self, release: str, attempt: int) -> str | None:
        """Why this attempt at this release is refused, None where it is not."""
        return self.refused.get(_key(release, attempt))

    def _set(self, slot: Slot | None) -> None:
        path = self.folder / CURRENT
        if slot is None:
            remove(path)  # the ledger, which is written next, syncs the folder
        else:
            write_json(path, described(slot))
        self.current = slot

    def _write(self, **changed: Any) -> None:
        record = {name: getattr(self, name) for name in ("serial", "key", "refused", "previous")} | changed
        slot = record["previous"]
        write_json(
            self.folder / LEDGER,
            {"v": 1, **record, "previous": to_json(slot) if slot is not None else None},
        )
        for name, value in changed.items():
            setattr(self, name, value)

    def _mend(self) -> None:
        """A release that was refused while it was current, or whose file is damaged, is not used."""
        if self.previous is not None and not _whole_file(self.previous):
            log.warning("slot release=%s (the one before) is damaged and given up", self.previous.release)
            self._write(previous=None)
        if self.current is None:
            return
        refused = self.why_refused(self.current.release, self.current.attempt)
        if refused is None and _whole_file(self.current):
            return
        log.warning(
            "slot release=%s %s; back to %s",
            self.current.release,
            "was refused" if refused else "is damaged",
            self.previous.release if self.previous is not None else "none",
        )
        self.restore()

    def tidy(self) -> None:
        """Remove the files of releases that are neither the current one nor the one before."""
        named = {s.path.name for s in (self.current, self.previous) if s is not None}
        with contextlib.suppress(OSError):
            for path in (self.folder / FILES).iterdir():
                if path.name not in named:
                    path.unlink()


Open = Callable[[str, bytes], bytes]
"""Topic and payload to the message without its seal. Raises SignatureRefused."""


def opened_before(topic: str, payload: bytes) -> bytes:
    """Where the fleet has an authority every message is opened before any part of the node sees it."""
    return payload


def trusting(store: ReleaseStore, pinned: str | None) -> Open:
    """Opens what the release key sealed: the one given, else the one seen first, which the store keeps."""

    def open_(topic: str, payload: bytes) -> bytes:
        # Only here: a node that never hears of a release needs no cryptography in its memory.
        from apiary.identity.release_key import PinnedKey

        key = PinnedKey(pinned or store.key)
        opened = key.open(topic, payload)
        if key.pinned is not None and pinned is None and store.key is None:
            store.pin_key(key.pinned)
            log.warning(
                "releases signed with the key %s are trusted from now on, because it came first; to choose "
                "it yourself, set edge.slots.release_key",
                key.pinned,
            )
        return opened

    return open_


def _key(release: str, attempt: int) -> str:
    return f"{release}/{attempt}"


def _read_current(folder: Path) -> Slot | None:
    return _slot(_read(folder / CURRENT), folder)


def _slot(record: Any, folder: Path) -> Slot | None:
    if not isinstance(record, dict):
        return None
    try:
        return from_json(record | {"file": str(record["file"]).removeprefix(f"{FILES}/")}, folder / FILES)
    except (ValueError, KeyError, TypeError):
        log.warning("%s: a slot that cannot be read is left out", folder)
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        log.warning("%s cannot be read and is left out: %s", path, e)
        return None
    return value if isinstance(value, dict) else None


def _whole(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _whole_file(slot: Slot) -> bool:
    try:
        return sha256_of(slot.path) == slot.digest
    except OSError:
        return False
