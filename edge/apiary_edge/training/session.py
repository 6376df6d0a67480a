"""The node's state table: `handle(session, event, now)` gives the next session and what to do.

    state      event                          next       commands
    idle       Announced, for us              fetching   Fetch each blob that is missing
    idle       Announced, for us, unfit       idle       Decline
    idle       Announced, done but again      fetching   Fetch each blob that is missing
    fetching   Fetched, nothing missing       training   Train
    training   Trained                        sending    Offer
    training   TrainingFailed                 idle       Decline
    sending    Granted                        sending    Send
    sending    Receipted accepted, ...        idle       Drop, and Ask where the round has moved on
    sending    Receipted missing              sending    Send
    sending    Unreadable                     idle       Discard, Ask
    sending    Tick, no answer for a while    sending    Offer
    sending    Announced, its run is over     idle       Drop
    any        Announced, another round       idle       StopTraining, then as from idle
    any        Reconnected                    same       Ask, and Offer while sending
    sending    NewCoordinator                 same       Offer

Work already done is not done again: a round whose update was answered is remembered in `done`, an update
that waits in the outbox is offered whatever round is open. The service performs commands, decides nothing.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import assert_never

from apiary.wire import Digest, NodeId
from apiary.wire.chunks import Ranges
from apiary.wire.messages import Announcement, BlobRef, Offer, parts_of

OPEN_STATES = ("open", "collecting")
"""States of a round in which an update may still come."""

OFFER_MAX_PAUSE = 8
"""An unanswered offer is repeated after the idle time, twice that, and so on, up to this many times it."""


class SessionState(Enum):
    """What the node is at."""

    IDLE = "idle"
    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"


@dataclass(frozen=True, slots=True)
class Announced:
    """The round as the coordinator published it; `invited` where a notice to this node says so.

    `unfit` is why this node cannot take part, known before it fetches anything. `again`: the update that this
    node was done with is no longer there.
    """

    announcement: Announcement
    invited: bool | None = None
    unfit: str | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class NothingOpen:
    """The coordinator says that no round is open."""


@dataclass(frozen=True, slots=True)
class BlobFetched:
    """A blob is here, whole."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Trained:
    """An update lies in the outbox."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """No update for this round, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Granted:
    """The coordinator wants these chunks now."""

    digest: Digest
    missing: Ranges


@dataclass(frozen=True, slots=True)
class Receipted:
    """What became of an update."""

    digest: Digest
    state: str
    why: str | None = None
    missing: Ranges = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The disk does not give this update back."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The link is new: what was sent last may not have arrived."""


@dataclass(frozen=True, slots=True)
class NewCoordinator:
    """The coordinator was started again: it may not have what was sent last. It is queried a little later."""


@dataclass(frozen=True, slots=True)
class SessionTick:
    """Time has passed."""


Event = (
    Announced
    | NothingOpen
    | BlobFetched
    | Trained
    | TrainingFailed
    | Granted
    | Receipted
    | Unreadable
    | Reconnected
    | NewCoordinator
    | SessionTick
)


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Get this blob."""

    ref: BlobRef


@dataclass(frozen=True, slots=True)
class Train:
    """Start the training child for this round."""

    announcement: Announcement


@dataclass(frozen=True, slots=True)
class StopTraining:
    """End the training child and all fetching: the round is over."""


@dataclass(frozen=True, slots=True)
class MakeOffer:
    """Publish this offer."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Send:
    """Publish these chunks of the update."""

    offer: Offer
    missing: Ranges


@dataclass(frozen=True, slots=True)
class Drop:
    """The update was answered: remember its round as done, then remove it from the outbox."""

    offer: Offer
    state: str
    why: str | None


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove the update from the outbox; its round is not done."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Decline:
    """Tell the coordinator that this node gives up the round."""

    announcement: Announcement
    why: str


@dataclass(frozen=True, slots=True)
class AskCurrent:
    """Ask what is current."""


Command = FetchBlob | Train | StopTraining | MakeOffer | Send | Drop | Discard | Decline | AskCurrent
Outcome = tuple["Session", list[Command]]


@dataclass(frozen=True, slots=True)
class Session:
    """What a node is doing. `done` is the last (run, round) that was answered or declined."""

    node: NodeId
    offer_idle_s: float
    state: SessionState = SessionState.IDLE
    round: Announcement | None = None
    missing: frozenset[Digest] = frozenset()
    offer: Offer | None = None
    heard_at: float = 0.0
    unanswered: int = 0
    done: tuple[str, int] | None = None


def handle(session: Session, event: Event, now: float, *, has: frozenset[Digest] = frozenset()) -> Outcome:
    """What an event makes of a session. `has` are the blobs that are here when a round is announced."""
    match event:
        case Announced():
            return _announced(session, event, has)
        case NothingOpen():
            busy = session.state in (SessionState.FETCHING, SessionState.TRAINING)
            return _leave(session) if busy else (session, [])
        case BlobFetched(digest):
            return _fetched(session, digest)
        case Trained(offer):
            if session.state is not SessionState.TRAINING:
                return session, []
            session = replace(session, state=SessionState.SENDING, offer=offer, heard_at=now, unanswered=0)
            return session, [MakeOffer(offer)]
        case TrainingFailed(why):
            return _failed(session, why)
        case Granted(digest, missing):
            if session.offer is None or session.offer.update.digest != digest:
                return session, []
            return replace(session, heard_at=now, unanswered=0), [Send(session.offer, missing)]
        case Receipted():
            return _receipted(session, event, now)
        case Unreadable(digest):
            if session.offer is None or session.offer.update.digest != digest:
                return session, []
            # Whatever is open now is announced again, and the round is trained once more where it still is.
            idle = replace(session, state=SessionState.IDLE, offer=None, round=None)
            return idle, [Discard(session.offer), AskCurrent()]
        case Reconnected():
            session = replace(session, heard_at=now, unanswered=0)
            return session, [AskCurrent(), *([MakeOffer(session.offer)] if session.offer else [])]
        case NewCoordinator():
            session = replace(session, heard_at=now, unanswered=0)
            return session, [MakeOffer(session.offer)] if session.offer else []
        case SessionTick():
            return _tick(session, now)
        case _:
            assert_never(event)


def resume(session: Session, offer: Offer, now: float) -> Outcome:
    """Take up an update that the outbox held when the node started."""
    return replace(session, state=SessionState.SENDING, offer=offer, heard_at=now), [MakeOffer(offer)]


def _announced(session: Session, event: Announced, has: frozenset[Digest]) -> Outcome:
    announcement = event.announcement
    key = (announcement.run, announcement.round)
    same = _key(session.round) == key
    if session.state is SessionState.SENDING and (offer := session.offer) is not None:
        # The outbox goes first; its receipt frees us, and then we ask what is current. Where the round
        # has moved on, the receipt may come at once. After the run's end nobody is there to give one.
        if announcement.state == "finished" and announcement.run == offer.run:
            done = (offer.run, offer.round)
            idle = replace(session, state=SessionState.IDLE, offer=None, round=None, done=done)
            return idle, [Drop(offer, "closed", "the run is over")]
        stale = key != (offer.run, offer.round) and key != _key(session.round)
        return replace(session, round=announcement), [MakeOffer(offer)] if stale else []
    if announcement.state not in OPEN_STATES:
        return _leave(session) if session.state is not SessionState.IDLE else (session, [])
    listed = announcement.cohort is not None and session.node in announcement.cohort
    drawn = listed if event.invited is None else event.invited
    if same:
        # Published again as the round goes on: a list that leaves us out is no dismissal, a notice is.
        return _leave(session) if event.invited is False else (session, [])
    commands: list[Command] = []
    if session.state is not SessionState.IDLE:
        session, commands = _leave(session)
    if not drawn or (session.done == key and not event.again):
        return session, commands
    if event.unfit is not None:
        return replace(session, done=key), [*commands, Decline(announcement, event.unfit)]
    refs = parts_of(announcement)
    missing = frozenset(Digest(ref.digest) for ref in refs) - has
    session = replace(session, state=SessionState.FETCHING, round=announcement, missing=missing)
    if not missing:
        return replace(session, state=SessionState.TRAINING), [*commands, Train(announcement)]
    fetches = {ref.digest: FetchBlob(ref) for ref in refs if ref.digest in missing}
    return session, [*commands, *fetches.values()]


def _key(announcement: Announcement | None) -> tuple[str, int] | None:
    return (announcement.run, announcement.round) if announcement is not None else None


def _fetched(session: Session, digest: Digest) -> Outcome:
    announcement = session.round
    if session.state is not SessionState.FETCHING or announcement is None:
        return session, []
    session = replace(session, missing=session.missing - {digest})
    if session.missing:
        return session, []
    return replace(session, state=SessionState.TRAINING), [Train(announcement)]


def _failed(session: Session, why: str) -> Outcome:
    announcement = session.round
    if session.state not in (SessionState.FETCHING, SessionState.TRAINING) or announcement is None:
        return session, []
    idle = replace(
        session,
        state=SessionState.IDLE,
        round=None,
        missing=frozenset(),
        done=(announcement.run, announcement.round),
    )
    return idle, [StopTraining(), Decline(announcement, why)]


def _receipted(session: Session, event: Receipted, now: float) -> Outcome:
    offer = session.offer
    if offer is None or offer.update.digest != event.digest:
        return session, []
    if event.state == "missing":
        return replace(session, heard_at=now, unanswered=0), [Send(offer, event.missing)]
    done = (offer.run, offer.round)
    idle = replace(session, state=SessionState.IDLE, offer=None, round=None, done=done)
    drop = Drop(offer, event.state, event.why)
    # While the round we know of is the one just answered, the next announcement comes by itself.
    return idle, [drop] if _key(session.round) == done and event.state != "closed" else [drop, AskCurrent()]


def _tick(session: Session, now: float) -> Outcome:
    if session.state is not SessionState.SENDING or session.offer is None:
        return session, []
    pause = session.offer_idle_s * min(2**session.unanswered, OFFER_MAX_PAUSE)
    if now - session.heard_at < pause:
        return session, []
    return replace(session, heard_at=now, unanswered=session.unanswered + 1), [MakeOffer(session.offer)]


def _leave(session: Session) -> Outcome:
    return replace(session, state=SessionState.IDLE, round=None, missing=frozenset()), [StopTraining()]
