"""What a round takes of memory and disk, from its announcement alone: before a byte of it is fetched. Pure.

The formula and the measurements that it was fitted to are in docs/appliance.md.
"""

from dataclasses import dataclass
from typing import Final

from apiary.settings import GuestSettings
from apiary.wire.messages import Announcement
from apiary_edge.health.readings import MB, Readings

_FLOAT: Final = 4
_FORTH_AND_BACK: Final = 2
"""A step keeps what each layer gives, and its gradient."""
_WEIGHT_COPIES: Final = 20
"""Of the model's bytes: the file's, the runtime's with both moments of Adam, before, after, update, blob."""
_PICTURE_COPIES: Final = 1.1
"""Those of the validation split are copied."""
_UPDATE_COPIES: Final = 2
"""On the disk: the child's, and the outbox's while it is taken over."""


@dataclass(frozen=True, slots=True)
class Cost:
    """A runtime: bytes it takes with its libraries before any model, what is only address space on top, and
    its factor on what the formula gives for the model.
    """

    resident: int
    address: int
    factor: float = 1.0


_COSTS: Final = {"litert": Cost(80 * MB, 100 * MB), "keras": Cost(620 * MB, 2500 * MB, 2.0)}
"""A runtime that is not named here counts as litert."""


@dataclass(frozen=True, slots=True)
class RoundNeeds:
    """Bytes that a round takes: resident memory, address space, disk."""

    memory: int
    address: int
    disk: int


def room_for(announcement: Announcement, *, samples: int, runtime: str, missing: int) -> RoundNeeds:
    """An upper estimate for a round on a node with so many pictures.

    `missing` are the bytes of blobs that are to be fetched. The caches of pictures and features do not count:
    where the disk has no room for them, training does without.
    """
    cost = _COSTS.get(runtime, _COSTS["litert"])
    weights = _WEIGHT_COPIES * announcement.model.bytes
    steps = data = 0
    if (needs := announcement.needs) is not None:
        steps = _FORTH_AND_BACK * _FLOAT * needs.activations * announcement.plan.batch_size
        each = needs.picture_bytes if needs.features is None else _FLOAT * needs.features
        data = int(_PICTURE_COPIES * samples * each) + needs.picture_bytes
    base = announcement.base.bytes if announcement.base is not None else 0
    memory = cost.resident + int(cost.factor * (weights + steps + base)) + data
    return RoundNeeds(memory, memory + cost.address, missing + _UPDATE_COPIES * announcement.model.bytes)


def too_small(room: RoundNeeds, found: Readings, guest: GuestSettings) -> str | None:
    """Why a machine cannot hold a round, or None; what it does not tell of itself counts as enough."""
    needs = f"the round needs about {room.memory // MB} MB of memory"
    if guest.max_memory_mb is not None and room.memory > guest.max_memory_mb * MB:
        return f"{needs}, this node gives {guest.max_memory_mb} MB (edge.guest.max_memory_mb)"
    reserve = guest.min_memory_mb // 2
    if found.memory_available is not None and room.memory + reserve * MB > found.memory_available:
        free = found.memory_available // MB
        return f"{needs}, {free} MB are available and {reserve} MB are kept for others"
    if found.address_limit is not None and room.address > found.address_limit:
        return (
            f"the round needs about {room.address // MB} MB of address space, this node is limited to "
            f"{found.address_limit // MB} MB (RLIMIT_AS, ulimit -v)"
        )
    if found.disk_free is not None and room.disk + guest.min_disk_mb * MB > found.disk_free:
        free = found.disk_free // MB
        return (
            f"the round needs about {room.disk // MB + 1} MB of disk, {free} MB are free and "
            f"{guest.min_disk_mb} MB are kept for others (edge.guest.min_disk_mb)"
        )
    return None
