"""Whatever the coordinator and the link do, a node trains no round twice and loses no update."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from apiary.wire import Digest, NodeId
from apiary.wire.messages import Announcement, BlobRef, Bounds, Offer, Plan, TrainMetrics
from apiary_edge.training.session import (
    OPEN_STATES,
    Announced,
    AskCurrent,
    BlobFetched,
    Command,
    Decline,
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
    handle,
)

DIGESTS = [Digest(c * 64) for c in "abcdef"]
DIGEST = st.sampled_from(DIGESTS)
REF = st.builds(BlobRef, digest=DIGEST, bytes=st.just(10))
ANNOUNCEMENT = st.builds(
    Announcement,
    run=st.sampled_from(["r", "q"]),
    round=st.integers(1, 4),
    state=st.sampled_from(["open", "collecting", "aggregating", "closed", "failed", "finished"]),
    rounds=st.just(4),
    epoch=st.just("e"),
    labels=st.just(["x", "y"]),
    model=REF,
    manifest=REF,
    trainer=st.one_of(st.none(), REF),
    base=st.none(),
    plan=st.just(Plan()),
    bounds=st.just(Bounds()),
    deadline_s=st.just(60.0),
    cohort=st.sampled_from([None, ["me"], ["other"]]),
    cohort_size=st.just(1),
)
OFFER = st.builds(
    Offer,
    run=st.sampled_from(["r", "q"]),
    round=st.integers(1, 4),
    update=REF,
    codec=st.just("raw_f32"),
    samples=st.just(3),
    metrics=st.just(TrainMetrics(loss=1.0)),
)
EVENT = st.one_of(
    st.builds(Announced, ANNOUNCEMENT, st.sampled_from([None, True, False])),
    st.just(NothingOpen()),
    st.builds(BlobFetched, DIGEST),
    st.builds(Trained, OFFER),
    st.builds(TrainingFailed, st.just("why")),
    st.builds(Granted, DIGEST, st.just([(0, 1)])),
    st.builds(Receipted, DIGEST, st.sampled_from(["accepted", "duplicate", "rejected", "closed", "missing"])),
    st.just(Reconnected()),
    st.just(NewCoordinator()),
    st.just(SessionTick()),
)
STEPS = st.lists(
    st.tuples(EVENT, st.floats(0, 300), st.frozensets(DIGEST), st.booleans()), min_size=1, max_size=60
)


def fitting(event: Event, session: Session) -> Event:
    """Random digests seldom fit: this one speaks of the node's own update, blob or round."""
    match event:
        case Granted(_, missing) if session.offer is not None:
            return Granted(Digest(session.offer.update.digest), missing)
        case Receipted(_, state) if session.offer is not None:
            return Receipted(Digest(session.offer.update.digest), state)
        case BlobFetched() if session.missing:
            return BlobFetched(min(session.missing))
        case Trained(offer) if session.round is not None:
            told = session.round
            return Trained(offer.model_copy(update={"run": told.run, "round": told.round}))
        case _:
            return event


def check(before: Session, event: Event, after: Session, commands: list[Command]) -> None:
    assert (after.state is SessionState.SENDING) == (after.offer is not None)
    assert (after.state is SessionState.FETCHING) == bool(after.missing)
    if after.state in (SessionState.FETCHING, SessionState.TRAINING):
        assert after.round is not None
        assert after.round.state in OPEN_STATES
        assert (after.round.run, after.round.round) != after.done, "an answered round is trained again"
    for command in commands:
        match command:
            case Train(told):
                assert after.state is SessionState.TRAINING and after.round == told
            case FetchBlob(ref):
                assert ref.digest in after.missing
            case MakeOffer(offer):
                assert offer == after.offer
            case Send(offer, _):
                assert offer == after.offer == before.offer
            case Drop(offer, state, _):
                assert offer == before.offer and after.offer is None and state != "missing"
                assert after.done == (offer.run, offer.round)
            case Decline(declined, _):
                assert after.done == (declined.run, declined.round) and after.state is SessionState.IDLE
            case StopTraining() | AskCurrent():
                pass
    # An update leaves by a receipt, or with its run, and nothing takes its place before.
    if before.offer is not None and after.offer != before.offer:
        news = event.announcement if isinstance(event, Announced) else None
        over = news is not None and (news.run, news.state) == (before.offer.run, "finished")
        assert isinstance(event, Receipted) or over
        assert any(isinstance(c, Drop) for c in commands)
    # A child that runs is told when its round is over, and never started over a running one.
    if before.state is SessionState.TRAINING and not isinstance(event, Trained):
        started_or_left = after.state is not SessionState.TRAINING or any(
            isinstance(c, Train) for c in commands
        )
        assert not started_or_left or commands[0] == StopTraining()
    if before.state is SessionState.FETCHING and after.round != before.round:
        assert StopTraining() in commands


@given(STEPS)
@settings(max_examples=600)
def test_any_events(steps: list[tuple[Event, float, frozenset[Digest], bool]]) -> None:
    session, now = Session(NodeId("me"), 30.0), 0.0
    for event, passed, has, fit in steps:
        now += passed
        told = fitting(event, session) if fit else event
        after, commands = handle(session, told, now, has=has)
        check(session, told, after, commands)
        session = after


@given(STEPS, st.floats(1, 100))
@settings(max_examples=200)
def test_an_update_is_offered_again_and_again_until_it_is_answered(
    steps: list[tuple[Event, float, frozenset[Digest], bool]], idle_s: float
) -> None:
    session, now = Session(NodeId("me"), idle_s), 0.0
    for event, passed, has, fit in steps:
        now += passed
        session, _ = handle(session, fitting(event, session) if fit else event, now, has=has)
    if session.offer is None:
        return
    offered = 0
    for _ in range(4):
        now += 8 * idle_s + 0.001  # sums of floats are a little off; a loop turns twice a second
        session, commands = handle(session, SessionTick(), now)
        offered += MakeOffer(session.offer) in commands  # type: ignore[arg-type] # still there: asserted below
        assert session.offer is not None
    assert offered == 4
