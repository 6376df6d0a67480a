"""Whatever the coordinator and the link do, a node trains no round twice and loses no update."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

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
)

DIGESTS = [Digest(c * 64) for c in "abcdef"]
CHANCES = st.randoms(use_true_random=True)
"""Hypothesis chooses the seed alone: its lists are short, and random digests seldom are the node's own."""
IDLE, FETCHING, TRAINING, SENDING = SessionState
TRANSITIONS = {
    (IDLE, "Announced", FETCHING),
    (IDLE, "Announced", TRAINING),
    *((busy, "Announced", IDLE) for busy in (FETCHING, TRAINING, SENDING)),
    (FETCHING, "Announced", TRAINING),
    (TRAINING, "Announced", FETCHING),
    *((busy, "NothingOpen", IDLE) for busy in (FETCHING, TRAINING)),
    *((busy, "TrainingFailed", IDLE) for busy in (FETCHING, TRAINING)),
    (FETCHING, "BlobFetched", TRAINING),
    (TRAINING, "Trained", SENDING),
    *((SENDING, event, IDLE) for event in ("Receipted", "Unreadable")),
}
"""Every way from one state into another."""
COMMANDS = {
    *((IDLE, "Announced", kind) for kind in ("FetchBlob", "Train", "Decline")),
    *((FETCHING, "Announced", kind) for kind in ("StopTraining", "FetchBlob", "Train", "Decline")),
    *((TRAINING, "Announced", kind) for kind in ("StopTraining", "FetchBlob", "Train", "Decline")),
    *((SENDING, "Announced", kind) for kind in ("MakeOffer", "Drop")),
    *((busy, "NothingOpen", "StopTraining") for busy in (FETCHING, TRAINING)),
    *(
        (busy, "TrainingFailed", kind)
        for busy in (FETCHING, TRAINING)
        for kind in ("StopTraining", "Decline")
    ),
    (FETCHING, "BlobFetched", "Train"),
    (TRAINING, "Trained", "MakeOffer"),
    (SENDING, "Granted", "Send"),
    *((SENDING, "Receipted", kind) for kind in ("Send", "Drop", "AskCurrent")),
    *((SENDING, "Unreadable", kind) for kind in ("Discard", "AskCurrent")),
    *((state, "Reconnected", "AskCurrent") for state in SessionState),
    *((SENDING, event, "MakeOffer") for event in ("Reconnected", "NewCoordinator", "SessionTick")),
}
"""Every command, by state and event."""


def any_announcement(chance: Random) -> Announcement:
    def ref() -> BlobRef:
        return BlobRef(digest=chance.choice(DIGESTS), bytes=10)

    state = chance.choice(
        ["open", "open", "open", "collecting", "aggregating", "closed", "failed", "finished"]
    )
    return Announcement(
        run=chance.choice("rq"),
        round=chance.randint(1, 4),
        state=state,
        rounds=4,
        epoch="e",
        labels=["x", "y"],
        model=ref(),
        manifest=ref(),
        trainer=chance.choice([None, ref()]),
        base=None,
        plan=Plan(),
        bounds=Bounds(),
        deadline_s=60.0,
        cohort=chance.choice([None, ["me"], ["me"], ["other"]]),
        cohort_size=1,
    )


def any_announced(chance: Random) -> Announced:
    return Announced(
        any_announcement(chance),
        invited=chance.choice([None, None, True, False]),
        unfit=chance.choice([None, None, None, "too hot"]),
        again=chance.random() < 0.1,
    )


def next_event(chance: Random, session: Session) -> Event:
    """Anything, but three times of four about the node's own update, blob or round, where it has one."""
    own = session.offer.update.digest if session.offer is not None else min(session.missing, default=None)
    digest = Digest(own) if own is not None and chance.random() < 0.75 else chance.choice(DIGESTS)
    told = session.round if session.round is not None and chance.random() < 0.75 else any_announcement(chance)
    match chance.randrange(14):
        case 0 | 1 | 2:
            return any_announced(chance)
        case 3:
            return Announced(told, invited=chance.choice([None, True, False]))
        case 4:
            return Announced(told.model_copy(update={"state": "finished"}))
        case 5:
            return NothingOpen()
        case 6 | 7:
            return BlobFetched(digest)
        case 8:
            return TrainingFailed("why")
        case 9:
            return Granted(digest, [(0, 1)])
        case 10:
            answer = chance.choice(["accepted", "duplicate", "rejected", "closed", "missing", "missing"])
            return Receipted(digest, answer)
        case 11:
            news: list[Event] = [Unreadable(digest), Reconnected(), NewCoordinator()]
            return chance.choice(news)
        case 12:
            return SessionTick()
        case _:
            return Trained(
                Offer(
                    run=told.run,
                    round=told.round,
                    update=BlobRef(digest=chance.choice(DIGESTS), bytes=10),
                    codec="raw_f32",
                    samples=3,
                    metrics=TrainMetrics(loss=1.0),
                )
            )


def walk(
    chance: Random, idle_s: float = 30.0
) -> Iterator[tuple[Session, Event, Session, list[Command], float]]:
    """A session through some sixty events: before, event, after, commands, now."""
    session, now = Session(NodeId("me"), idle_s), 0.0
    for _ in range(chance.randint(20, 100)):
        now += chance.choice([0.0, chance.uniform(0, 2 * idle_s)])
        event = next_event(chance, session)
        has = frozenset(chance.sample(DIGESTS, chance.choice([0, 3, 6])))
        after, commands = handle(session, event, now, has=has)
        yield session, event, after, commands, now
        session = after


def check(before: Session, event: Event, after: Session, commands: list[Command]) -> None:
    assert (after.state is SessionState.SENDING) == (after.offer is not None)
    assert (after.state is SessionState.FETCHING) == bool(after.missing)
    if after.state in (SessionState.FETCHING, SessionState.TRAINING):
        assert after.round is not None
        assert after.round.state in OPEN_STATES
    assert after.state is not SessionState.IDLE or after.round is None
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
            case Discard(offer):
                assert offer == before.offer and after.offer is None and isinstance(event, Unreadable)
                assert after.done == before.done, "its round is not done, and may be trained again"
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
        assert isinstance(event, Receipted | Unreadable) or over
        assert any(isinstance(c, Drop | Discard) for c in commands)
    # A child that runs is told when its round is over, and never started over a running one.
    if before.state is SessionState.TRAINING and not isinstance(event, Trained):
        started_or_left = after.state is not SessionState.TRAINING or any(
            isinstance(c, Train) for c in commands
        )
        assert not started_or_left or commands[0] == StopTraining()
    if before.state is SessionState.FETCHING and after.round != before.round:
        assert StopTraining() in commands


def starts(after: Session, commands: list[Command]) -> tuple[str, int] | None:
    """The round that a node begins to fetch or to train."""
    if after.round is None or not any(isinstance(c, FetchBlob | Train) for c in commands):
        return None
    return after.round.run, after.round.round


def test_any_events() -> None:
    """And they come into every state by every way, and to every command."""
    ways: set[tuple[SessionState, str, SessionState]] = set()
    done: set[tuple[SessionState, str, str]] = set()

    @given(CHANCES)
    @settings(max_examples=500)
    def any_events(chance: Random) -> None:
        for before, event, after, commands, _ in walk(chance):
            check(before, event, after, commands)
            if starts(after, commands) == before.done and before.done is not None:
                again = isinstance(event, Announced) and event.again
                late = isinstance(event, BlobFetched)  # of a round that it began again
                assert again or late, "an answered round is trained again"
            name = type(event).__name__
            done.update((before.state, name, type(command).__name__) for command in commands)
            if after.state is not before.state:
                ways.add((before.state, name, after.state))

    any_events()
    assert ways == TRANSITIONS
    assert done == COMMANDS


@given(CHANCES, st.floats(1, 100))
@settings(max_examples=200)
def test_an_update_is_offered_again_and_again_until_it_is_answered(chance: Random, idle_s: float) -> None:
    found = [(after, now) for _, _, after, _, now in walk(chance, idle_s) if after.offer is not None]
    if not found:
        return
    # The one that went unanswered the longest: its pauses are at their bound, or near it.
    session, now = max(found, key=lambda f: f[0].unanswered)
    offered = 0
    for _ in range(6):
        now += 8 * idle_s + 0.001  # sums of floats are a little off; a loop turns twice a second
        session, commands = handle(session, SessionTick(), now)
        assert session.offer is not None
        offered += MakeOffer(session.offer) in commands
    assert offered == 6
