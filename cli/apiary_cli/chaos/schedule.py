"""Which faults a run gets, whom and when: a pure function of the seed.

A fault is tied to the run's progress (a round, and so many messages into it), not to the clock, so that a
slow machine gets the same faults as a fast one.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Literal

from apiary.errors import SettingsError

Victim = Literal["coordinator", "broker", "node", "party", "wire"]
"""Who may be hit: `party` is the coordinator or a node, `wire` nobody in particular."""


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault; `weight` is how often it comes up against others, `longest_s` how long it lasts."""

    victim: Victim
    weight: float
    longest_s: float
    what: str


KINDS: Final[dict[str, FaultKind]] = {
    "coordinator-kill": FaultKind("coordinator", 2.0, 2.0, "kill -9, back after a pause"),
    "coordinator-stop": FaultKind("coordinator", 1.0, 4.0, "SIGSTOP, SIGCONT seconds later"),
    "node-kill": FaultKind("node", 3.0, 2.0, "kill -9 of a node's service"),
    "node-stop": FaultKind("node", 1.0, 6.0, "SIGSTOP of a node's service, SIGCONT seconds later"),
    "trainer-kill": FaultKind("node", 2.0, 0.0, "kill -9 of a node's training child"),
    "torn": FaultKind("party", 2.0, 2.0, "power cut: kill -9, and what was not synced is torn"),
    "broker-kill": FaultKind("broker", 1.5, 1.5, "kill -9, back with its database"),
    "broker-forget": FaultKind("broker", 1.0, 1.5, "kill -9, back without its database"),
    "broker-corrupt": FaultKind("broker", 0.7, 1.5, "kill -9, back with a corrupted database"),
    "link-reset": FaultKind("party", 2.0, 0.0, "every connection of a party is reset"),
    "link-dead": FaultKind("party", 1.0, 8.0, "a party's link swallows everything for seconds, then breaks"),
    "link-slow": FaultKind("party", 1.0, 6.0, "a party's link is late and slow for seconds"),
    "link-leaky": FaultKind(
        "party", 1.5, 6.0, "messages of a party are acknowledged, and lost; chunks are damaged"
    ),
    "link-refused": FaultKind("party", 1.0, 5.0, "the broker refuses a party's credentials for seconds"),
    "disk-full": FaultKind("coordinator", 1.0, 5.0, "the coordinator's disk takes no byte for seconds"),
    "repeat": FaultKind("wire", 2.0, 0.0, "recorded messages come again, late and out of order"),
    "corrupt": FaultKind("wire", 2.0, 0.0, "damaged copies of recorded messages"),
    "misbehaving-node": FaultKind(
        "wire", 3.0, 0.0, "one enrolled node more offers twice, floods, lies and forges"
    ),
}
FINISHING: Final = ("coordinator-kill", "node-kill", "broker-kill", "link-reset")
"""Kinds that also happen while the model is exported or the result written; nothing trains then."""
TRAINING: Final = ("trainer-kill", "disk-full")
"""Kinds that do not come before the first round: nothing trains there, and an export does not try again."""
HALFWAY: Final = ("coordinator-kill", "coordinator-stop", "broker-kill")
"""Kinds of which half wait until a part of the round's updates was accepted."""
FAULTS_PER_ROUND: Final = 10
MESSAGES: Final = 14
"""About so many messages a node are seen in an undisturbed round (counted)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. Round 0 is before the first round, `rounds + 1` after the last; `seed` draws the details.

    With `receipts` it waits, beside the others of its round, until so many updates were accepted: a round of
    which some updates are counted and some not is open for a moment only.
    """

    number: int
    kind: str
    victim: str
    round: int
    after: int
    seconds: float
    gap_s: float
    seed: int
    receipts: int = 0


def rounds_for(faults: int) -> int:
    """Rounds in which this many faults have room."""
    return max(3, math.ceil(faults / FAULTS_PER_ROUND))


def chosen(names: str | None) -> tuple[str, ...]:
    """The kinds in a comma-separated list; None is all. Raises SettingsError for one that does not exist."""
    wanted = tuple(KINDS) if names is None else tuple(n.strip() for n in names.split(",") if n.strip())
    unknown = [n for n in wanted if n not in KINDS]
    if unknown or not wanted:
        raise SettingsError(
            f"--kinds {names!r}: {unknown[0] if unknown else 'nothing'!r} is no kind of fault. "
            f"There are: {', '.join(KINDS)}"
        )
    return wanted


def draw(
    *,
    seed: int,
    faults: int,
    rounds: int,
    nodes: Sequence[str],
    kinds: Sequence[str],
    building: bool = False,
) -> list[Fault]:
    """The schedule, in the order of its rounds. Each kind comes up once before any does a second time.

    With `building` some are added before the first round, where the model is being exported.
    """
    chance = random.Random(seed)  # noqa: S311 - faults to repeat, nothing to guess
    late = [k for k in kinds if k in FINISHING]
    in_finishing = min(1 + faults // 100, faults // 4) if late else 0
    in_building = min(1 + faults // 50, faults // 4) if late and building else 0
    wanted = _kinds(chance, faults - in_finishing - in_building, kinds)
    # The last round is left free: what was not dealt in time, because a victim was down, is dealt in it.
    span = max(1, rounds - 1)
    places = sorted(_place(chance, i, len(wanted), span, len(nodes)) for i in range(len(wanted)))
    for i, (round_, _) in enumerate(places):
        if round_ == 0 and wanted[i] in TRAINING:
            swap = next((j for j, k in enumerate(wanted) if k not in TRAINING and places[j][0] > 0), None)
            if swap is None:
                places[i] = (1, 0)
            else:
                wanted[i], wanted[swap] = wanted[swap], wanted[i]
    # The nodes have announced themselves: the coordinator is at its export by then.
    plan = [(late[0] if i == 0 else chance.choice(late), 0, 2 * len(nodes)) for i in range(in_building)]
    plan += [(kind, *place) for kind, place in zip(wanted, sorted(places), strict=True)]
    plan += [(chance.choice(late), rounds + 1, 0) for _ in range(in_finishing)]
    return [
        Fault(
            number=number,
            kind=kind,
            victim=_victim(chance, KINDS[kind].victim, nodes),
            round=round_,
            after=after,
            seconds=round(chance.uniform(0.2, 1.0) * KINDS[kind].longest_s, 2),
            gap_s=round(chance.uniform(0.1, 1.0) * (3 if building and round_ == 0 else 1), 2),
            seed=chance.randrange(2**31),
            receipts=_receipts(chance, kind, round_, rounds, len(nodes)),
        )
        for number, (kind, round_, after) in enumerate(sorted(plan, key=itemgetter(1, 2)), start=1)
    ]


def _kinds(chance: random.Random, count: int, kinds: Sequence[str]) -> list[str]:
    first = list(kinds)
    chance.shuffle(first)
    rest = chance.choices(list(kinds), [KINDS[k].weight for k in kinds], k=max(0, count - len(first)))
    drawn = (first + rest)[:count]
    chance.shuffle(drawn)
    return drawn


def _place(chance: random.Random, i: int, count: int, span: int, nodes: int) -> tuple[int, int]:
    """Round and messages into it; rounds are filled evenly, with one fault in forty before the first."""
    if i < max(1, count // 40) and count > 1:
        return 0, chance.randrange(4 * nodes)
    return 1 + i * span // count, chance.randrange(MESSAGES * nodes)


def _receipts(chance: random.Random, kind: str, round_: int, rounds: int, nodes: int) -> int:
    """For half of the coordinator's deaths within a round: after which accepted update."""
    if kind not in HALFWAY or not 1 <= round_ <= rounds or nodes < 2 or chance.random() < 0.5:
        return 0
    return chance.randrange(1, nodes)


def _victim(chance: random.Random, victim: Victim, nodes: Sequence[str]) -> str:
    if victim == "node":
        return chance.choice(nodes)
    if victim == "party":
        return chance.choice(["coordinator", *nodes])
    return victim
