"""The in-memory broker with faults: what is lost, doubled, late or torn is scripted, by a seed.

    broker = MemoryBroker(seed=1, faults=[LinkFault("drop", "apiary-blob/#", probability=0.05)])

The same seed and the same calls give the same run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apiary.bus import memory
from apiary.bus.bus import BrokerLimits, Received, matches
from apiary.bus.memory import QUEUE_LIMIT, RETRY_S, MemoryBus

__all__ = ["QUEUE_LIMIT", "RETRY_S", "LinkFault", "MemoryBroker", "MemoryBus"]


@dataclass(frozen=True, slots=True)
class LinkFault:
    """What goes wrong with deliveries on topics that `pattern` covers, to client `to` (None: anyone).

    drop: it never arrives, though its sender got an acknowledgement. duplicate: it arrives twice.
    reorder: it overtakes up to eight that wait before it. delay: it arrives up to `seconds` late.
    corrupt: one byte is changed. cut: the receiver's link breaks for `seconds`, the message with it.

    The first `skip` deliveries are spared, at most `times` are hit, each with `probability`.
    """

    kind: Literal["drop", "duplicate", "reorder", "delay", "corrupt", "cut"]
    pattern: str = "#"
    to: str | None = None
    probability: float = 1.0
    skip: int = 0
    times: float = math.inf
    seconds: float = 0.0


class MemoryBroker(memory.MemoryBroker):
    """A `memory.MemoryBroker` whose deliveries suffer `faults`; `struck` counts them by kind."""

    def __init__(
        self,
        seed: int = 0,
        faults: Sequence[LinkFault] = (),
        *,
        latency_s: float = 0.0,
        limits: BrokerLimits | None = None,
        queue_limit: int = QUEUE_LIMIT,
        wildcards: bool = True,
    ):
        super().__init__(latency_s=latency_s, limits=limits, queue_limit=queue_limit, wildcards=wildcards)
        self.struck: dict[str, int] = {}
        self._random = random.Random(seed)
        self._faults: list[tuple[LinkFault, list[float]]] = []
        for fault in faults:
            self.script(fault)

    def script(self, fault: LinkFault) -> None:
        """From now on this goes wrong too."""
        self._faults.append((fault, [fault.skip, fault.times]))

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self._faults.clear()

    def deliver(self, client: MemoryBus, message: Received) -> None:
        """Put a message into a client's queue, or let a fault have it."""
        if self._clients.get(client.client_id) is not client:
            return  # cut a moment ago, by a fault on this very message
        late_s, order, copies = 0.0, 0, 1
        for fault in self._strikes(client.client_id, message.topic):
            match fault.kind:
                case "drop":
                    return
                case "cut":
                    self.cut(client.client_id, for_s=fault.seconds)
                    return
                case "duplicate":
                    copies += 1
                case "reorder":
                    order -= self._random.randint(1, 8)
                case "delay":
                    late_s += self._random.uniform(0.0, fault.seconds)
                case "corrupt":
                    message = Received(message.topic, self._spoil(message.payload), message.retained)
        for _ in range(copies):
            self.queue(client, message, late_s=late_s, order=order)

    def _strikes(self, client_id: str, topic: str) -> list[LinkFault]:
        struck: list[LinkFault] = []
        for fault, left in self._faults:
            if (fault.to is not None and fault.to != client_id) or not matches(fault.pattern, topic):
                continue
            if left[0] > 0:
                left[0] -= 1
            elif left[1] > 0 and self._random.random() < fault.probability:
                left[1] -= 1
                self.struck[fault.kind] = self.struck.get(fault.kind, 0) + 1
                struck.append(fault)
        return struck

    def _spoil(self, payload: bytes) -> bytes:
        if not payload:
            return b"?"
        at = self._random.randrange(len(payload))
        return payload[:at] + bytes([payload[at] ^ 0x55]) + payload[at + 1 :]
