"""One-time tokens: only their hashes are kept, each is used by one device and ends by itself.

The first request with a token binds it to that device's keys. The very same keys may come again while the
token holds, because an answer can be lost on its way to a Pi at the edge of its Wi-Fi; others may not.
"""

import argparse
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apiary.errors import SettingsError, StoreError
from apiary.files import write_json
from apiary.folder_lock import LOCK_S, hold
from apiary.identity.roles import Identity
from apiary_cli.terminal.flags import read

MAX_TOKEN: Final = 100
MAX_TOKENS: Final = 10_000
MAX_USES: Final = 5
"""Answers that may be lost."""
MAX_TTL_S: Final = 90 * 86_400.0
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens in an authority's folder. 192 random bits each, so that a plain hash hides them."""

    folder: Path
    wall: Callable[[], float] = time.time

    def make(self, whom: Identity, ttl_s: float, *, again: bool = False) -> str:
        """A new token; it is nowhere else but in what this returns. Raises SettingsError."""
        token = secrets.token_hex(24)  # no sign that a command line could take for a flag
        with self._changing() as held:
            if len(held) >= MAX_TOKENS:
                raise SettingsError(
                    f"{MAX_TOKENS} tokens are out already: cancel some, or wait for their end"
                )
            held[_hash(token)] = {
                "name": whom.name, "role": str(whom.role), "until": self.wall() + ttl_s, "again": again
            }  # fmt: skip
        return token

    def take(self, token: str, whom: Identity, keys: str) -> bool | None:
        """Use a token of `whom` for a device with `keys`, a digest of them; None: not allowed.

        Returns whether `whom` takes the place of what has the name already. What is refused uses nothing up:
        whoever mistook the name or the role may try again.
        """
        with self._changing() as held:
            found = held.get(_hash(token))
            if found is None or (found["name"], found["role"]) != (whom.name, whom.role):
                return None
            if found.get("keys", keys) != keys:
                return None
            uses = found.get("uses", 0) + 1
            if uses > MAX_USES:
                return None
            held[_hash(token)] = {**found, "keys": keys, "uses": uses}
        return bool(found["again"]) or uses > 1

    def holds(self, token: str) -> bool:
        """Whether it was not taken back, and is not over."""
        with self._changing() as held:
            return _hash(token) in held

    def cancel(self, name: str) -> int:
        """Take back all tokens of `name`; how many."""
        with self._changing() as held:
            gone = [h for h, t in held.items() if t["name"] == name]
            for h in gone:
                del held[h]
        return len(gone)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        file, lock = self.folder / "tokens.json", self.folder / "tokens.lock"
        refused = StoreError(f"another `apiary pki` holds {lock}: try again when it is done")
        with hold(lock, refused, wait_s=LOCK_S):
            try:
                before = json.loads(file.read_bytes()) if file.exists() else {}
            except (OSError, ValueError) as e:
                raise StoreError(f"{file} cannot be read ({e}): remove it, and make new tokens") from None
            now = self.wall()
            held = {h: t for h, t in before.items() if t["until"] > now}
            yield held
            if held != before:
                write_json(file, held)


def seconds(text: str) -> float:
    """`30m`, `24h`, `7d` in seconds. Raises SettingsError."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if found is None or not 0 < (value := int(found[1]) * _UNITS[found[2]]) <= MAX_TTL_S:
        raise SettingsError(f"--ttl {text!r}: expected such as 30m, 24h or 7d, at most 90d")
    return value


def given_token(args: argparse.Namespace) -> str | None:
    """The token of `--token-file` or `--token`, None without either. Raises SettingsError, DataError."""
    if args.token is not None and args.token_file is not None:
        raise SettingsError("give --token-file FILE or --token T, not both")
    if args.token_file is not None:
        return checked_token(read(args.token_file).decode(errors="replace"))
    return checked_token(str(args.token)) if args.token is not None else None


def checked_token(text: str) -> str:
    """A token without the blanks around it. Raises SettingsError where it is none."""
    token = text.strip()
    if not token or not token.isascii() or len(token) > MAX_TOKEN:
        raise SettingsError(
            "no token: `apiary pki token NAME` on the server makes one; type or pipe it in, or name a "
            "file by --token-file"
        )
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
