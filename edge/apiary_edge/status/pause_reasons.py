"""Why a node does not train at present: the operator, the heat, no pictures. Pure."""

from __future__ import annotations


class PauseReasons:
    """Reasons by who gave them; the node trains while there is none."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}

    def set(self, who: str, why: str | None) -> bool:
        """Give, change or take back (None) a reason; whether that changed anything."""
        if self._why.get(who) == why:
            return False
        if why is None:
            del self._why[who]
        else:
            self._why[who] = why
        return True

    @property
    def why(self) -> str | None:
        """All of them in a line, or None."""
        return "; ".join(self._why.values()) or None
