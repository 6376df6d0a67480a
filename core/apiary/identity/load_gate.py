"""Which gate a service gets: one that verifies signatures where the settings name an authority."""

from collections.abc import Callable
from pathlib import Path

from apiary.identity.gate import OPEN, MessageGate
from apiary.identity.roles import Role
from apiary.settings import SecuritySettings


def load_gate(
    security: SecuritySettings,
    role: Role,
    name: str | None,
    marks: Path | None,
    wall: Callable[[], float],
) -> MessageGate:
    """The gate according to the settings; `OPEN` without security.ca. Raises SettingsError, StoreError.

    `name`: whom this party's certificate must name. `marks`: the file that guards against repetition;
    None for a party that comes and goes, which keeps it in memory.
    """
    if security.ca is None:
        return OPEN
    from apiary.identity.credentials import FileGate  # loads `cryptography`: 17 MB that an open gate saves

    return FileGate(security, role, name, marks, wall)
