"""Operators' requests: each is answered by the part that registered for it, and carried out once.

A request that comes again (its answer was lost, or takes long) gets the newest answer, also after a restart:
what a request changes is journaled by its id before it is carried out. What a handler raises is the answer
`refused`; it ends neither the loop nor anybody else's request.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Outlet
from apiary.errors import ApiaryError, StoreError
from apiary.wire import NodeId
from apiary.wire.messages import MAX_BYTES, AnswerState, OperatorReply, OperatorRequest
from apiary.wire.messages.base import first_error
from apiary.wire.topics import TopicKind
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.journal import Journal

log = logging.getLogger(__name__)

MAX_OPEN: Final = 64
"""Requests being worked on at a time; each may hold what a fleet answers."""
MAX_REMEMBERED: Final = 256
MAX_REMEMBERED_BYTES: Final = 4 * 2**20
"""Of answers that are kept for a request that comes again; the oldest leave first."""
GIVE_UP_S: Final = 2 * 3600.0
"""A request that its part never answered is refused after this long."""
MAX_KEPT_BYTES: Final = 16_384
"""Of an answer that is journaled; of a longer one only that it was given."""
_ROOM: Final = 1_000
"""Of a message, for what is not its result."""


class Arguments(BaseModel):
    """The arguments of an operation; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


A = TypeVar("A", bound=Arguments)


@dataclass(slots=True)
class Call:
    """One request. `working` any number of times, then once `done` or `refuse`; later ones are dropped."""

    operator: NodeId
    id: str
    op: str
    began_at: float
    answer: OperatorReply | None = None
    acts: bool = True
    _send: Callable[[Call], None] = field(repr=False, default=lambda call: None)

    @property
    def over(self) -> bool:
        """Whether the last answer was given."""
        return self.answer is not None and self.answer.state != "working"

    def working(self, result: JsonValue = None) -> None:
        """Not done yet; how far it is."""
        self._put("working", None, result)

    def done(self, result: JsonValue = None) -> None:
        """Carried out."""
        self._put("done", None, result)

    def refuse(self, why: str) -> None:
        """Not carried out, and why."""
        self._put("refused", why, None)

    def _put(self, state: AnswerState, why: str | None, result: JsonValue) -> None:
        if self.over:
            return
        why = why[:500] if why else None
        try:
            self.answer = OperatorReply(id=self.id, state=state, why=why, result=result)
        except ValidationError as e:
            # Replies of nodes may be in it, and no node shall end the coordinator's loop.
            why = f"the answer cannot be encoded: {first_error(e, 'arguments')}"[:500]
            self.answer = OperatorReply(id=self.id, state="refused", why=why)
        self._send(self)


Handler = Callable[[Call, Any], None]


class OperatorRequests(CoordinatorFeature):
    """The registry of operations, and the requests that are open or were answered lately."""

    kinds = (TopicKind.OPERATOR_REQUEST,)

    def __init__(self, outlet: Outlet, clock: Callable[[], float], journal: Journal | None = None):
        """Without a journal a request that comes again after a restart is another one."""
        self._outlet = outlet
        self._clock = clock
        self._journal = journal
        self._known: dict[str, tuple[type[Arguments], Handler]] = {}
        self._reads: set[str] = set()
        self._calls: OrderedDict[tuple[NodeId, str], Call] = OrderedDict()

    def register(
        self, op: str, arguments: type[A], handler: Callable[[Call, A], None], *, reads: bool = False
    ) -> None:
        """Let `handler` answer requests for `op`; their `args` come checked against `arguments`.

        One that only `reads` may come every second, is no line in the log, and may be carried out twice.
        """
        if op in self._known:
            raise ValueError(f"two parts want to answer {op}")
        self._known[op] = (arguments, handler)
        if reads:
            self._reads.add(op)

    @property
    def open(self) -> int:
        """Requests that are being worked on."""
        return sum(not call.over for call in self._calls.values())

    def received(self, delivery: Delivery) -> None:
        """Take a request."""
        operator, request = delivery.topic.node, delivery.content
        if operator is None or not isinstance(request, OperatorRequest):
            return
        before = self._calls.get((operator, request.id))
        if before is not None:
            if before.answer is not None:
                self._outlet.send(before.answer, operator)
            return
        call = Call(operator, request.id, request.op, self._clock(), _send=self._send)
        call.acts = request.op in self._known and request.op not in self._reads
        if call.acts and self._journal is not None:
            came, answer = self._journal.request(operator, request.id)
            if came:
                self._outlet.send(_answer_of_before(request, answer), operator)
                return
            self._journal.note_request(operator, request.id)
        if self.open >= MAX_OPEN:
            call.refuse(f"{MAX_OPEN} requests are being worked on; try again when they are answered")
            return
        self._calls[operator, request.id] = call
        level = logging.DEBUG if request.op in self._reads else logging.INFO
        log.log(level, "operator=%s op=%s id=%s", operator, request.op, request.id)
        self._carry_out(call, request.args)
        self._forget()

    def tick(self, now: float) -> None:
        """Give up what nobody answered."""
        for call in [c for c in self._calls.values() if not c.over and now - c.began_at >= GIVE_UP_S]:
            call.refuse(f"gave up after {GIVE_UP_S / 3600:.0f} hours")

    def _carry_out(self, call: Call, args: Mapping[str, JsonValue]) -> None:
        known = self._known.get(call.op)
        if known is None:
            call.refuse(f"no operation {call.op!r}; there are: {', '.join(sorted(self._known)) or 'none'}")
            return
        arguments, handler = known
        try:
            handler(call, arguments.model_validate(args))
        except ValidationError as e:
            call.refuse(f"{call.op}: {first_error(e, 'arguments')}")
        except ApiaryError as e:
            call.refuse(str(e))
        except Exception as e:
            # Our own bug: logged where it can be found, and no reason to drop a run.
            log.exception("operator=%s op=%s failed", call.operator, call.op)
            call.refuse(f"the coordinator failed at it: {type(e).__name__}; its log says where")

    def _send(self, call: Call) -> None:
        answer = call.answer
        assert answer is not None  # noqa: S101 - it has just been put there
        if len(answer.encode()) > MAX_BYTES - _ROOM:
            why = f"the answer is larger than {MAX_BYTES} bytes; ask for less"
            answer = call.answer = OperatorReply(id=call.id, state="refused", why=why)
        if answer.state == "refused":
            level = logging.DEBUG if call.op in self._reads else logging.WARNING
            log.log(level, "operator=%s op=%s refused: %s", call.operator, call.op, answer.why)
        self._keep(call, answer)
        self._outlet.send(answer, call.operator)

    def _keep(self, call: Call, answer: OperatorReply) -> None:
        if self._journal is None or not call.acts or answer.state == "working":
            return
        encoded = answer.encode().decode()
        if len(encoded) > MAX_KEPT_BYTES:
            encoded = OperatorReply(id=call.id, state="done", result=None).encode().decode()
        try:
            self._journal.answer_request(call.operator, call.id, encoded)
        except StoreError as e:
            # It is carried out all the same, and not again: its id is journaled.
            log.warning("operator=%s id=%s the answer was not kept: %s", call.operator, call.id, e)

    def _forget(self) -> None:
        """Keep to the bounds: answered requests leave, oldest first."""
        sizes = {key: len(call.answer.encode()) for key, call in self._calls.items() if call.answer}
        total = sum(sizes.values())
        for key, call in list(self._calls.items()):
            if len(self._calls) <= MAX_REMEMBERED and total <= MAX_REMEMBERED_BYTES:
                return
            if call.over:
                del self._calls[key]
                total -= sizes.get(key, 0)


def _answer_of_before(request: OperatorRequest, answer: str | None) -> OperatorReply:
    if answer is not None:
        return OperatorReply.decode(answer.encode(), who="the journal")
    why = (
        "the coordinator was started again while it worked on this request: look whether it was carried out, "
        "and send it anew if it was not"
    )
    return OperatorReply(id=request.id, state="refused", why=why)
