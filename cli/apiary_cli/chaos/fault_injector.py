"""Injects the scheduled faults into a fleet as its run goes on."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from apiary.errors import StoreError
from apiary_cli.chaos import torn
from apiary_cli.chaos.fleet import BROKER, RUN, Fleet
from apiary_cli.chaos.misbehaving_node import MisbehavingNode
from apiary_cli.chaos.schedule import KINDS, Fault
from apiary_cli.chaos.states import aimed_at
from apiary_cli.chaos.traffic_replayer import TrafficReplayer
from apiary_cli.demo.federation import COORDINATOR

log = logging.getLogger(__name__)

QUIET_S: Final = 2.0
"""Where nothing was seen for so long, the next fault is due, whatever its place in the round."""
LATE_GAP_S: Final = 0.1
"""Faults whose round is over follow one another so fast: a run that they hardly slow must not outrun them."""
MAX_CHILDREN: Final = 3
"""Training children of one node killed in one round; the pauses after them add up to seven seconds."""
MAX_AIMED: Final = 60
"""Faults beyond the schedule, at transitions into which none of it fell: a run is to end."""
AIMED: Final = 0
"""The number of such a fault."""
_AIM_S: Final = 0.3
"""It lasts for so long, and so long is between two of them."""
MAX_DISTURBED: Final = 3
"""Parties that are down or stopped at once."""

OnFault = Callable[[int, Fault, str], None]
"""Called for each fault: the open round, the fault, and what was done."""


class FaultInjector:
    """Holds the faults that are left; `turn` injects at most one."""

    def __init__(
        self,
        schedule: list[Fault],
        fleet: Fleet,
        replayer: TrafficReplayer,
        on_fault: OnFault,
        misbehaving: MisbehavingNode | None = None,
        *,
        aims: int = 0,
    ):
        self.left = list(schedule)
        """Faults that wait."""
        self._scheduled = len(schedule)
        self._misbehaving = misbehaving
        self._aims = aims
        self._children: Counter[tuple[int, str]] = Counter()
        self._fleet = fleet
        self._replayer = replayer
        self._on_fault = on_fault
        self._next_at = 0.0
        self._moved_at = time.monotonic()

    def moved(self) -> None:
        """Something was seen on the bus."""
        self._moved_at = time.monotonic()

    def turn(self) -> None:
        """Inject the fault that is due, if its victim is up."""
        now = time.monotonic()
        if now < self._next_at or self._fleet.disturbed >= MAX_DISTURBED:
            return
        quiet = now - self._moved_at >= QUIET_S
        for fault in self.left:
            if not self._due(fault, quiet=quiet):
                if fault.receipts and fault.round == self._replayer.round:
                    continue  # its moment is a later one of this round
                break
            how = self._inject(fault)
            if how is not None:
                self.left.remove(fault)
                late = fault.round < self._replayer.round
                self._next_at = now + (min(fault.gap_s, LATE_GAP_S) if late else fault.gap_s)
                self._moved_at = now
                self._dealt(fault, how)
                return
        self._aim(now)

    def _aim(self, now: float) -> None:
        """Once half of the schedule is dealt: at a transition into which none of it fell, while it is due."""
        seen = self._replayer
        if self._aims == 0 or 2 * len(self.left) > self._scheduled:
            return
        target = aimed_at(seen.states.missing, seen.states)
        if target is None or seen.finishing or seen.round == 0:
            return
        kind, victim = target
        self._aims -= 1
        fault = Fault(AIMED, kind, victim, seen.round, 0, _AIM_S, _AIM_S, seed=self._aims)
        if (how := self._inject(fault)) is not None:
            self._next_at, self._moved_at = now + _AIM_S, now
            self._dealt(fault, f"{how}, aimed")

    def _dealt(self, fault: Fault, how: str) -> None:
        states = self._replayer.states.fault(fault.victim)
        self._on_fault(self._replayer.round, fault, f"{how} [{states}]")

    def _due(self, fault: Fault, *, quiet: bool) -> bool:
        seen = self._replayer
        if seen.finishing:
            return True
        if fault.round != seen.round:
            return fault.round < seen.round
        if fault.receipts:
            return seen.receipts >= fault.receipts or quiet
        return seen.messages >= fault.after or quiet

    def _inject(self, fault: Fault) -> str | None:
        """What was done, or None where it cannot be done now."""
        fleet, chance = self._fleet, random.Random(fault.seed)  # noqa: S311 - faults to repeat
        back, lasts = f"back in {fault.seconds:.1f} s", f"for {fault.seconds:.1f} s"
        if KINDS[fault.kind].victim != "wire" and not fleet.up(fault.victim):
            return None
        match fault.kind:
            case "coordinator-kill" | "node-kill":
                fleet.kill(fault.victim, fault.seconds)
                return back
            case "coordinator-stop" | "node-stop":
                fleet.stop(fault.victim, fault.seconds)
            case "trainer-kill":
                return self._kill_child(fault)
            case "torn":
                return self._tear(fault, chance)
            case "broker-kill" | "broker-forget" | "broker-corrupt":
                return self._broker(fault, chance)
            case "link-reset":
                count = fleet.links.reset(fault.victim)
                return f"{count} connection{'s' if count > 1 else ''}" if count else None
            case "link-dead":
                fleet.links.swallow(fault.victim, fault.seconds)
            case "link-slow":
                delay_s, bytes_s = chance.uniform(0.05, 0.3), chance.uniform(30_000, 300_000)
                fleet.links.slow(fault.victim, fault.seconds, delay_s=delay_s, bytes_s=bytes_s)
                return f"{lasts}, {delay_s * 1000:.0f} ms, {bytes_s / 1000:.0f} kB/s"
            case "link-leaky":
                share = chance.uniform(0.1, 0.4)
                fleet.links.leak(
                    fault.victim, fault.seconds, share=share, seed=fault.seed, blobs=self._replayer.blobs
                )
                return f"{share:.0%} {lasts}"
            case "link-refused":
                fleet.links.refuse(fault.victim, fault.seconds)
            case "disk-full":
                fleet.fill_disk(fault.victim, fault.seconds)
            case "repeat":
                return self._replayer.repeat(fault.seed)
            case "corrupt":
                return self._replayer.corrupt(fault.seed)
            case "misbehaving-node":
                return self._misbehaving.misbehave(fault.seed) if self._misbehaving is not None else None
            case _:
                raise AssertionError(fault.kind)
        return lasts

    def _kill_child(self, fault: Fault) -> str | None:
        """Of the victim, or of whoever trains now; a node waits twice as long after each in a round."""
        for node in (fault.victim, *self._fleet.nodes):
            place = (self._replayer.round, node)
            if self._children[place] >= MAX_CHILDREN or not self._fleet.up(node):
                continue
            if (how := self._fleet.kill_child(node)) is not None:
                self._children[place] += 1
                return how if node == fault.victim else f"{node} instead: {how}"
        return None

    def _tear(self, fault: Fault, chance: random.Random) -> str:
        fleet, name = self._fleet, fault.victim
        done: list[str] = []

        def tear() -> None:
            try:
                if name == COORDINATOR:
                    done.extend(torn.tear_coordinator(fleet.state(name), fleet.folder / "runs" / RUN, chance))
                else:
                    done.extend(torn.tear_node(fleet.state(name), chance))
            except OSError as e:
                raise StoreError(f"cannot tear the files of {name}: {e}") from e

        fleet.kill(name, fault.seconds, tear)
        return f"{len(done)} files, back in {fault.seconds:.1f} s"

    def _broker(self, fault: Fault, chance: random.Random) -> str:
        database = self._fleet.broker_database

        def spoil() -> None:
            if fault.kind == "broker-forget":
                database.unlink(missing_ok=True)
            elif fault.kind == "broker-corrupt":
                whole = database.read_bytes() if database.is_file() else b"\0" * 400
                at = chance.randrange(len(whole))
                database.write_bytes(whole[:at] + chance.randbytes(chance.randrange(1, 300)))

        self._fleet.kill(BROKER, fault.seconds, spoil)
        return f"back in {fault.seconds:.1f} s"
