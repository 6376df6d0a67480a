"""A node's way with releases, as a state table: `handle(node, event)` gives the next state and what to do.

    state      event                                   next       commands
    any        Assigned: none                              none       Clear, Report
               Assigned: the current one                   healthy    Report
               Assigned: refused before                    failed     Report
               Assigned: not for this node                 unfit      Report
               Assigned: the one before                    healthy    Restore, Report
               Assigned: another one                       fetching   Fetch, Report
    fetching   Fetched                                 testing    StartTest, Report
               FetchFailed                             fetching   Report; the service tries again
               Spoiled                                 failed     Refuse, Report
    testing    TrialDone, good                         healthy    Swap, Report
               TrialDone, not good enough              failed     Refuse, Report
               TrialCrashed, tries left                testing    StartTest
               TrialCrashed, none left                 failed     Refuse, Report
    healthy    InUse: the current one fails            failed     Refuse, Restore, Report

The last assignment counts: whatever is being fetched or tested for another release is stopped.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from apiary.settings import SlotSettings
from apiary.wire.messages import Release
from apiary_edge.releases.slot import Findings

State = Literal["none", "fetching", "testing", "healthy", "failed", "unfit"]


@dataclass(frozen=True, slots=True)
class ReleaseAssigned:
    """What this node is to have. `unfit` says why it cannot, `refused` why it never will."""

    release: Release | None
    unfit: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseFetched:
    """The file is here and whole."""

    digest: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """No room, or the disk refuses."""

    why: str


@dataclass(frozen=True, slots=True)
class Spoiled:
    """The file is not what was released."""

    why: str


@dataclass(frozen=True, slots=True)
class TrialDone:
    """The test came to its end. `failed`: labels, input or answers are not what the manifest says."""

    tested: Findings | None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class TrialCrashed:
    """The test's process crashed, or was ended because it took too long."""

    why: str


@dataclass(frozen=True, slots=True)
class InUse:
    """The current release fails in use."""

    digest: str
    why: str


Event = ReleaseAssigned | ReleaseFetched | FetchFailed | Spoiled | TrialDone | TrialCrashed | InUse


@dataclass(frozen=True, slots=True)
class FetchRelease:
    """Get the file."""

    release: Release


@dataclass(frozen=True, slots=True)
class StartTest:
    """Test it in a child."""

    release: Release


@dataclass(frozen=True, slots=True)
class StopRelease:
    """Fetch and test no longer."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Make it the current one."""

    release: Release
    tested: Findings


@dataclass(frozen=True, slots=True)
class Refuse:
    """Write down that this attempt is refused."""

    release: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Back to the one before, as `release` where one is assigned."""

    release: Release | None


@dataclass(frozen=True, slots=True)
class Clear:
    """No release any more."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the coordinator."""


Command = FetchRelease | StartTest | StopRelease | Swap | Refuse | Restore | Clear | Report
Outcome = tuple["ReleaseState", list[Command]]


@dataclass(frozen=True, slots=True)
class Held:
    """A release that is on the store."""

    release: str
    digest: str
    attempt: int
    tested: Findings

    def holds(self, release: Release) -> bool:
        """Whether this is the release, whichever attempt at it."""
        return (self.release, self.digest) == (release.name, release.file.digest)


@dataclass(frozen=True, slots=True)
class ReleaseState:
    """How this node stands. `current` and `previous` are what the store holds."""

    limits: SlotSettings = field(default_factory=SlotSettings)
    state: State = "none"
    wanted: Release | None = None
    current: Held | None = None
    previous: Held | None = None
    tested: Findings | None = None
    """Of the wanted release."""
    crashes: int = 0
    why: str | None = None


def handle(node: ReleaseState, event: Event) -> Outcome:
    """What an event makes of it. Events that do not fit the state change nothing."""
    match event:
        case ReleaseAssigned():
            return _assigned(node, event)
        case ReleaseFetched(digest):
            if node.state != "fetching" or node.wanted is None or node.wanted.file.digest != digest:
                return node, []
            return replace(node, state="testing", why=None), [StartTest(node.wanted), Report()]
        case FetchFailed(why):
            if node.state not in ("fetching", "testing") or node.why == why:
                return node, []
            return replace(node, why=why), [Report()]
        case Spoiled(why):
            if node.state not in ("fetching", "testing") or node.wanted is None:
                return node, []
            return _refuse(node, node.wanted, why)
        case TrialDone(tested, failed):
            return _tested(node, tested, failed)
        case TrialCrashed(why):
            return _crashed(node, why)
        case InUse(digest, why):
            return _in_use(node, digest, why)
        case _:
            assert_never(event)


def judge(tested: Findings, limits: SlotSettings) -> str | None:
    """Why a tested release is not good enough, None where it is.

    With few pictures, one more that is wrong is no difference: a drop counts from the second picture on.
    """
    slowest = limits.max_inference_ms
    if slowest is not None and tested.inference_ms > slowest:
        most = f"at most {slowest:g} (edge.slots.max_inference_ms)"
        return f"{tested.inference_ms:.0f} ms a picture, expected {most}"
    if tested.accuracy is None or tested.pictures < limits.min_pictures:
        return None
    of = f"of {tested.pictures} held-out pictures here"
    if tested.accuracy < limits.min_accuracy:
        return f"{tested.right} {of} right, expected {limits.min_accuracy:.0%} (edge.slots.min_accuracy)"
    if tested.right_before is not None:
        lost = tested.right_before - tested.right
        if lost > max(1.0, limits.max_accuracy_drop * tested.pictures):
            return (
                f"{tested.right} {of} right, {tested.right_before} by the present release: worse than "
                f"edge.slots.max_accuracy_drop = {limits.max_accuracy_drop:g} allows"
            )
    return None


def _assigned(node: ReleaseState, assigned: ReleaseAssigned) -> Outcome:
    wanted = assigned.release
    if wanted is None:
        if node.current is None and node.wanted is None:
            return node, []
        cleared = replace(
            node, state="none", wanted=None, current=None, previous=None, tested=None, crashes=0, why=None
        )
        return cleared, [StopRelease(), Clear(), Report()]
    same = node.wanted is not None and wanted.same(
        node.wanted.name, node.wanted.file.digest, node.wanted.attempt
    )
    if same and node.state in ("fetching", "testing", "healthy"):
        return node, []
    stop: list[Command] = [StopRelease()] if node.state in ("fetching", "testing") else []
    node = replace(node, wanted=wanted, tested=None, crashes=0, why=None)
    if assigned.refused is not None:
        return replace(node, state="failed", why=assigned.refused), [*stop, Report()]
    if node.current is not None and node.current.holds(wanted):
        current = replace(node.current, attempt=wanted.attempt)
        return replace(node, state="healthy", current=current, tested=current.tested), [*stop, Report()]
    if node.previous is not None and node.previous.holds(wanted):
        # It was tested when it came, and was good enough to be used.
        back = replace(node.previous, attempt=wanted.attempt)
        healthy = replace(node, state="healthy", current=back, previous=None, tested=back.tested)
        return healthy, [*stop, Restore(wanted), Report()]
    if assigned.unfit is not None:
        return replace(node, state="unfit", why=assigned.unfit), [*stop, Report()]
    return replace(node, state="fetching"), [*stop, FetchRelease(wanted), Report()]


def _tested(node: ReleaseState, tested: Findings | None, failed: str | None) -> Outcome:
    wanted = node.wanted
    if node.state != "testing" or wanted is None:
        return node, []
    node = replace(node, tested=tested)
    if tested is None or failed is not None:
        return _refuse(node, wanted, failed or "its test gave no reason")
    if (why := judge(tested, node.limits)) is not None:
        return _refuse(node, wanted, why)
    held = Held(wanted.name, wanted.file.digest, wanted.attempt, tested)
    previous = node.previous if node.current is None or node.current.digest == held.digest else node.current
    swapped = replace(node, state="healthy", current=held, previous=previous, why=None)
    return swapped, [Swap(wanted, tested), Report()]


def _crashed(node: ReleaseState, why: str) -> Outcome:
    wanted = node.wanted
    if node.state != "testing" or wanted is None:
        return node, []
    node = replace(node, crashes=node.crashes + 1)
    if node.crashes < node.limits.tries:
        return node, [StartTest(wanted)]
    return _refuse(node, wanted, why)


def _refuse(node: ReleaseState, release: Release, why: str) -> Outcome:
    failed = replace(node, state="failed", why=why)
    return failed, [Refuse(release.name, release.attempt, why), Report()]


def _in_use(node: ReleaseState, digest: str, why: str) -> Outcome:
    if node.current is None or node.current.digest != digest:
        return node, []
    bad = node.current
    commands: list[Command] = [Refuse(bad.release, bad.attempt, why), Restore(None), Report()]
    about = node.wanted is not None and bad.holds(node.wanted)
    state: State = "failed" if about else node.state
    back = replace(
        node,
        state=state,
        current=node.previous,
        previous=None,
        crashes=node.crashes + 1,
        why=why if about else node.why,
    )
    return back, commands
