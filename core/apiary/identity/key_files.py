"""A certificate and its key on disk, which a renewal replaces one after the other.

The new key waits as `key.new.pem` beside the old one until its certificate is there. Where power goes between
the two, the certificate fits the key that waits, and whoever needs the pair puts that in its place.
"""

import logging
from pathlib import Path

from apiary.files import sync_folder

log = logging.getLogger(__name__)


def waiting_key(key: Path) -> Path:
    """Where a renewal keeps the new key until its certificate is there: `key.new.pem` for `key.pem`."""
    return key.with_suffix(f".new{key.suffix}")


def candidates(key: Path) -> list[Path]:
    """The key in use, then the one that waits, if there is one."""
    waiting = waiting_key(key)
    return [key, waiting] if waiting.exists() else [key]


def put_in_place(found: Path, key: Path) -> None:
    """Put the key that fits where it belongs; who may not write there leaves that to the next renewal."""
    if found == key:
        return
    log.warning("%s belongs to the certificate in use: a renewal was cut short; finishing it", found)
    try:
        found.replace(key)
        sync_folder(key.parent)
    except OSError as e:
        log.warning("%s stays where it is (%s): the next `apiary pki renew` moves it", found, e.strerror)
