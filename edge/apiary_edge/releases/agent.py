"""Releases on the node: hears which is meant for it, fetches, tests, swaps, reports. The table decides."""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal, assert_never

from apiary.bus.inlet import Delivery
from apiary.clocks import Clocks
from apiary.errors import ModelError, StoreError
from apiary.settings import Settings
from apiary.wire import Digest
from apiary.wire.messages import NodeRelease, Release, ReleaseCurrent
from apiary.wire.topics import TopicKind
from apiary_edge.feature import NodeFeature
from apiary_edge.releases import compatibility, state
from apiary_edge.releases.compatibility import Host
from apiary_edge.releases.job import TrialJob, TrialModel
from apiary_edge.releases.selftest_process import Trial
from apiary_edge.releases.slot import Slot
from apiary_edge.releases.state import Held, ReleaseState
from apiary_edge.releases.store import Open, ReleaseStore
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.downloads import Downloads

log = logging.getLogger(__name__)

OWNER: Final = "release"
SPOILED: Final = 3
"""A file that comes whole this often and never gives its digest is not the one that was released."""
_RETRY_S: Final = 30.0
"""Between two tries of what the disk refused."""
_SCRATCH: Final = "test"
_IN_USE: Final = 3
_IN_USE_S: Final = 3600.0
"""So many failures within this time and a release is taken back; one crash is an accident."""

_Step = Literal["hear", "fetch", "test", "perform"]
"""What may be put off while the disk refuses it."""


class ReleaseAgent(NodeFeature):
    """The node's standing to releases. `open_` judges the seal."""

    kinds = (TopicKind.RELEASE_CURRENT,)

    def __init__(
        self,
        settings: Settings,
        channel: NodeChannel,
        clocks: Clocks,
        downloads: Downloads,
        *,
        store: ReleaseStore,
        testing: Trial,
        host: Host,
        open_: Open,
    ):
        self.standing = ReleaseState(settings.edge.slots)
        self._settings = settings
        self._channel = channel
        self._clocks = clocks
        self._downloads = downloads
        self._store = store
        self._testing = testing
        self._host = host
        self._open = open_
        self._fleet_release: ReleaseCurrent | None = None
        self._put_off: dict[_Step, tuple[float, Callable[[], None]]] = {}
        self._commands: deque[state.Command] = deque()
        self._fetching: Release | None = None
        self._complaints: list[float] = []

    def start(self, now: float) -> None:
        """Take up what the store holds."""
        current = _held(self._store.current)
        self.standing = ReleaseState(
            limits=self.standing.limits, current=current, previous=_held(self._store.previous)
        )
        if self._store.current is not None:
            log.info("node=%s release=%s", self._channel.node, self._store.current.release)

    def received(self, delivery: Delivery) -> None:
        """The fleet's release as it stands now."""
        if not isinstance(delivery.content, bytes):
            return
        current = ReleaseCurrent.decode(self._open(delivery.address, delivery.content), who="release")
        if current.serial < self._store.serial:
            log.warning(
                "node=%s release=%s serial=%d is a repetition: %d was seen; not followed",
                self._channel.node,
                current.release.name,
                current.serial,
                self._store.serial,
            )
            return
        try:
            self._store.seen(current.serial)
        except StoreError as e:
            self._later("hear", partial(self.received, delivery), e)
            return
        self._put_off.pop("hear", None)
        self._fleet_release = current
        self._follow(current)

    def fetched(self, digest: Digest) -> None:
        """A blob is here; it may be the release's."""
        if self._fetching is not None and self._fetching.file.digest == digest:
            self._arrived(self._fetching)

    def tick(self, now: float) -> None:
        """See how the test goes, and try again what the disk refused."""
        for step, (at, act) in list(self._put_off.items()):
            if now >= at and self._put_off.pop(step, None) is not None:
                act()
        if (ended := self._testing.poll()) is not None:
            self._handle(ended)
        release = self._fetching
        if release is not None and self._downloads.spoiled(Digest(release.file.digest)) >= SPOILED:
            why = f"its file came whole {SPOILED} times and is not the one that was signed (sha256 differs)"
            self._downloads.abandon(OWNER)
            self._fetching = None
            self._handle(state.Spoiled(why))

    def complained(self, digest: str, why: str) -> None:
        """Whoever predicts found that a model fails. The current release, again and again: back from it."""
        current = self._store.current
        if current is None or current.digest != digest:
            return
        now = self._clocks.monotonic()
        late = [at for at in self._complaints if now - at < _IN_USE_S]
        self._complaints = [*late[-_IN_USE:], now]
        if len(self._complaints) >= _IN_USE:
            self._complaints = []
            self._handle(state.InUse(digest, f"it fails in use: {why}"))

    def keeps(self) -> set[Digest]:
        """The file that is being taken over."""
        return {Digest(self._fetching.file.digest)} if self._fetching is not None else set()

    def close(self) -> None:
        """End the test; it begins anew at the next start."""
        self._testing.stop()

    def _follow(self, current: ReleaseCurrent) -> None:
        release = current.wanted(self._channel.node, self._settings.edge.tags)
        if release is None:
            self._handle(state.ReleaseAssigned(None))
            return
        unfit = compatibility.why_unfit(release, self._host, self._clocks.wall())
        refused = self._store.why_refused(release.name, release.attempt) or self._other_labels(release)
        self._handle(state.ReleaseAssigned(release, unfit, refused))

    def _other_labels(self, release: Release) -> str | None:
        """A model for something else is a mistake, unless it is confirmed."""
        current, previous = self._store.current, _held(self._store.previous)
        if current is None or release.relabels or set(current.labels) == set(release.labels):
            return None
        if previous is not None and previous.holds(release):
            return None
        return (
            f"it has the labels {', '.join(release.labels)[:150]}, "
            f"the present release {', '.join(current.labels)[:150]}"
        )

    def _handle(self, event: state.Event) -> None:
        self.standing, commands = state.handle(self.standing, event)
        self._commands += commands
        if "perform" not in self._put_off:
            self._go_on()

    def _go_on(self) -> None:
        """Perform what the table decided, in order; what the disk refuses is tried again, and logged."""
        while self._commands:
            command = self._commands.popleft()
            try:
                self._perform(command)
            except StoreError as e:
                self._commands.appendleft(command)
                self._later("perform", self._go_on, e)
                # The standing is ahead of the store: until they agree, the release is not done with.
                self._report(state="testing", why=str(e))
                return

    def _perform(self, command: state.Command) -> None:
        node = self._channel.node
        match command:
            case state.FetchRelease(release):
                self._fetch(release)
            case state.StartTest(release):
                self._test(release)
            case state.StopRelease():
                self._testing.stop()
                self._downloads.abandon(OWNER)
                self._fetching = None
                self._put_off.pop("fetch", None)
                self._put_off.pop("test", None)
                self._store.tidy()
            case state.Swap(release, tested):
                slot = self._store.swap(release, tested)
                log.info(
                    "node=%s release=%s is current, accuracy=%s", node, slot.release, _share(slot.accuracy)
                )
                self._complaints = []
            case state.Refuse(name, attempt, why):
                log.warning("node=%s release=%s refused: %s", node, name, why)
                self._store.refuse(name, attempt, why)
                self._store.tidy()
            case state.Restore(release):
                back = self._store.restore(release)
                log.warning("node=%s back to release=%s", node, back.release if back is not None else None)
            case state.Clear():
                self._store.clear()
            case state.Report():
                self._report()
            case _:
                assert_never(command)

    def _fetch(self, release: Release) -> None:
        self._fetching = release
        digest = Digest(release.file.digest)
        try:
            if self._store.path(release).is_file() or self._downloads.blobs.verify(digest):
                self._arrived(release)
                return
            self._downloads.fetch(release.file, self._clocks.monotonic(), OWNER)
        except StoreError as e:
            self._fetch_later("fetch", partial(self._fetch, release), e)

    def _arrived(self, release: Release) -> None:
        """Verified by its digest: give it its place, look at it, and have it tested."""
        digest = Digest(release.file.digest)
        try:
            path = self._store.take(self._downloads.blobs.path(digest), release)
        except StoreError as e:
            self._fetch_later("fetch", partial(self._fetch, release), e)
            return
        self._fetching = None
        self._downloads.blobs.remove(digest)  # the store has the bytes now
        try:
            compatibility.check_file(path, release)
        except ModelError as e:
            self._handle(state.Spoiled(str(e)))
            return
        self._handle(state.ReleaseFetched(digest))

    def _test(self, release: Release) -> None:
        edge, slots = self._settings.edge, self._settings.edge.slots
        current = self._store.current
        samples = edge.store_dir
        scratch = self._store.folder / _SCRATCH
        try:
            scratch.mkdir(exist_ok=True)
            self._testing.start(
                TrialJob(
                    model=TrialModel(
                        kind=release.kind,
                        file=self._store.path(release),
                        labels=release.labels,
                        input=release.input,
                    ),
                    before=_model(current) if current is not None else None,
                    store=samples if samples.is_dir() else None,
                    data_dir=edge.data_dir,
                    join_labels=edge.join_labels,
                    folder_share=slots.folder_share,
                    max_pictures=slots.max_pictures,
                    threads=edge.threads,
                    out=scratch / "result.json",
                )
            )
        except (OSError, StoreError) as e:
            self._fetch_later("test", partial(self._test, release), e)

    def _fetch_later(self, step: _Step, act: Callable[[], None], e: Exception) -> None:
        self._later(step, act, e)
        self._handle(state.FetchFailed(str(e)[:500]))

    def _later(self, step: _Step, act: Callable[[], None], e: Exception) -> None:
        log.warning("node=%s release: %s; trying again in %.0f s", self._channel.node, e, _RETRY_S)
        self._put_off[step] = (self._clocks.monotonic() + _RETRY_S, act)

    def _report(self, state: state.State | None = None, why: str | None = None) -> None:
        standing, tested = self.standing, self.standing.tested
        why = why or standing.why
        wanted, current = standing.wanted, self._store.current
        self._channel.send(
            NodeRelease(
                state=state or standing.state,
                serial=self._fleet_release.serial if self._fleet_release is not None else self._store.serial,
                release=wanted.name if wanted is not None else None,
                digest=wanted.file.digest if wanted is not None else None,
                attempt=wanted.attempt if wanted is not None else 0,
                current=current.release if current is not None else None,
                why=why[:500] if why is not None else None,
                accuracy=tested.accuracy if tested is not None else None,
                accuracy_before=tested.accuracy_before if tested is not None else None,
                pictures=tested.pictures if tested is not None else 0,
                inference_ms=tested.inference_ms if tested is not None else None,
                crashes=standing.crashes,
                machine=self._host.machine,
            )
        )


def _held(slot: Slot | None) -> Held | None:
    return Held(slot.release, slot.digest, slot.attempt, slot.tested) if slot is not None else None


def _model(slot: Slot) -> TrialModel:
    return TrialModel(kind=slot.kind, file=Path(slot.path), labels=list(slot.labels), input=slot.input)


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
