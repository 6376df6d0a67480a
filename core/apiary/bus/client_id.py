"""Client ids that nobody else can guess.

A broker ends the connection of whoever has a client id when another connects with it, whatever the other's
name and certificate are (mosquitto 2.0.11, measured): with ids that follow from names, every node could shut
every other out. A node keeps its id, so that after a power cut it takes its own old connection's place.
"""

import re
import secrets
from pathlib import Path
from typing import Final

from apiary.files import write_atomic

_SECRET: Final = re.compile(r"[0-9a-f]{16}")


def passing_id(prefix: str) -> str:
    """An id for one process."""
    return f"{prefix}-{secrets.token_hex(8)}"


def lasting_id(prefix: str, folder: Path) -> str:
    """The id that is kept in `folder`, made where there is none. Raises StoreError."""
    file = folder / "client-id"
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        secret = ""
    if not _SECRET.fullmatch(secret):
        secret = secrets.token_hex(8)
        write_atomic(file, f"{secret}\n".encode(), mode=0o600)
    return f"{prefix}-{secret}"
