"""The index of an authority: every certificate that it issued, which are revoked, when it last changed. Pure.

What is revoked stays in it for ever: a clock that is wrong, or a backup, must not let anybody in again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from apiary.identity.authority import BACKDATED
from apiary.identity.revocations import Crl
from apiary.identity.roles import Identity, Role

RENEWABLE: Final = 1 / 3
"""A certificate may be renewed once this part of its term is left."""
KEPT_S: Final = 365 * 86_400.0
"""Certificates stay in the index for so long after their end, those that were revoked for ever."""
MAX_PAUSE_S: Final = KEPT_S
"""A clock that is further past the last change is not believed. No more than `KEPT_S`: a clock that is wrong
by less then makes the index forget nothing that is not over by a right one."""


Phase = Literal["", "devices", "servers"]
"""Of a replacement: all but servers get certificates of the new authority, then servers too."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in the index. Times in seconds since 1970."""

    serial: str
    name: str
    role: Role
    use: str
    not_before: float
    not_after: float
    sha256: str
    names: tuple[str, ...] = ()
    revoked: float | None = None

    @property
    def identity(self) -> Identity:
        """Whom it speaks of."""
        return Identity(self.name, self.role)

    def state(self, now: float) -> str:
        """`valid`, `expired` or `revoked`."""
        return "revoked" if self.revoked is not None else "expired" if now > self.not_after else "valid"

    def due(self, now: float) -> bool:
        """Whether so little of its term is left that it may be renewed."""
        return now > self.not_after - (self.not_after - self.not_before) * RENEWABLE


@dataclass(slots=True)
class Index:
    """`index.json`. `changed`: the latest time at which it was changed, by the authority's own clock."""

    issued: list[Issued] = field(default_factory=list)
    crl_number: int = 0
    changed: float = 0.0
    elsewhere: dict[str, float] = field(default_factory=dict)
    """Revoked serials that only a list names, and since when: they were issued after a backup was made."""
    readmitted: dict[str, float] = field(default_factory=dict)
    """Names whose certificates may be renewed although they are over, and until when."""
    phase: Phase = ""
    """How far the authority's own replacement is: the former one is trusted while it is not empty."""
    by_former: list[str] = field(default_factory=list)
    """Serials of the former authority that were valid when it was begun, or were issued since."""

    @classmethod
    def decode(cls, raw: Mapping[str, Any]) -> Index:
        """Raises ValueError for another version, KeyError or TypeError where it is torn."""
        if raw.get("version") != 1:
            raise ValueError(f"version {raw.get('version')!r}, expected 1")
        issued = [_issued(entry) for entry in raw["issued"]]
        # The version before kept no such time; each certificate shows when it was made.
        known = (i.not_before + BACKDATED.total_seconds() for i in issued)
        changed = float(raw.get("changed", max(known, default=0.0)))
        index = cls(issued, int(raw["crl_number"]), changed)
        index.elsewhere, index.readmitted = dict(raw.get("elsewhere", {})), dict(raw.get("readmitted", {}))
        index.phase, index.by_former = raw.get("phase", ""), list(raw.get("by_former", ()))
        return index

    def encode(self) -> dict[str, Any]:
        """As JSON; the version before reads it, and ignores what it does not know."""
        return {
            "version": 1,
            "issued": [asdict(entry) for entry in self.issued],
            "crl_number": self.crl_number,
            "changed": self.changed,
            "elsewhere": self.elsewhere,
            "readmitted": self.readmitted,
            "phase": self.phase,
            "by_former": self.by_former,
        }

    def believes(self, now: float) -> bool:
        """Whether a clock that shows `now` can be right: it is not far past the last change."""
        return now <= self.changed + MAX_PAUSE_S

    def best_time(self, now: float) -> float:
        """`now` where that can be right, otherwise the last time that could be."""
        return now if self.believes(now) else self.changed

    def standing(self, name: str, now: float) -> list[Issued]:
        """The certificates of `name` that are valid at `now`, oldest first."""
        return [i for i in self.issued if i.name == name and i.state(now) == "valid"]

    def still_former(self, now: float, *, servers: bool) -> list[str]:
        """Names whose newest valid certificates are the former authority's: only `servers`, or all others."""
        newest = {(i.name, i.use): i for i in self.issued if i.state(now) == "valid"}
        former = set(self.by_former)
        return sorted(
            {i.name for i in newest.values() if (i.role is Role.SERVER) is servers and i.serial in former}
        )

    def readmits(self, old: Issued, now: float) -> bool:
        """Whether a certificate that is over, and was not revoked, may be renewed all the same."""
        return old.state(now) == "expired" and now < self.readmitted.get(old.name, 0.0)

    def revoke(self, which: Callable[[Issued], bool], now: float) -> list[Issued]:
        """Revoke what `which` names and is not revoked; those that are over too: a clock may be wrong."""
        gone = []
        for at, entry in enumerate(self.issued):
            if entry.revoked is None and which(entry):
                self.issued[at] = replace(entry, revoked=now)
                gone.append(self.issued[at])
                self.readmitted.pop(entry.name, None)
        return gone

    def revoked(self) -> dict[int, float]:
        """Every revoked serial number, and since when."""
        own = {i.serial: i.revoked for i in self.issued if i.revoked is not None}
        return {int(serial, 16): since for serial, since in {**self.elsewhere, **own}.items()}

    def absorb(self, crls: Iterable[Crl]) -> int:
        """Revoke here what these lists name; how many that were not."""
        known = self.revoked()
        found = {
            entry.serial_number: entry.revocation_date_utc.timestamp()
            for crl in crls
            for entry in crl
            if entry.serial_number not in known
        }
        by_serial = {f"{serial:x}": since for serial, since in found.items()}
        for at, entry in enumerate(self.issued):
            if entry.serial in by_serial:
                self.issued[at] = replace(entry, revoked=by_serial.pop(entry.serial))
        self.elsewhere.update(by_serial)
        return len(found)

    def shut_out(self, now: float) -> list[str]:
        """Names that have a revoked certificate and no valid one left: the broker shall not hear them."""
        states = {(i.name, i.state(now)) for i in self.issued}
        return sorted(name for name, state in states if state == "revoked" and (name, "valid") not in states)

    def roles(self) -> dict[str, Role]:
        """What everybody who is not revoked is, by the newest certificate, whether that is over or not."""
        return {i.name: i.role for i in self.issued if i.revoked is None}

    def forget(self, now: float) -> None:
        """Drop what was never revoked and is long over: it is refused without a list."""
        self.readmitted = {name: until for name, until in self.readmitted.items() if until > now}
        self.issued = [i for i in self.issued if i.revoked is not None or i.not_after > now - KEPT_S]


def _issued(raw: dict[str, Any]) -> Issued:
    return Issued(**{**raw, "role": Role(raw["role"]), "names": tuple(raw.get("names", ()))})
