"""Every row of the node's table, and what falls between the rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apiary.wire import Digest, NodeId
from apiary.wire.messages import Announcement, BlobRef, Bounds, Offer, Plan, TrainMetrics
from apiary_edge.training.session import (
    OFFER_MAX_PAUSE,
    Announced,
    AskCurrent,
    BlobFetched,
    Command,
    Decline,
    Discard,
    Drop,
    Event,
    FetchBlob,
    Granted,
    MakeOffer,
    NewCoordinator,
    NothingOpen,
    Receipted,
    Reconnected,
    Send,
    Session,
    SessionState,
    SessionTick,
    StopTraining,
    Train,
    Trained,
    TrainingFailed,
    Unreadable,
    handle,
    resume,
)

ME = NodeId("pi-1")


def ref(letter: str) -> BlobRef:
    return BlobRef(digest=letter * 64, bytes=10)


MODEL, MANIFEST, TRAINER = ref("a"), ref("b"), ref("c")
ALL = frozenset(Digest(r.digest) for r in (MODEL, MANIFEST, TRAINER))


def announcement(number: int = 1, **more: Any) -> Announcement:
    fields = {
        "run": "r",
        "round": number,
        "state": "open",
        "rounds": 9,
        "epoch": "e1",
        "labels": ["x", "y"],
        "model": MODEL,
        "manifest": MANIFEST,
        "trainer": TRAINER,
        "plan": Plan(),
        "bounds": Bounds(),
        "deadline_s": 60,
        "cohort": ["pi-1", "pi-2"],
    }
    return Announcement.model_validate({**fields, **more})


def offer(number: int = 1) -> Offer:
    return Offer(
        run="r",
        round=number,
        update=ref("d"),
        codec="raw_f32",
        samples=5,
        metrics=TrainMetrics(loss=1.0),
    )


UPDATE = Digest("d" * 64)
IDLE = Session(ME, offer_idle_s=30.0)
FETCHING = replace(IDLE, state=SessionState.FETCHING, round=announcement(), missing=ALL)
TRAINING = replace(IDLE, state=SessionState.TRAINING, round=announcement())
SENDING = replace(IDLE, state=SessionState.SENDING, round=announcement(), offer=offer(), heard_at=100.0)
STATES = [IDLE, FETCHING, TRAINING, SENDING]


def step(
    session: Session, event: Event, now: float = 100.0, has: frozenset[Digest] = frozenset()
) -> tuple[Session, list[Command]]:
    return handle(session, event, now, has=has)


# -- announced


def test_a_round_for_us_fetches_what_is_missing_each_blob_once() -> None:
    twice = announcement(trainer=MODEL)
    after, commands = step(IDLE, Announced(twice), has=frozenset({Digest(MANIFEST.digest)}))
    assert commands == [FetchBlob(MODEL)]
    assert (after.state, after.round) == (SessionState.FETCHING, twice)
    assert after.missing == {MODEL.digest}
    _, commands = step(IDLE, Announced(announcement()))
    assert {c.ref.digest for c in commands if isinstance(c, FetchBlob)} == ALL


def test_with_everything_here_training_begins_at_once() -> None:
    after, commands = step(IDLE, Announced(announcement()), has=ALL)
    assert (after.state, commands) == (SessionState.TRAINING, [Train(announcement())])


@pytest.mark.parametrize(
    ("told", "invited", "takes_part"),
    [
        ({}, None, True),
        ({"cohort": ["pi-2"]}, None, False),
        ({"cohort": ["pi-2"]}, True, True),
        ({"cohort": None}, None, False),
        ({"cohort": None}, True, True),
        ({}, False, False),
        ({"state": "collecting"}, None, True),
        ({"state": "aggregating"}, None, False),
        ({"state": "evaluating"}, True, False),
        ({"state": "closed"}, True, False),
        ({"state": "failed"}, True, False),
        ({"state": "finished"}, True, False),
    ],
    ids=str,
)
def test_who_takes_part(told: dict[str, Any], invited: bool | None, takes_part: bool) -> None:
    after, commands = step(IDLE, Announced(announcement(**told), invited), has=ALL)
    assert (after.state is SessionState.TRAINING) is takes_part
    assert bool(commands) is takes_part
    if not takes_part:
        assert after == IDLE


def test_who_is_unfit_declines_before_anything_is_fetched_and_only_once() -> None:
    session, commands = handle(IDLE, Announced(announcement(), unfit="too hot"), 0.0)
    assert commands == [Decline(announcement(), "too hot")]
    assert session.state is SessionState.IDLE
    assert handle(session, Announced(announcement()), 1.0) == (session, [])


def test_who_is_unfit_but_not_drawn_says_nothing() -> None:
    session = IDLE
    assert handle(session, Announced(announcement(cohort=["other"]), unfit="too hot"), 0.0) == (session, [])


def test_a_round_that_was_answered_is_not_trained_again() -> None:
    done = replace(IDLE, done=("r", 1))
    assert step(done, Announced(announcement(1), True), has=ALL) == (done, [])
    after, _ = step(done, Announced(announcement(2), True), has=ALL)
    assert after.state is SessionState.TRAINING
    after, _ = step(done, Announced(announcement(1, run="q"), True), has=ALL)
    assert after.state is SessionState.TRAINING


@pytest.mark.parametrize("session", [FETCHING, TRAINING], ids=lambda s: s.state.value)
def test_another_round_replaces_the_one_at_hand(session: Session) -> None:
    after, commands = step(session, Announced(announcement(2)), has=ALL)
    assert commands == [StopTraining(), Train(announcement(2))]
    assert (after.state, after.round, after.missing) == (SessionState.TRAINING, announcement(2), frozenset())
    after, commands = step(session, Announced(announcement(2, cohort=["pi-9"])), has=ALL)
    assert (after.state, after.round, commands) == (SessionState.IDLE, None, [StopTraining()])


@pytest.mark.parametrize("session", [FETCHING, TRAINING], ids=lambda s: s.state.value)
@pytest.mark.parametrize("state", ["aggregating", "evaluating", "closed", "failed", "finished"])
def test_the_end_of_the_round_ends_the_work(session: Session, state: str) -> None:
    after, commands = step(session, Announced(announcement(state=state)))
    assert (after.state, after.round, after.missing) == (SessionState.IDLE, None, frozenset())
    assert commands == [StopTraining()]


@pytest.mark.parametrize("session", [FETCHING, TRAINING], ids=lambda s: s.state.value)
def test_the_same_round_announced_again_changes_nothing(session: Session) -> None:
    for told in (announcement(), announcement(state="collecting"), announcement(cohort=["pi-2"])):
        assert step(session, Announced(told), has=ALL) == (session, [])
    assert step(session, Announced(announcement(), True), has=ALL) == (session, [])


@pytest.mark.parametrize("session", [FETCHING, TRAINING], ids=lambda s: s.state.value)
def test_a_notice_may_dismiss_us(session: Session) -> None:
    after, commands = step(session, Announced(announcement(), False))
    assert (after.state, commands) == (SessionState.IDLE, [StopTraining()])


def test_the_outbox_goes_first_and_is_offered_once_more_when_the_round_has_moved_on() -> None:
    after, commands = step(SENDING, Announced(announcement(2)), has=ALL)
    assert (after.state, after.offer, commands) == (SessionState.SENDING, offer(1), [MakeOffer(offer(1))])
    assert after.round == announcement(2)
    assert step(after, Announced(announcement(2)), has=ALL) == (after, [])
    assert step(SENDING, Announced(announcement(1)), has=ALL) == (SENDING, [])


def test_after_the_end_of_its_run_an_update_is_dropped_and_of_another_run_it_is_not() -> None:
    after, commands = step(SENDING, Announced(announcement(9, state="finished")))
    assert commands == [Drop(offer(), "closed", "the run is over")]
    assert (after.state, after.offer, after.done) == (SessionState.IDLE, None, ("r", 1))
    after, _ = step(SENDING, Announced(announcement(9, run="q", state="finished")))
    assert (after.state, after.offer) == (SessionState.SENDING, offer())


@pytest.mark.parametrize("session", [FETCHING, TRAINING], ids=lambda s: s.state.value)
def test_nothing_open_ends_the_work(session: Session) -> None:
    after, commands = step(session, NothingOpen())
    assert (after.state, after.round, commands) == (SessionState.IDLE, None, [StopTraining()])


@pytest.mark.parametrize("session", [IDLE, SENDING], ids=lambda s: s.state.value)
def test_nothing_open_leaves_the_idle_and_the_outbox_alone(session: Session) -> None:
    assert step(session, NothingOpen()) == (session, [])


# -- fetched, trained


def test_training_begins_with_the_last_blob() -> None:
    session = FETCHING
    for digest in (MODEL.digest, MANIFEST.digest):
        session, commands = step(session, BlobFetched(Digest(digest)))
        assert (session.state, commands) == (SessionState.FETCHING, [])
    session, commands = step(session, BlobFetched(Digest(TRAINER.digest)))
    assert (session.state, session.missing, commands) == (
        SessionState.TRAINING,
        frozenset(),
        [Train(announcement())],
    )


def test_a_blob_that_nobody_misses_does_not_begin_training() -> None:
    assert step(FETCHING, BlobFetched(UPDATE)) == (FETCHING, [])


@pytest.mark.parametrize("session", [IDLE, TRAINING, SENDING], ids=lambda s: s.state.value)
def test_a_late_blob_changes_nothing(session: Session) -> None:
    assert step(session, BlobFetched(Digest(MODEL.digest))) == (session, [])


def test_an_update_is_offered() -> None:
    after, commands = step(replace(TRAINING, unanswered=3), Trained(offer()), now=50.0)
    assert commands == [MakeOffer(offer())]
    assert (after.state, after.offer, after.heard_at, after.unanswered) == (
        SessionState.SENDING,
        offer(),
        50.0,
        0,
    )


@pytest.mark.parametrize("session", [IDLE, FETCHING, SENDING], ids=lambda s: s.state.value)
def test_an_update_of_work_that_was_stopped_is_not_offered(session: Session) -> None:
    assert step(session, Trained(offer(7))) == (session, [])


@pytest.mark.parametrize("session", [FETCHING, TRAINING], ids=lambda s: s.state.value)
def test_who_cannot_train_declines_and_remembers_it(session: Session) -> None:
    after, commands = step(session, TrainingFailed("too few pictures"))
    assert commands == [StopTraining(), Decline(announcement(), "too few pictures")]
    assert (after.state, after.round, after.missing, after.done) == (
        SessionState.IDLE,
        None,
        frozenset(),
        ("r", 1),
    )
    assert step(after, Announced(announcement(), True), has=ALL) == (after, [])


@pytest.mark.parametrize("session", [IDLE, SENDING], ids=lambda s: s.state.value)
def test_a_late_failure_changes_nothing(session: Session) -> None:
    assert step(session, TrainingFailed("late")) == (session, [])


# -- grants and receipts


def test_a_grant_sends_what_it_names_and_counts_as_an_answer() -> None:
    after, commands = step(replace(SENDING, unanswered=2), Granted(UPDATE, [(0, 3), (5, 6)]), now=120.0)
    assert commands == [Send(offer(), [(0, 3), (5, 6)])]
    assert (after.state, after.heard_at, after.unanswered) == (SessionState.SENDING, 120.0, 0)


@pytest.mark.parametrize("session", STATES, ids=lambda s: s.state.value)
def test_a_grant_or_receipt_for_another_update_changes_nothing(session: Session) -> None:
    other = Digest("e" * 64)
    assert step(session, Granted(other, [(0, 1)])) == (session, [])
    assert step(session, Receipted(other, "accepted")) == (session, [])


@pytest.mark.parametrize("session", [IDLE, FETCHING, TRAINING], ids=lambda s: s.state.value)
def test_a_receipt_that_comes_twice_changes_nothing(session: Session) -> None:
    assert step(session, Receipted(UPDATE, "accepted")) == (session, [])


@pytest.mark.parametrize("state", ["accepted", "duplicate", "rejected", "closed"])
def test_any_final_receipt_frees_the_node(state: str) -> None:
    after, commands = step(SENDING, Receipted(UPDATE, state, "because"))
    # A round that is closed has moved on; else the next announcement comes by itself.
    ask: list[Command] = [AskCurrent()] if state == "closed" else []
    assert commands == [Drop(offer(), state, "because"), *ask]
    assert (after.state, after.offer, after.round, after.done) == (SessionState.IDLE, None, None, ("r", 1))


def test_after_the_outbox_the_round_that_moved_on_is_taken_up() -> None:
    session, _ = step(SENDING, Announced(announcement(2)), has=ALL)
    session, _ = step(session, Receipted(UPDATE, "closed"))
    session, commands = step(session, Announced(announcement(2), True), has=ALL)
    assert commands == [Train(announcement(2))]


def test_what_is_missing_is_sent_again() -> None:
    after, commands = step(replace(SENDING, unanswered=2), Receipted(UPDATE, "missing", None, [(1, 2)]))
    assert commands == [Send(offer(), [(1, 2)])]
    assert (after.state, after.unanswered) == (SessionState.SENDING, 0)


# -- time and links


@pytest.mark.parametrize(("unanswered", "pause"), [(0, 30), (1, 60), (2, 120), (3, 240), (4, 240), (60, 240)])
def test_an_unanswered_offer_is_repeated_after_growing_pauses(unanswered: int, pause: float) -> None:
    assert pause <= 30 * OFFER_MAX_PAUSE
    session = replace(SENDING, unanswered=unanswered)
    assert step(session, SessionTick(), now=100.0 + pause - 0.1) == (session, [])
    after, commands = step(session, SessionTick(), now=100.0 + pause)
    assert commands == [MakeOffer(offer())]
    assert (after.heard_at, after.unanswered) == (100.0 + pause, unanswered + 1)


@pytest.mark.parametrize("session", [IDLE, FETCHING, TRAINING], ids=lambda s: s.state.value)
def test_time_changes_nothing_for_who_waits_for_nothing(session: Session) -> None:
    assert step(session, SessionTick(), now=1e9) == (session, [])


@pytest.mark.parametrize("session", STATES, ids=lambda s: s.state.value)
def test_a_new_link_asks_and_offers_again(session: Session) -> None:
    after, commands = step(replace(session, unanswered=5), Reconnected(), now=200.0)
    expected: list[Command] = [AskCurrent()]
    assert commands == expected + ([MakeOffer(offer())] if session is SENDING else [])
    assert (after.state, after.heard_at, after.unanswered) == (session.state, 200.0, 0)


@pytest.mark.parametrize("session", STATES, ids=lambda s: s.state.value)
def test_a_new_coordinator_is_offered_the_update_at_once_and_asked_later(session: Session) -> None:
    after, commands = step(replace(session, unanswered=5), NewCoordinator(), now=200.0)
    assert commands == ([MakeOffer(offer())] if session is SENDING else [])
    assert (after.state, after.heard_at, after.unanswered) == (session.state, 200.0, 0)


def test_what_the_outbox_held_at_the_start_is_offered() -> None:
    after, commands = resume(IDLE, offer(), 5.0)
    assert commands == [MakeOffer(offer())]
    assert (after.state, after.offer, after.round, after.heard_at) == (
        SessionState.SENDING,
        offer(),
        None,
        5.0,
    )
    after, commands = step(after, Announced(announcement(1)), has=ALL)
    assert (after.state, commands) == (SessionState.SENDING, [])


def test_a_receipt_for_an_older_round_makes_the_node_ask_what_is_current() -> None:
    moved_on = replace(SENDING, round=announcement(2))
    _, commands = step(moved_on, Receipted(UPDATE, "accepted"))
    assert commands == [Drop(offer(), "accepted", None), AskCurrent()]


def test_round_that_is_done_is_trained_again_where_a_notice_says_so() -> None:
    done = replace(IDLE, done=("r", 1))
    assert handle(done, Announced(announcement(), True), 0.0, has=ALL) == (done, [])
    session, commands = handle(done, Announced(announcement(), True, again=True), 0.0, has=ALL)
    assert session.state is SessionState.TRAINING
    assert commands == [Train(announcement())]


def test_update_that_cannot_be_read_goes_and_its_round_is_asked_for() -> None:
    sending, _ = resume(IDLE, offer(), 0.0)
    session, commands = handle(sending, Unreadable(UPDATE), 1.0)
    assert commands == [Discard(offer()), AskCurrent()]
    assert (session.state, session.offer, session.done) == (SessionState.IDLE, None, None)
    again, commands = handle(session, Announced(announcement(), True), 2.0, has=ALL)
    assert commands == [Train(announcement())]
    assert again.state is SessionState.TRAINING


def test_another_update_that_cannot_be_read_is_nothing_to_this_one() -> None:
    sending, _ = resume(IDLE, offer(), 0.0)
    assert handle(sending, Unreadable(Digest("e" * 64)), 1.0) == (sending, [])
