"""Which transitions of the tables a fault fell into, as a watcher of the bus sees them."""

from __future__ import annotations

from typing import Any

from apiary.wire.messages import (
    Announcement,
    BlobRef,
    Bounds,
    NodeStatus,
    Offer,
    Plan,
    Progress,
    Receipt,
    RoundResult,
    TrainMetrics,
    Want,
)
from apiary_cli.chaos.states import SeenStates, aimed_at, rows

REF = BlobRef(digest="a" * 64, bytes=10)


def announced(state: Any, number: int = 1) -> Announcement:
    return Announcement(
        run="r", round=number, state=state, rounds=3, epoch="e", labels=["x", "y"], model=REF, manifest=REF,
        plan=Plan(), bounds=Bounds(), deadline_s=9.0,
    )  # fmt: skip


def offer() -> Offer:
    return Offer(run="r", round=1, update=REF, codec="raw_f32", samples=3, metrics=TrainMetrics(loss=1.0))


def through_a_round(seen: SeenStates, faults: bool) -> list[str]:
    """A node's and a round's states in their order, with a fault in each where that is wanted."""
    said = []
    accepted = Receipt(digest=REF.digest, state="accepted", run="r", round=1)
    for node, message in (
        (None, announced("open")),
        ("n1", Want(digest=REF.digest, missing=[(0, 1)])),
        ("n1", Progress(run="r", round=1, epoch=1, epochs=2)),
        ("n1", offer()),
        (None, announced("collecting")),
        ("n1", accepted),
        (None, announced("aggregating")),
        (None, announced("evaluating")),
        (None, announced("closed")),
    ):
        if faults:
            said.append(seen.fault("n1"))
        seen.heard(node, message)
    return said


def test_a_fault_in_each_state_hits_every_transition() -> None:
    seen = SeenStates(["n1", "n2"])
    said = through_a_round(seen, faults=True)
    assert seen.missing == []
    assert said[0] == "round closed; idle" and said[4] == "round open; sending"
    assert said[-1] == "round evaluating; idle"


def test_without_faults_none_is_hit_and_the_states_are_followed_all_the_same() -> None:
    seen = SeenStates(["n1", "n2"])
    through_a_round(seen, faults=False)
    assert seen.missing == rows() and len(rows()) == 8
    assert seen.round == "closed" and seen.sessions == {"n1": "idle", "n2": "idle"}


def test_a_nodes_fault_hits_its_own_session_and_all_others_hit_all() -> None:
    seen = SeenStates(["n1", "n2"])
    seen.heard("n1", offer())
    assert seen.fault("n2") == "round closed; idle"
    assert seen.fault("broker") == "round closed; sending, idle"
    seen.heard("n1", Receipt(digest=REF.digest, state="duplicate", run="r", round=1))
    assert seen.hit["session", "sending", "idle"] == 1
    seen.heard("stranger", offer())
    assert "stranger" not in seen.sessions


def test_an_announcement_of_an_earlier_round_is_not_followed() -> None:
    seen = SeenStates(["n1"])
    seen.heard(None, announced("open", 2))
    seen.heard(None, announced("evaluating", 1))
    assert seen.round == "open"


def test_a_node_that_comes_back_in_the_middle_is_at_the_beginning() -> None:
    seen = SeenStates(["n1"])
    seen.heard("n1", Progress(run="r", round=1, epoch=1, epochs=2))
    seen.fault("n1")
    seen.heard("n1", NodeStatus(state="ready"))
    assert seen.sessions["n1"] == "idle" and seen.hit["session", "training", "idle"] == 1


def test_what_is_missing_is_aimed_at_while_it_is_due() -> None:
    seen = SeenStates(["n1", "n2"])
    assert aimed_at(rows(), seen) == ("link-reset", "n1"), "all are idle, and round 1 is not open"
    seen.heard(None, announced("collecting"))
    assert aimed_at(rows(), seen) == ("link-reset", "coordinator")
    seen.heard("n2", offer())
    sending = [row for row in rows() if row[1] == "sending"]
    assert aimed_at(sending, seen) == ("link-reset", "n2")
    assert aimed_at([], seen) is None
    seen.fault("n2")
    assert aimed_at(sending, seen) is None, "one fell into it: what follows shows which transition that was"


def test_a_training_child_is_seen_before_its_node_says_a_word() -> None:
    seen = SeenStates(["n1"])
    seen.heard("n1", Want(digest=REF.digest, missing=[(0, 1)]))
    seen.fault("broker")
    seen.trains("n1")
    assert seen.sessions["n1"] == "training" and seen.hit["session", "fetching", "training"] == 1
    seen.heard("n1", offer())
    seen.trains("n1")  # it has not ended yet
    assert seen.sessions["n1"] == "sending"


def test_the_result_of_an_earlier_round_that_comes_again_closes_nothing() -> None:
    seen = SeenStates(["n1"])
    seen.heard(None, announced("open", 2))
    seen.heard(None, RoundResult(run="r", round=1, state="closed"))
    assert seen.round == "open"
    seen.heard(None, RoundResult(run="r", round=2, state="closed"))
    assert seen.round == "closed"
