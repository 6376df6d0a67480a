"""Asking the coordinator: a request over the bus, repeated until it is answered or the time is up."""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import JsonValue

from apiary.bus.bus import Disconnected, PublishRefused, Received
from apiary.bus.client_id import passing_id
from apiary.bus.inlet import Inlet
from apiary.bus.mqtt import MqttBus
from apiary.bus.outlet import Outlet
from apiary.complaints import Complaints
from apiary.errors import BrokerRefused, NoAnswer, RequestRefused, WireError
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import Settings
from apiary.wire import NodeId
from apiary.wire.messages import CoordinatorStatus, Message, OperatorReply, OperatorRequest
from apiary.wire.topics import TopicKind
from apiary_cli.terminal.once import first_connection
from apiary_cli.terminal.stopping import Interrupted, stop_on_signals

log = logging.getLogger(__name__)

_PRESENCE_S: Final = 3.0
"""The broker gives a retained message at once; where none has come after this long, there is none."""
_REPEAT_S: Final = 4.0
"""A request or an answer may be lost; the coordinator knows a request that comes again by its id."""

Progress = Callable[[JsonValue], None]


def ask(
    settings: Settings,
    op: str,
    args: Mapping[str, JsonValue],
    timeout_s: float | None = None,
    on_progress: Progress = lambda result: None,
) -> Any:
    """Have the coordinator carry out `op`, and return its result.

    `timeout_s`: wait so long (operator.timeout_s where None). Raises NoAnswer where no coordinator is online
    or it does not answer in time, RequestRefused with its reason, BusError, Interrupted on a signal.
    """
    request = OperatorRequest(id=secrets.token_hex(8), op=op, args=dict(args))
    with contextlib.closing(_PendingRequest(settings, request, on_progress)) as pending:
        return pending.run(settings.operator.timeout_s if timeout_s is None else timeout_s)


class _PendingRequest:
    """One request under way."""

    def __init__(self, settings: Settings, request: OperatorRequest, on_progress: Progress):
        self._settings = settings
        self._request = request
        self._on_progress = on_progress
        self._name = NodeId(settings.operator.name)
        self._topics = settings.topics
        client = passing_id(f"{settings.federation}-operator-{self._name}")
        self._bus = MqttBus(settings.broker, client_id=client, will=None)
        gate = load_gate(settings.security, Role.OPERATOR, self._name, None, time.time)
        self._inlet = Inlet(gate, Complaints(log))
        self._outlet = Outlet(self._bus, self._topics, gate=gate)
        self._online: bool | None = None
        self._asked = False
        self._answer: OperatorReply | None = None

    def run(self, timeout_s: float) -> JsonValue:
        with stop_on_signals(self._bus.wake) as stop:
            first_connection(self._bus, self._settings.broker.connect_timeout_s, stop)
            self._bus.subscribe(self._topics.pattern(TopicKind.OPERATOR_REPLY, node=self._name))
            self._bus.subscribe(self._topics.pattern(TopicKind.COORDINATOR_STATUS))
            began = time.monotonic()
            asked_at = -_REPEAT_S
            while not stop():
                now = time.monotonic()
                self._check_presence(now - began)
                if now - began >= timeout_s:
                    raise NoAnswer(self._late(timeout_s))
                if self._online and now - asked_at >= _REPEAT_S:
                    self._outlet.send(self._request, self._name)
                    asked_at, self._asked = now, True
                for event in self._bus.poll(0.2):
                    self._take(event)
                match self._answer:
                    case OperatorReply(state="done", result=result):
                        return result
                    case OperatorReply(state="refused", why=why):
                        raise RequestRefused(f"refused: {why or 'the coordinator gave no reason'}")
        raise Interrupted(stop.signal)

    def close(self) -> None:
        self._bus.close()

    def _take(self, event: object) -> None:
        match event:
            case Received():
                try:
                    topic = self._topics.parse(event.topic)
                    if (opened := self._inlet.open(topic, event)) is not None:
                        self._received(opened.content)
                except WireError as e:
                    log.warning("%s", e)
            case Disconnected(error, retry_s):
                log.warning("%s; next attempt in %.0f s", error, retry_s)
            case PublishRefused(topic, reason):
                raise BrokerRefused(
                    f"the broker refused {topic} to operator {self._name}: {reason}; "
                    "check broker.username and operator.name against the broker's rights"
                )

    def _received(self, content: Message | bytes | None) -> None:
        if isinstance(content, CoordinatorStatus):
            self._online = content.state == "online"
        elif isinstance(content, OperatorReply) and content.id == self._request.id:
            self._answer = content
            if content.state == "working":
                self._on_progress(content.result)

    def _check_presence(self, waited_s: float) -> None:
        """Say at once that nobody is there to answer; one that goes while it works may come back."""
        if self._answer is not None:
            return
        here = f"the federation {self._settings.federation!r} on {self._settings.broker.names}"
        if self._online is False and self._asked:
            raise NoAnswer(
                f"the coordinator of {here} went offline before it answered {self._request.op}: it may have "
                "carried that out; look once it is back"
            )
        if self._online is False:
            raise NoAnswer(f"the coordinator of {here} is offline: start it (apiary coordinator --stay)")
        if self._online is None and waited_s >= _PRESENCE_S:
            raise NoAnswer(
                f"{here} has never had a coordinator: check `federation`, or start one "
                "(apiary coordinator --stay)"
            )

    def _late(self, timeout_s: float) -> str:
        what = "has not finished" if self._answer is not None else "did not answer"
        return f"the coordinator {what} {self._request.op} within {timeout_s:g} s (--timeout)"
