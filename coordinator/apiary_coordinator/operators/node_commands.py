"""Commands of operators for nodes: sent to each, repeated until it replies; its reply is the answer."""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from pydantic import Field, JsonValue, ValidationError

from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Outlet
from apiary.clocks import Clocks
from apiary.errors import RequestRefused
from apiary.tags import matches, parse_rule
from apiary.wire import NodeId
from apiary.wire.messages import NodeCommand, NodeReply, OperatorReply
from apiary.wire.topics import TopicKind
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.operators.requests import Arguments, Call, OperatorRequests
from apiary_coordinator.run.host import RunHost

log = logging.getLogger(__name__)

MAX_OPEN: Final = 8
"""Orders at a time."""
MAX_NODES: Final = 2_000
"""Of one order: their replies must fit into one message."""
_REPEAT_S: Final = 3.0
_PATIENCE: Final = 5
_REPORT_EVERY_S: Final = 1.0
_LOG_BYTES: Final = 160_000
"""Of all nodes together."""
_ANSWER_BYTES: Final = 240_000
"""The results of all nodes of an order together, each with an equal share: one node shall not crowd out the
replies of the others."""
_UNFIT_BYTES: Final = 50_000
"""Of the reasons why nodes are not drawn, in one reply."""
ALL: Final = "all"
State = Literal["sent", "working", "done", "refused", "silent", "absent"]


class NodeSelector(Arguments):
    """Which nodes: ids, rules on tags such as `site=north`, or `all`; and how long they may take."""

    nodes: list[str] = Field(min_length=1, max_length=200)
    timeout_s: float = Field(15.0, gt=0, le=3600)


class LogsArguments(NodeSelector):
    """So many of the last lines, oldest first."""

    lines: int = Field(50, ge=1, le=500)


@dataclass(slots=True)
class _One:
    """A node's reply as it stands."""

    state: State = "sent"
    why: str | None = None
    result: JsonValue = None
    late: bool = False

    @property
    def open(self) -> bool:
        return self.state in ("sent", "working") and not self.late

    def to_json(self) -> dict[str, Any]:
        found = {"state": self.state, "why": self.why, "result": self.result}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(slots=True)
class _Order:
    call: Call
    command: NodeCommand
    until: float
    timeout_s: float
    nodes: dict[NodeId, _One] = field(default_factory=dict)
    repeat_at: float = 0.0
    repeats: int = 0
    reported_at: float = 0.0
    news: bool = False

    def to_json(self) -> JsonValue:
        return {"nodes": {node: one.to_json() for node, one in self.nodes.items()}}


class NodeCommands(CoordinatorFeature):
    """The coordinator's side of `apiary node`."""

    kinds = (TopicKind.NODE_REPLY,)

    def __init__(
        self, operators: OperatorRequests, host: RunHost, roster: Roster, outlet: Outlet, clocks: Clocks
    ):
        self._host = host
        self._roster = roster
        self._outlet = outlet
        self._clocks = clocks
        self._orders: dict[str, _Order] = {}
        for op in ("pause", "resume", "drain", "retrain"):
            operators.register(f"node.{op}", NodeSelector, partial(self._order, op))
        operators.register("node.logs", LogsArguments, self._logs, reads=True)
        operators.register("node.heard", Arguments, self._heard, reads=True)

    def received(self, delivery: Delivery) -> None:
        """A node replies."""
        node, reply = delivery.topic.node, delivery.content
        if node is None or not isinstance(reply, NodeReply):
            return
        order = self._orders.get(reply.id)
        one = order.nodes.get(node) if order is not None else None
        if order is None or one is None or not one.open:
            return
        one.state, one.why, one.result = reply.state, reply.why, reply.result
        if (unfit := _unfit(node, reply, _ANSWER_BYTES // len(order.nodes))) is not None:
            one.why, one.result = f"{reply.why or reply.state}; {unfit}"[:500], None
        order.news = True
        retrained = order.command.op == "retrain" and reply.state == "done"
        if retrained and (why := self._invite_again(node, reply.result)) is not None:
            one.state, one.why = "refused", why
        self._advance(order, self._clocks.monotonic())

    def tick(self, now: float) -> None:
        """Send again what was not answered; end what takes too long."""
        for order in list(self._orders.values()):
            if now >= order.until:
                for one in order.nodes.values():
                    if one.open:
                        one.late = True
                        if one.state == "sent":
                            one.state, one.why = "silent", f"no answer within {order.timeout_s:g} s"
                        else:
                            one.why = f"not finished within {order.timeout_s:g} s; it goes on"
            elif now >= order.repeat_at:
                self._send(order, now)
            self._advance(order, now)

    def _logs(self, call: Call, args: LogsArguments) -> None:
        chosen = choose(self._roster, args.nodes)
        self._order("logs", call, args, lines=args.lines, bytes=min(16_000, _LOG_BYTES // len(chosen)))

    def _heard(self, call: Call, args: Arguments) -> None:
        """What a broker does not keep: when each node was last heard (seconds since 1970), who is silent, and
        who would not be drawn and why.
        """
        newest = sorted(self._roster.heard.items(), key=lambda item: -item[1])[:MAX_NODES]
        demands, unfit, room = self._host.demands, dict[str, JsonValue](), _UNFIT_BYTES
        for node in sorted(self._roster.nodes):
            if self._roster[node].away:
                continue
            why = self._roster.unfit(node, demands) or demands.left_out(self._roster[node].status)
            if why is not None and (room := room - len(node) - len(why.encode())) > 0:
                unfit[node] = why
        call.done(
            {
                "now": round(self._clocks.wall(), 1),
                "heard": {n: round(at, 1) for n, at in newest},
                "silent": list[JsonValue](sorted(self._roster.silent)[:MAX_NODES]),
                "unfit": unfit,
            }
        )

    def _order(self, op: str, call: Call, args: NodeSelector, **more: JsonValue) -> None:
        if len(self._orders) >= MAX_OPEN:
            raise RequestRefused(f"{MAX_OPEN} commands are under way; try again when they are answered")
        now = self._clocks.monotonic()
        chosen = choose(self._roster, args.nodes)
        # The same after a restart, so that a node does not do twice what was requested once.
        id_ = hashlib.sha256(f"{call.operator}/{call.id}".encode()).hexdigest()[:32]
        command = NodeCommand(id=id_, op=op, by=call.operator, args=more)
        order = _Order(call, command, now + args.timeout_s, args.timeout_s)
        for node in chosen:
            status = self._roster[node].status
            gone = status.state == "lost"
            order.nodes[node] = _One("absent", status.why or "lost") if gone else _One()
        self._orders[id_] = order
        self._send(order, now)
        order.news = True
        self._advance(order, now)

    def _send(self, order: _Order, now: float) -> None:
        order.repeat_at = now + _REPEAT_S
        order.repeats += 1
        for node, one in order.nodes.items():
            # A node that works at it gets it less often: only its last reply may have been lost.
            if one.state == "sent" or (one.state == "working" and order.repeats % _PATIENCE == 0):
                self._outlet.send(order.command, node)

    def _advance(self, order: _Order, now: float) -> None:
        if not any(one.open for one in order.nodes.values()):
            self._orders.pop(order.command.id, None)
            order.call.done(order.to_json())
        elif order.news and now - order.reported_at >= _REPORT_EVERY_S:
            order.news, order.reported_at = False, now
            order.call.working(order.to_json())

    def _invite_again(self, node: NodeId, result: JsonValue) -> str | None:
        """Invite a node that has forgotten its answer to the open round; why it trains nothing, or None.

        The node does not know whether its update counted, and may have missed that the round is over.
        """
        run, number = (result.get("run"), result.get("round")) if isinstance(result, dict) else (None, None)
        if run is None:
            return "it has answered or given up no round that it could train again"
        runner = self._host.runner
        current = (runner.round.run, runner.round.number) if runner is not None else None
        if runner is None or not runner.round.collecting or (run, number) != current:
            return f"round {number} of run {run} is over: nothing to train again"
        if node in runner.round.accepted:
            return f"its update of round {number} was counted already"
        if node in runner.round.rejected:
            return f"its update of round {number} was refused: {runner.round.rejected[node]}"
        runner.ask_again(node)
        return None if runner.round.welcomes(node) else f"it was not drawn for round {number}"


def _unfit(node: NodeId, reply: NodeReply, room: int) -> str | None:
    """Why a node's result cannot be sent beside those of others; None where it can."""
    try:
        OperatorReply(id=reply.id, state="done", result={"nodes": {node: {"result": reply.result}}})
    except ValidationError:
        return "its result is nested too deep, or holds too many values, to be sent"
    size = len(json.dumps(reply.result, ensure_ascii=False).encode())
    return f"its result takes {size} bytes, there is room for {room}" if size > room else None


def choose(roster: Roster, wanted: list[str]) -> list[NodeId]:
    """The nodes that are meant, sorted. Raises RequestRefused for a name or a rule that fits none."""
    found: set[NodeId] = set()
    for word in wanted:
        if word == ALL:
            some = set(roster.nodes)
        elif "=" in word:
            try:
                parse_rule(word)
            except ValueError as e:
                raise RequestRefused(str(e)) from None
            some = {n.id for n in roster.nodes.values() if matches(n.status.tags, [word])}
        else:
            some = {NodeId(word)} & set(roster.nodes)
        if not some:
            if "=" in word:
                there = roster.tags(word.split("=")[0]) or roster.tags()
                known = ", ".join(there[:20]) or "none"
                raise RequestRefused(f"no node has the tag {word[:140]}; tags of nodes heard of: {known}")
            known = ", ".join(sorted(roster.nodes)[:20]) or "none"
            raise RequestRefused(f"no node {word[:80]!r}; nodes heard of: {known}")
        found |= some
    if len(found) > MAX_NODES:
        raise RequestRefused(f"{len(found)} nodes at once, at most {MAX_NODES}: pick by a tag")
    return sorted(found)
