"""The registry of operators' requests: answered once, remembered, bounded, and never the loop's end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import Field
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.bus.inlet import Delivery, decode
from apiary.bus.outlet import Outlet
from apiary.errors import MessageError, StoreError
from apiary.wire import NodeId
from apiary.wire.messages import MAX_BYTES, OperatorReply, OperatorRequest
from apiary.wire.topics import Topic, TopicKind, Topics
from apiary_coordinator.operators import requests
from apiary_coordinator.operators.requests import Arguments, Call, OperatorRequests

ANNA = NodeId("anna")


class Two(Arguments):
    number: int = Field(ge=1)
    name: str = "x"


class Desk:
    """An `OperatorRequests` with what it said."""

    def __init__(self) -> None:
        self.said: list[tuple[str | None, OperatorReply]] = []
        self.calls: list[tuple[Call, Two]] = []
        broker = MemoryBroker(seed=1)
        outlet = Outlet(broker.bus("coordinator", None), Topics(), self._tap)
        self.operators = OperatorRequests(outlet, lambda: 10.0)
        self.operators.register("run.two", Two, lambda call, args: self.calls.append((call, args)))

    def _tap(self, kind: TopicKind, node: NodeId | None, message: Any) -> None:
        self.said.append((node, message))

    def ask(self, id_: str, op: str = "run.two", *, by: NodeId = ANNA, **args: Any) -> None:
        request = OperatorRequest(id=id_, op=op, args=args)
        self.operators.received(Delivery(Topic(TopicKind.OPERATOR_REQUEST, node=by), request))

    @property
    def last(self) -> OperatorReply:
        return self.said[-1][1]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_request_is_carried_out_with_checked_arguments_and_answered_to_who_asked(desk: Desk) -> None:
    desk.ask("1", number=3)
    ((call, args),) = desk.calls
    assert (args.number, args.name, desk.said) == (3, "x", [])
    call.working({"at": 1})
    call.done({"made": 3})
    assert [(who, r.state, r.result) for who, r in desk.said] == [
        ("anna", "working", {"at": 1}),
        ("anna", "done", {"made": 3}),
    ]


def test_a_request_that_comes_again_is_told_the_newest_answer_and_not_carried_out_again(desk: Desk) -> None:
    desk.ask("1", number=3)
    desk.ask("1", number=3)
    assert (len(desk.calls), desk.said) == (1, [])
    desk.calls[0][0].done(7)
    desk.ask("1", number=3)
    assert len(desk.calls) == 1
    assert [r.result for _, r in desk.said] == [7, 7]


def test_the_same_id_of_another_operator_is_another_request(desk: Desk) -> None:
    desk.ask("1", number=3)
    desk.ask("1", number=4, by=NodeId("bert"))
    assert [args.number for _, args in desk.calls] == [3, 4]


def test_the_last_word_stands(desk: Desk) -> None:
    desk.ask("1", number=3)
    call = desk.calls[0][0]
    call.refuse("no")
    call.done(1)
    call.working()
    assert [r.state for _, r in desk.said] == ["refused"]


@pytest.mark.parametrize(
    ("op", "args", "why"),
    [
        ("run.three", {}, "no operation 'run.three'; there are: run.two"),
        ("run.two", {}, "run.two: number is "),
        ("run.two", {"number": 0}, "run.two: number is '0': Input should be greater than or equal to 1"),
        ("run.two", {"number": 1, "colour": 1}, "run.two: colour is '1': Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_saying_why(
    desk: Desk, op: str, args: dict[str, Any], why: str
) -> None:
    desk.ask("1", op, **args)
    assert desk.last.state == "refused" and (desk.last.why or "").startswith(why)
    assert desk.calls == []


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (StoreError("the disk is full"), "the disk is full"),
        (ZeroDivisionError(), "the coordinator failed at it: ZeroDivisionError; its log says where"),
    ],
)
def test_a_handler_that_fails_is_an_answer(desk: Desk, error: Exception, why: str) -> None:
    def fail(call: Call, args: Arguments) -> None:
        raise error

    desk.operators.register("run.fail", Arguments, fail)
    desk.ask("1", "run.fail")
    assert (desk.last.state, desk.last.why) == ("refused", why)


def test_what_is_no_request_is_the_peers_fault(desk: Desk) -> None:
    payload = json.dumps({"v": 1, "id": "1", "op": "rm -rf"}).encode()
    with pytest.raises(MessageError, match="operator anna: operatorrequest: op is "):
        decode(Topic(TopicKind.OPERATOR_REQUEST, node=ANNA), payload)


def test_an_answer_that_is_too_large_for_a_message_is_refused(desk: Desk) -> None:
    desk.ask("1", number=1)
    desk.calls[0][0].done("x" * MAX_BYTES)
    assert desk.last.state == "refused" and "larger than" in (desk.last.why or "")


def test_open_requests_are_bounded(desk: Desk) -> None:
    for i in range(requests.MAX_OPEN):
        desk.ask(str(i), number=1)
    assert desk.said == []
    desk.ask("more", number=1)
    assert desk.last.state == "refused" and "try again" in (desk.last.why or "")
    desk.calls[0][0].done()
    desk.ask("more2", number=1)
    assert len(desk.calls) == requests.MAX_OPEN + 1


def test_answers_are_remembered_up_to_a_bound_of_number_and_bytes(desk: Desk) -> None:
    for i in range(requests.MAX_REMEMBERED + 50):
        desk.ask(str(i), number=1)
        desk.calls[-1][0].done()
    assert len(desk.operators._calls) <= requests.MAX_REMEMBERED + 1
    for i in range(60):
        desk.ask(f"large-{i}", number=1)
        desk.calls[-1][0].done("x" * 200_000)
    kept = sum(len(c.answer.encode()) for c in desk.operators._calls.values() if c.answer)
    assert kept <= requests.MAX_REMEMBERED_BYTES + 200_100


def test_what_nobody_answers_is_given_up(desk: Desk) -> None:
    desk.ask("1", number=1)
    desk.operators.tick(10.0 + requests.GIVE_UP_S - 1)
    assert desk.said == []
    desk.operators.tick(10.0 + requests.GIVE_UP_S)
    assert (desk.last.state, desk.last.why) == ("refused", "gave up after 2 hours")


def test_a_result_that_no_message_carries_is_refused(desk: Desk) -> None:
    """Handlers put it together from what nodes say, and later than their own request."""
    desk.ask("1", number=3)
    ((call, _),) = desk.calls
    call.done(float("nan"))
    assert (desk.last.state, desk.last.result) == ("refused", None)
    assert desk.last.why is not None and desk.last.why.startswith("the answer cannot be told: result is ")
    assert call.over
