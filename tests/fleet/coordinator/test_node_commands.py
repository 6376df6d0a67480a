"""`apiary node` between the real coordinator and real nodes: each answers for itself, whatever is lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet
from tests.stand_ins.memory_bus import LinkFault

from apiary.bus.bus import Received
from apiary.wire import NodeId
from apiary.wire.messages import NodeReply
from apiary.wire.topics import TopicKind
from apiary_coordinator.operators.node_commands import MAX_OPEN
from apiary_edge.feature import NodeFeature
from apiary_edge.operators.commands import MAX_REMEMBERED, Commands
from apiary_edge.operators.log_tail import LogTail
from apiary_edge.service import Edge
from apiary_edge.training.session import SessionState

SITES = {"pi-00": "north", "pi-01": "north", "pi-02": "south"}


@pytest.fixture
def commanded(make_fleet: MakeFleet) -> Callable[..., Fleet]:
    """A fleet of three at two sites whose nodes take commands."""

    def make(**options: Any) -> Fleet:
        fleets: list[Fleet] = []

        def features(node: Edge) -> Sequence[NodeFeature]:
            tail = LogTail()
            tail.emit(logging.LogRecord("x", logging.INFO, "", 0, f"hello from {node.node}", None, None))
            return [Commands(node.channel, node, folder() / node.node, tail)]

        def folder() -> Any:
            return fleets[0].folder if fleets else holder[0]

        holder: list[Any] = []
        fleet = make_fleet(
            3,
            features=dict.fromkeys(SITES, features),
            tags=SITES,
            at=holder.append,
            **{"stay": True, "rounds": 3, **options},
        )
        fleets.append(fleet)
        for _ in range(20):
            fleet.turn()
        return fleet

    return make


def states(fleet: Fleet) -> dict[str, tuple[str, str | None]]:
    assert fleet.coordinator is not None
    return {n: (x.status.state, x.status.why) for n, x in fleet.coordinator.roster.nodes.items()}


def answers(fleet: Fleet, op: str, *nodes: str, **args: Any) -> dict[str, Any]:
    told: Any = fleet.ask(f"node.{op}", nodes=list(nodes), **args)
    assert told.state == "done", told.why
    return told.result["nodes"]  # type: ignore[no-any-return]


PAUSED = ("paused", "paused by operator anna")
READY = ("ready", None)


def test_pause_by_tag_and_resume(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    found = answers(fleet, "pause", "site=north")
    assert {n: one["state"] for n, one in found.items()} == {"pi-00": "done", "pi-01": "done"}
    fleet.until(lambda: states(fleet) == {"pi-00": PAUSED, "pi-01": PAUSED, "pi-02": READY})
    assert set(answers(fleet, "resume", "all")) == set(SITES)
    fleet.until(lambda: set(states(fleet).values()) == {READY})


def test_a_pause_survives_the_nodes_restart(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    answers(fleet, "pause", "pi-01")
    fleet.kill_node("pi-01")
    fleet.start_node("pi-01")
    fleet.until(lambda: states(fleet)["pi-01"] == PAUSED)
    fleet.ask("run.start", settings={"min_nodes": 2, "rounds": 1})
    (result,) = fleet.until(lambda: _rounds(fleet))
    assert sorted(result["contributors"]) == ["pi-00", "pi-02"]


def test_a_paused_node_leaves_its_round_and_comes_back_into_it(
    commanded: Callable[..., Fleet],
) -> None:
    fleet = commanded(lost_grace_s=5)
    fleet.trainings["pi-01"].seconds = 60
    fleet.ask("run.start", settings={"rounds": 1})
    fleet.until(lambda: fleet.nodes["pi-01"].session.state is SessionState.TRAINING)
    answers(fleet, "pause", "pi-01")
    assert fleet.nodes["pi-01"].session.state is SessionState.IDLE
    fleet.trainings["pi-01"].seconds = 1
    answers(fleet, "resume", "pi-01")
    (result,) = fleet.until(lambda: _rounds(fleet))
    assert sorted(result["contributors"]) == ["pi-00", "pi-01", "pi-02"]


def test_a_drained_node_finishes_what_it_has_in_hand(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    fleet.trainings["pi-01"].seconds = 20
    fleet.ask("run.start", settings={"rounds": 2, "min_nodes": 2})
    fleet.until(lambda: fleet.nodes["pi-01"].session.state is SessionState.TRAINING)
    before = fleet.broker.now
    found = answers(fleet, "drain", "pi-01", timeout_s=100)
    assert found["pi-01"] == {"state": "done", "result": {"state": "paused"}}
    assert fleet.broker.now - before > 5
    first, second = fleet.until(lambda: len(_rounds(fleet)) == 2 and _rounds(fleet))
    assert "pi-01" in first["contributors"] and "pi-01" not in second["contributors"]
    assert states(fleet)["pi-01"] == PAUSED


def test_a_drain_survives_the_nodes_restart(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    fleet.trainings["pi-01"].seconds = 20
    fleet.ask("run.start", settings={"rounds": 2})
    fleet.until(lambda: fleet.nodes["pi-01"].session.state is SessionState.TRAINING)
    late = answers(fleet, "drain", "pi-01", timeout_s=1)["pi-01"]
    assert (late["state"], late["why"]) == ("working", "not finished within 1 s; it goes on")
    draining = ("training", "drained by operator anna: it finishes what it has in hand")
    fleet.until(lambda: states(fleet)["pi-01"] == draining)
    fleet.kill_node("pi-01")
    fleet.start_node("pi-01")
    fleet.until(lambda: states(fleet)["pi-01"][0] == "paused")


def test_what_holds_a_node_is_said_before_that_it_drains(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    fleet.trainings["pi-01"].seconds = 20
    fleet.ask("run.start", settings={"rounds": 1})
    fleet.until(lambda: fleet.nodes["pi-01"].session.state is SessionState.TRAINING)
    answers(fleet, "drain", "pi-01", timeout_s=1)
    fleet.nodes["pi-01"].hold("heat", "81 degrees")
    fleet.until(lambda: states(fleet)["pi-01"] == ("paused", "81 degrees"))


def test_a_node_that_gave_up_a_round_trains_it_after_retrain(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded(deadline_s=250, rounds=1)
    fleet.trainings["pi-01"].seconds = 10_000
    fleet.trainings["pi-02"].seconds = 60
    fleet.ask("run.start", settings={"rounds": 1})
    fleet.until(lambda: fleet.nodes["pi-01"].session.state is SessionState.TRAINING)
    assert answers(fleet, "retrain", "pi-01")["pi-01"]["why"] == "it is training round 1 at the moment"
    fleet.nodes["pi-01"].training.give_up("the cat sat on it")
    fleet.until(lambda: states(fleet)["pi-01"] == ("ready", "the cat sat on it"))
    fleet.trainings["pi-01"].seconds = 1
    assert answers(fleet, "retrain", "pi-01")["pi-01"]["result"]["round"] == 1
    (result,) = fleet.until(lambda: _rounds(fleet))
    assert sorted(result["contributors"]) == ["pi-00", "pi-01", "pi-02"]


def test_retrain_says_where_there_is_nothing_to_train_again(commanded: Callable[..., Fleet]) -> None:
    """`done` is what an operator waits for: it is said only where the round is trained once more."""
    fleet = commanded(rounds=1)
    found = answers(fleet, "retrain", "pi-00")["pi-00"]
    assert found == {
        "state": "refused",
        "why": "it has answered or given up no round that it could train again",
    }
    fleet.trainings["pi-01"].seconds = 60
    run = fleet.ask("run.start", settings={"rounds": 1}).result["run"]  # type: ignore[index,call-overload]  # JSON
    fleet.until(lambda: fleet.nodes["pi-00"].session.done == (run, 1))
    found = answers(fleet, "retrain", "pi-00")["pi-00"]
    assert (found["state"], found["why"]) == ("refused", "its update of round 1 was counted already")
    fleet.until(lambda: _rounds(fleet))
    fleet.until(lambda: fleet.coordinator is not None and fleet.coordinator.host.current is None)
    for node in ("pi-01", "pi-02"):
        found = answers(fleet, "retrain", node)[node]
        why = f"round 1 of run {run} is over: nothing to train again"
        assert found == {"state": "refused", "why": why}
        assert fleet.nodes[node].session.done == (run, 1)


def test_a_node_that_has_not_heard_of_the_rounds_end_is_told_right(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded(rounds=1)
    fleet.trainings["pi-01"].seconds = 60
    run = fleet.ask("run.start", settings={"rounds": 1}).result["run"]  # type: ignore[index,call-overload]  # JSON
    fleet.until(lambda: fleet.nodes["pi-00"].session.done == (run, 1))
    fleet.broker.script(LinkFault("drop", "apiary/+/node/pi-00/notice", times=1000))
    fleet.broker.script(LinkFault("drop", "apiary/+/round/current", times=1000))
    fleet.until(lambda: _rounds(fleet))
    found = answers(fleet, "retrain", "pi-00")["pi-00"]
    assert found["state"] == "refused"
    assert found["why"] == f"round 1 of run {run} is over: nothing to train again"


def test_logs(commanded: Callable[..., Fleet]) -> None:
    found = answers(commanded(), "logs", "pi-00", "pi-02", lines=1)
    assert [one["result"]["lines"][0][20:] for one in found.values()] == [
        "INFO hello from pi-00",
        "INFO hello from pi-02",
    ]


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (nested(12), "done; its result is nested too deep, or holds too many values, to be sent"),
        (["x" * 100] * 900, "done; its result takes 93600 bytes, there is room for 80000"),
    ],
    ids=["deep", "large"],
)
def test_a_node_may_answer_what_it_likes(commanded: Callable[..., Fleet], result: Any, why: str) -> None:
    """It ends neither the coordinator nor what the others answer."""
    fleet = commanded()
    topic = fleet.settings().topics.build(TopicKind.NODE_REPLY, node=NodeId("pi-00"))
    captured = fleet.broker.bus("captured", None)
    captured.subscribe(fleet.settings().topics.pattern(TopicKind.NODE_COMMAND, node=NodeId("pi-00")))

    def answer_first() -> None:
        for event in captured.poll(0):
            if isinstance(event, Received):
                id_ = json.loads(event.payload)["id"]
                captured.publish(topic, NodeReply(id=id_, state="done", result=result).encode())

    fleet.nodes["pi-00"].step = lambda timeout_s: answer_first()  # type: ignore[method-assign]  # of this one
    found = answers(fleet, "logs", "all")
    assert found.pop("pi-00") == {"state": "done", "why": why}
    assert {one["state"] for one in found.values()} == {"done"}
    assert all(one["result"]["lines"] for one in found.values())


def test_who_is_not_there_and_who_does_not_answer_is_said(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    fleet.kill_node("pi-00")
    fleet.until(lambda: states(fleet)["pi-00"][0] == "lost")
    fleet.broker.script(LinkFault("drop", "apiary/+/node/pi-01/reply", times=1000))
    found = answers(fleet, "pause", "all", timeout_s=8)
    assert found["pi-00"] == {"state": "absent", "why": "connection lost"}
    assert found["pi-01"] == {"state": "silent", "why": "no answer within 8 s"}
    assert found["pi-02"]["state"] == "done"


@pytest.mark.parametrize("lost", ["command", "reply"])
def test_what_is_lost_on_the_way_is_said_again_and_done_once(
    commanded: Callable[..., Fleet], lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = commanded()
    fleet.broker.script(LinkFault("drop", f"apiary/+/node/+/{lost}", times=4))
    with caplog.at_level(logging.INFO, logger="apiary_edge.operators.commands"):
        assert {one["state"] for one in answers(fleet, "pause", "all").values()} == {"done"}
    assert sum("command=pause" in line for line in caplog.messages) == 3


@pytest.mark.parametrize(
    ("op", "args", "why"),
    [
        ("node.pause", {"nodes": ["pi-9"]}, "no node 'pi-9'; nodes heard of: pi-00, pi-01, pi-02"),
        ("node.pause", {"nodes": ["site=west"]}, "no node has the tag site=west; tags of nodes heard of: "),
        ("node.pause", {"nodes": ["si te=x"]}, "'si te=x' is no rule on tags"),
        ("node.pause", {"nodes": []}, "node.pause: nodes is '[]'"),
        ("node.logs", {"nodes": ["all"], "lines": 501}, "node.logs: lines is '501'"),
        ("node.reboot", {"nodes": ["all"]}, "no operation 'node.reboot'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    commanded: Callable[..., Fleet], op: str, args: dict[str, Any], why: str
) -> None:
    answer = commanded().ask(op, **args)
    assert answer.state == "refused" and (answer.why or "").startswith(why)


def test_orders_are_bounded_and_a_place_is_free_again(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    fleet.broker.script(LinkFault("drop", "apiary/+/node/+/reply", times=10_000))
    assert fleet.coordinator is not None
    from apiary_coordinator.operators.node_commands import NodeCommands, NodeSelector
    from apiary_coordinator.operators.requests import Call

    (office,) = [f for f in fleet.coordinator.features if isinstance(f, NodeCommands)]
    from apiary.wire import NodeId

    for i in range(MAX_OPEN):
        office._order("pause", Call(NodeId("anna"), str(i), "node.pause", 0.0), NodeSelector(nodes=["all"]))
    assert (fleet.ask("node.pause", nodes=["all"]).why or "").startswith("8 commands are under way")
    fleet.until(lambda: not office._orders)


def test_a_damaged_file_pauses_until_resumed(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    fleet.kill_node("pi-01")
    (fleet.folder / "pi-01" / "paused.json").write_text("{")
    fleet.start_node("pi-01")
    fleet.until(lambda: states(fleet)["pi-01"] == ("paused", "paused by operator unknown"))
    answers(fleet, "resume", "pi-01")
    fleet.until(lambda: states(fleet)["pi-01"] == READY)


def test_answers_are_remembered_up_to_a_bound(commanded: Callable[..., Fleet]) -> None:
    fleet = commanded()
    for i in range(MAX_REMEMBERED + 5):
        fleet.ask("node.logs", id=f"x{i}", nodes=["pi-00"], lines=1)
    (commands,) = fleet.nodes["pi-00"].features
    assert isinstance(commands, Commands) and len(commands._answers) == MAX_REMEMBERED


def _rounds(fleet: Fleet) -> list[dict[str, Any]]:
    """Results of the newest run."""
    assert fleet._journal is not None
    query = "SELECT result FROM round WHERE result IS NOT NULL ORDER BY rowid"
    return [json.loads(row[0]) for row in fleet._journal.select(query)]
