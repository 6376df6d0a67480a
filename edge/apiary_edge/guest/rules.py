"""When training pauses, why, and when it goes on. Pure: readings, settings and times come as arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from apiary.settings import GuestSettings
from apiary_edge.health.readings import MB, Readings
from apiary_edge.hours import Hours

_MORE: Final = 1.25
"""Memory and disk must have so many times the bound again before training goes on."""
_DAY_MIN: Final = 24 * 60


class Reason(Enum):
    """Why a node does not train now."""

    HEAT = "heat"
    POWER = "power"
    HOURS = "hours"
    MEMORY = "memory"
    DISK = "disk"

    @property
    def brief(self) -> bool:
        """Whether it passes soon and asks for no memory: the child is frozen, and loses nothing."""
        return self in (Reason.HEAT, Reason.POWER)


@dataclass(frozen=True, slots=True)
class TrainingPause:
    """A node at rest; empty `why`: it trains. `since` is monotonic, `well_since` from when none applied."""

    why: Mapping[Reason, str] = field(default_factory=dict)
    since: float = 0.0
    well_since: float | None = None

    def __bool__(self) -> bool:
        return bool(self.why)

    @property
    def text(self) -> str | None:
        """All reasons in a line, or None."""
        return "; ".join(self.why.values()) or None

    def frees_memory(self, now: float, guest: GuestSettings) -> bool:
        """Whether the training child is ended rather than frozen."""
        return bool(self.why) and (
            not all(reason.brief for reason in self.why) or now - self.since >= guest.freeze_s
        )


def judge(
    found: Readings,
    guest: GuestSettings,
    hours: Hours,
    minute: int,
    *,
    held: Mapping[Reason, str],
    wanted_memory: int = 0,
) -> dict[Reason, str]:
    """What speaks against training now. `minute` of the local day; what is `held` passes later than it came.

    `wanted_memory` (bytes) must be there on top of the bound before a pause for memory ends: else what was
    ended for its memory would begin again on what it had freed.
    """
    why: dict[Reason, str] = {}
    if found.heat is not None and found.heat.counts:
        limit = guest.max_temperature_c - (guest.cool_by_c if Reason.HEAT in held else 0.0)
        if found.heat.celsius > limit:
            why[Reason.HEAT] = (
                f"{found.heat.celsius:.0f} degrees Celsius, more than {guest.max_temperature_c:g} "
                f"(edge.guest.max_temperature_c); goes on at {guest.max_temperature_c - guest.cool_by_c:g}"
            )
    if guest.pause_on_under_voltage and found.under_voltage:
        why[Reason.POWER] = "under-voltage: the power supply or its cable is too weak"
    if not hours.open_at(minute):
        why[Reason.HOURS] = f"outside edge.guest.hours ({', '.join(guest.hours)})"
    least = guest.min_memory_mb * MB
    if Reason.MEMORY in held:
        least = int(least * _MORE) + wanted_memory
    if found.memory_available is not None and found.memory_available < least:
        why[Reason.MEMORY] = (
            f"{found.memory_available // MB} MB of memory available, less than {least // MB} "
            "(edge.guest.min_memory_mb)"
        )
    least = int(guest.min_disk_mb * MB * (_MORE if Reason.DISK in held else 1))
    if found.disk_free is not None and found.disk_free < least:
        why[Reason.DISK] = (
            f"{found.disk_free // MB} MB left on the disk, less than {least // MB} (edge.guest.min_disk_mb)"
        )
    return why


def advance(pause: TrainingPause, why: Mapping[Reason, str], now: float, *, settle_s: float) -> TrainingPause:
    """The pause after a look at the machine: begun, gone on with, or ended once all was well for a while.

    A reason keeps its first words: a status that named each degree would be news every few seconds.
    The hours are known to the minute: their end is not waited out.
    """
    if why:
        return TrainingPause(
            {r: pause.why.get(r, text) for r, text in why.items()}, pause.since if pause else now
        )
    if not pause:
        return pause
    since = now if pause.well_since is None else pause.well_since
    if now - since >= settle_s or set(pause.why) == {Reason.HOURS}:
        return TrainingPause()
    return replace(pause, well_since=since)


def opens_in_s(hours: Hours, minute: int) -> float:
    """Seconds until the hours begin again; 0 where they are open."""
    # There is one: a span has at least a minute.
    return 60.0 * next(ahead for ahead in range(_DAY_MIN) if hours.open_at((minute + ahead) % _DAY_MIN))


def in_vain(
    pause: TrainingPause, *, now: float, ends_at: float, left_s: float | None, opens_s: float
) -> str | None:
    """Why waiting is of no use: the rest of the training no longer fits before the round's deadline.

    `ends_at` is the deadline (monotonic), `left_s` what the training still needs where that is known,
    `opens_s` when the hours begin again.
    """
    if not pause:
        return None
    earliest = now + (opens_s if Reason.HOURS in pause.why else 0.0)
    if earliest + (left_s or 0.0) < ends_at:
        return None
    return f"paused beyond the round's deadline: {pause.text}"
