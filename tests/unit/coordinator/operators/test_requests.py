"""The registry of operators' requests: answered once, remembered, bounded, and never the loop's end."""

from __future__ import annotations

import json
from pathlib import Path
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
from apiary_coordinator.journal import MAX_REQUESTS, Journal
from apiary_coordinator.operators import requests
from apiary_coordinator.operators.requests import Arguments, Call, OperatorRequests

ANNA = NodeId("anna")


class Two(Arguments):
    number: int = Field(ge=1)
    name: str = "x"


class Desk:
    """An `OperatorRequests` with what it said."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.said: list[tuple[str | None, OperatorReply]] = []
        self.calls: list[tuple[Call, Two]] = []
        broker = MemoryBroker(seed=1)
        outlet = Outlet(broker.bus("coordinator", None), Topics(), self._tap)
        self.operators = OperatorRequests(outlet, lambda: 10.0, journal)
        if journal is not None:
            self.operators.register("run.look", Two, self._look, reads=True)
        self.operators.register("run.two", Two, lambda call, args: self.calls.append((call, args)))

    def _look(self, call: Call, args: Two) -> None:
        self.calls.append((call, args))
        call.done(len(self.calls))

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
    assert desk.last.why is not None and desk.last.why.startswith("the answer cannot be encoded: result is ")
    assert call.over


def restarted(journal: Journal, folder: Path) -> tuple[Journal, Desk]:
    journal.close()
    again = Journal(folder)
    return again, Desk(again)


def test_a_request_that_comes_again_after_a_restart_is_not_carried_out_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    desk = Desk(journal)
    desk.ask("1", number=3)
    desk.calls[0][0].working({"at": 1})
    desk.calls[0][0].done({"made": 3})
    journal, desk = restarted(journal, tmp_path)
    desk.ask("1", number=3)
    assert desk.calls == []
    assert (desk.last.state, desk.last.result) == ("done", {"made": 3})
    desk.ask("1", number=3, by=NodeId("bob"))
    desk.ask("2", number=3)
    assert len(desk.calls) == 2
    journal.close()


def test_one_that_was_cut_short_by_a_restart_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    Desk(journal).ask("1", number=3)
    journal, desk = restarted(journal, tmp_path)
    desk.ask("1", number=3)
    assert desk.calls == [] and desk.last.state == "refused"
    assert "look whether it was carried out" in (desk.last.why or "")
    journal.close()


def test_one_that_was_refused_for_want_of_room_is_not_carried_out_by_its_repetition(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    desk = Desk(journal)
    for i in range(requests.MAX_OPEN + 1):
        desk.ask(f"{i}", number=3)
    assert desk.last.state == "refused"
    journal, desk = restarted(journal, tmp_path)
    desk.ask(f"{requests.MAX_OPEN}", number=3)
    assert desk.calls == [] and "try again" in (desk.last.why or "")
    journal.close()


def test_what_cannot_be_journaled_is_not_carried_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    desk = Desk(journal)
    journal._db.execute("PRAGMA query_only=ON")
    with pytest.raises(StoreError):
        desk.ask("1", number=3)
    desk.ask("2", "run.look", number=3)  # changes nothing, needs no journal
    journal._db.execute("PRAGMA query_only=OFF")
    desk.ask("1", number=3)
    assert len(desk.calls) == 2
    journal.close()


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    desk = Desk(journal)
    desk.ask("1", number=3)
    journal._db.execute("PRAGMA query_only=ON")
    desk.calls[0][0].done(1)
    assert desk.last.state == "done"
    journal.close()


def test_requests_that_are_journaled_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for i in range(MAX_REQUESTS + 5):
        journal.note_request(ANNA, f"{i}")
    journal.note_request(NodeId("bob"), "0")
    assert len(journal.select("SELECT 1 FROM request")) == MAX_REQUESTS + 1
    assert journal.request(ANNA, "4") == (False, None)
    assert journal.request(ANNA, f"{MAX_REQUESTS + 4}") == (True, None)
    journal.close()
