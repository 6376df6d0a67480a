"""What `apiary release` asks, through the registry that operators' requests go through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fleet.release_fleet import BAD, TOPICS, ReleaseFleet, all_have, finished_run

from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Outlet
from apiary.wire import NodeId
from apiary.wire.messages import OperatorReply, OperatorRequest
from apiary.wire.topics import Topic, TopicKind
from apiary_coordinator.operators.requests import OperatorRequests
from apiary_coordinator.releases import operations

ANNA = NodeId("anna")


class Asking:
    def __init__(self, fleet: ReleaseFleet):
        self.fleet = fleet
        self.said: list[OperatorReply] = []
        outlet = Outlet(fleet.hq.bus, TOPICS, lambda kind, node, message: self.said.append(message))  # type: ignore[arg-type]  # replies only
        self.operators = OperatorRequests(outlet, lambda: fleet.broker.now)
        operations.register(self.operators, fleet.hq.releasing, fleet.hq.settings, fleet.hq.resources)

    def __call__(self, op: str, **args: Any) -> Any:
        request = OperatorRequest(id=f"r{len(self.said)}", op=f"release.{op}", args=args)
        self.operators.received(Delivery(Topic(TopicKind.OPERATOR_REQUEST, node=ANNA), request))
        for done in self.fleet.hq.worker.collect():
            done.then(done.value)
        last = self.said[-1]
        if last.state == "refused":
            return last.why
        assert last.state == "done"
        return last.result


@pytest.fixture
def ask(tmp_path: Path) -> Asking:
    return Asking(ReleaseFleet(tmp_path, 3))


def test_a_run_is_released_looked_at_and_taken_back(ask: Asking, tmp_path: Path) -> None:
    fleet = ask.fleet
    assert ask("list") == {"releases": []} and ask("status")["rollout"] is None
    assert fleet.roll_out("one", labels=["red", "green", "blue"]) == "done"
    finished_run(tmp_path, program=False)
    told = ask("create", run="autumn", name="hats-2")
    assert (told["release"]["name"], told["state"]) == ("hats-2", "rolling")
    assert (told["members"], told["stable"]) == (1, "one")
    assert told["release"]["labels"] == 3, "how many, not their names: there may be a thousand"
    fleet.made["hats-2"] = fleet.hq.releasing.standing.book.entries["hats-2"].release
    assert ask("pause")["state"] == "paused" and ask("resume")["state"] == "rolling"
    assert fleet.finish() == "done" and all_have(fleet, "hats-2")
    status = ask("status")
    assert status["counts"] == {"healthy": 3}
    assert status["nodes"]["pi-0"]["accuracy"] == 0.95 and status["nodes"]["pi-0"]["current"] == "hats-2"
    assert "hats-2 is out: 3 of 3 nodes healthy" in status["history"][-1]["text"]
    assert [(r["name"], r["current"]) for r in ask("list")["releases"]] == [("one", False), ("hats-2", True)]
    assert ask("rollback")["release"]["name"] == "one"
    fleet.turn(40)
    assert all_have(fleet, "one")
    assert ask("pin", node="pi-1", release="hats-2") == {"nodes": {"pi-1": "hats-2"}, "tags": {}}
    fleet.turn(60)
    assert fleet.currents()["pi-1"] == "hats-2"
    assert ask("pin", node="pi-1") == {"nodes": {}, "tags": {}}
    assert len(ask("key")["key"]) == 44


def test_failures_come_first_in_what_is_told_of_nodes(ask: Asking) -> None:
    assert ask.fleet.roll_out("one") == "done"
    assert ask.fleet.roll_out("two", BAD) == "halted"
    told = ask("status")
    assert told["rollout"]["state"] == "halted" and "1 of 1 nodes failed" in told["rollout"]["why"]
    assert ask("resume")["release"]["attempt"] == 2
    assert ask("abort")["state"] == "aborted"


@pytest.mark.parametrize(
    ("op", "args", "says"),
    [
        ("create", {}, "give either a run or a file"),
        ("create", {"run": "a", "file": "b"}, "give either a run or a file"),
        ("create", {"run": "nosuch"}, "no finished run 'nosuch'"),
        ("create", {"file": "/nosuch.tflite"}, "cannot be read on the coordinator's machine"),
        ("create", {"run": "latest", "name": "no spaces"}, "release.create: name is 'no spaces'"),
        ("create", {"run": "latest", "kind": "exe"}, "release.create: kind is 'exe'"),
        ("create", {"run": "latest", "nosuch": 1}, "release.create: nosuch is '1'"),
        ("pause", {}, "nothing was released yet"),
        ("rollback", {}, "nothing was released yet"),
        ("pin", {"release": "one"}, "give either a node or a tag"),
        ("pin", {"node": "a", "tag": "b=c", "release": "one"}, "give either a node or a tag"),
        ("pin", {"tag": "north", "release": "one"}, "'north' is no rule on tags: expected TAG=VALUE"),
        ("pin", {"node": "a", "release": "one"}, "nothing was released yet"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    ask: Asking, op: str, args: dict[str, Any], says: str
) -> None:
    assert says in ask(op, **args)
