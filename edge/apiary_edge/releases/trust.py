"""Who may say what this node's release is: opens the seal of `release/current`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from apiary_edge.releases.store import ReleaseStore

log = logging.getLogger(__name__)

Open = Callable[[str, bytes], bytes]
"""Topic and payload to the message without its seal. Raises SignatureRefused."""


def opened_before(topic: str, payload: bytes) -> bytes:
    """Where the fleet has an authority every message is opened before any part of the node sees it."""
    return payload


def trusting(shelf: ReleaseStore, pinned: str | None) -> Open:
    """Opens what the release key sealed: the one given, else the one seen first, which the shelf keeps."""

    def open_(topic: str, payload: bytes) -> bytes:
        # Only here: a node that never hears of a release needs no cryptography in its memory.
        from apiary.identity.release_key import PinnedKey

        key = PinnedKey(pinned or shelf.key)
        opened = key.open(topic, payload)
        if key.pinned is not None and pinned is None and shelf.key is None:
            shelf.pin_key(key.pinned)
            log.warning(
                "releases signed with the key %s are trusted from now on, because it came first; to choose "
                "it yourself, set edge.slots.release_key",
                key.pinned,
            )
        return opened

    return open_
