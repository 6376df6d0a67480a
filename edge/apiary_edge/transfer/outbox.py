"""Updates that wait for their receipt, on disk: a PUBACK only says that the broker has a message."""

import json
import logging
import os
from pathlib import Path
from typing import Final

from apiary.errors import MessageError, StoreError
from apiary.files import clear_partial, make_folder, remove, sha256_of, write_atomic, write_json
from apiary.wire import Digest
from apiary.wire.messages import Offer

log = logging.getLogger(__name__)

MAX_WAITING: Final = 4
"""Updates kept at once; a node makes one a round, so more means that rounds ended without an answer."""


class Outbox:
    """A folder with `DIGEST.update`, `DIGEST.json` (its offer) and `done.json`, the last answered round."""

    def __init__(self, folder: Path):
        self._folder = folder
        make_folder(folder)
        clear_partial(folder)

    def put(self, update: Path, offer: Offer) -> None:
        """Move a finished update in. The offer is written last: without it the update does not exist."""
        target = self._update(Digest(offer.update.digest))
        try:
            # The child has synced the bytes; the offer's writing syncs both names.
            update.replace(target)
        except OSError as e:
            raise StoreError(f"cannot move the update to {target}: {e.strerror}") from e
        write_atomic(target.with_suffix(".json"), offer.encode())
        for old in self._offers()[:-MAX_WAITING]:
            log.warning("outbox full: dropping the update of run=%s round=%d", old.run, old.round)
            self.remove(Digest(old.update.digest))

    def waiting(self) -> list[Offer]:
        """Offers of updates that are whole, oldest first; torn ones are removed. Raises StoreError."""
        whole: list[Offer] = []
        for offer in self._offers():
            digest = Digest(offer.update.digest)
            try:
                good = sha256_of(self._update(digest)) == digest
            except OSError:
                good = False
            if good:
                whole.append(offer)
            else:
                log.warning("outbox: the update of round=%d was torn; it is made again", offer.round)
                self.remove(digest)
        for stray in self._folder.glob("*.update"):
            if not stray.with_suffix(".json").exists():
                remove(stray)
        return whole

    def read_part(self, digest: Digest, offset: int, length: int) -> bytes:
        """A part of an update's bytes. Raises StoreError."""
        try:
            fd = os.open(self._update(digest), os.O_RDONLY)
            try:
                data = os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except OSError as e:
            raise StoreError(f"the update {digest[:12]} cannot be read: {e.strerror}") from e
        if len(data) != length:
            raise StoreError(
                f"the update {digest[:12]} was cut short: {len(data)} of {length} bytes at {offset}"
            )
        return data

    def remove(self, digest: Digest) -> None:
        """Forget an update: the offer first, so that a power cut leaves no offer without its update.

        Raises StoreError.
        """
        remove(self._update(digest).with_suffix(".json"))
        remove(self._update(digest))

    def set_done(self, run: str, round_number: int) -> None:
        """Remember the last round that was answered, so that it is not trained again."""
        write_json(self._folder / "done.json", [run, round_number], indent=None)

    def done(self) -> tuple[str, int] | None:
        """The last round that was answered."""
        try:
            run, number = json.loads((self._folder / "done.json").read_text(encoding="utf-8"))
            return str(run), int(number)
        except (OSError, ValueError, TypeError):
            return None

    def forget_done(self) -> None:
        """Let the last answered round be trained again. Raises StoreError."""
        remove(self._folder / "done.json")

    def _update(self, digest: Digest) -> Path:
        return self._folder / f"{digest}.update"

    def _offers(self) -> list[Offer]:
        found: list[tuple[float, Offer]] = []
        for path in self._folder.glob("*.json"):
            if path.name == "done.json":
                continue
            try:
                found.append((path.stat().st_mtime, Offer.decode(path.read_bytes(), who=str(path))))
            except (OSError, MessageError):
                remove(path)
        return [offer for _, offer in sorted(found, key=lambda f: f[0])]
