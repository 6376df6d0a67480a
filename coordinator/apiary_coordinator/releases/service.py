"""Rolls releases out: journals what the table decides, publishes it to the fleet, serves the file."""

import logging
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from apiary.bus.inlet import Delivery
from apiary.errors import ApiaryError, RequestRefused, StoreError
from apiary.files import disk_errors
from apiary.settings import Settings
from apiary.wire import Digest, NodeId
from apiary.wire.messages import MAX_BYTES, NodeRelease, Release
from apiary.wire.messages.releases import MAX_PINNED, MAX_PINS
from apiary.wire.topics import TopicKind
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.releases import build
from apiary_coordinator.releases import rollout as table
from apiary_coordinator.releases import rollout_events as words
from apiary_coordinator.releases.build import BuiltRelease, ReleaseRequest
from apiary_coordinator.releases.ledger import Book, HistoryLine, Ledger, current
from apiary_coordinator.releases.rollout import Rollout
from apiary_coordinator.releases.rollout_events import Member, Pins, Publish
from apiary_coordinator.releases.signer import ReleaseSigner
from apiary_coordinator.resources import Resources

log = logging.getLogger(__name__)

OWNER: Final = "release"
MAX_FLEET: Final = 20_000
_REPEAT_S: Final = 300.0
"""What is current is published again: nothing depends on one message, or on what the broker remembers."""
_AGAIN_S: Final = 10.0
"""Between two times that a foreign message is answered by ours."""
_TICK_S: Final = 0.5
_TICK_S_A_NODE: Final = 1 / 5_000
"""Judging a wave looks at every node: 60 ms of the loop for 10,000 (measured), then every 2.5 s."""
_SEAL_ROOM: Final = 8_000


@dataclass(frozen=True, slots=True)
class ReleaseStatus:
    """What is known, for whoever asks."""

    book: Book
    rollout: Rollout | None


class ReleaseService(CoordinatorFeature):
    """One roll-out at a time. Requests raise RequestRefused with what is in the way."""

    kinds = (TopicKind.NODE_RELEASE, TopicKind.NODE_STATUS, TopicKind.RELEASE_CURRENT)

    def __init__(
        self, settings: Settings, resources: Resources, roster: Roster, ledger: Ledger, signer: ReleaseSigner
    ):
        self._all_settings = settings
        self._settings = settings.release
        self._clocks = resources.clocks
        self._blobs = resources.storage.blobs
        self._model_server = resources.outgoing.model_server
        self._roster = roster
        self._ledger = ledger
        self._signer = signer
        self._fleet: dict[str, Member] = {}
        self._news: dict[str, Member] = {}
        """Of the fleet, what the roll-out does not know yet."""
        self._silent: set[NodeId] = set()
        self._rollout: Rollout | None = None
        self._published_at = 0.0
        self._ticked_at = 0.0
        self._ready: deque[Release] = deque(maxlen=100)
        """Made on the worker's thread, begun on the loop's."""

    @property
    def standing(self) -> ReleaseStatus:
        """The book and the roll-out with what is known of the nodes."""
        self._catch_up()
        return ReleaseStatus(self._ledger.book, self._rollout)

    def key(self) -> str:
        """The public key that nodes pin."""
        return self._signer.key()

    def start(self, now: float) -> None:
        """Resume what the ledger holds, and publish it again."""
        self._fleet = {
            n.id: Member(here=n.status.state != "lost", tags=n.status.tags)
            for n in self._roster.nodes.values()
        }
        rollout = self._ledger.book.rollout
        if rollout is not None:
            self._rollout = table.taken_up(replace(rollout, fleet=dict(self._fleet)), now)
            self._serve()
            if rollout.state in ("rolling", "paused"):
                log.info("release=%s is %s, wave %d", rollout.release.name, rollout.state, rollout.wave + 1)
            self._publish(now)

    def received(self, delivery: Delivery) -> None:
        """A node reports its release, or comes, or goes."""
        node, report = delivery.topic.node, delivery.content
        if isinstance(report, bytes):
            self._check_current(report)
            return
        if node is None or report is None or (node not in self._fleet and len(self._fleet) >= MAX_FLEET):
            return
        if isinstance(report, NodeRelease):
            before = self._fleet.get(node, Member())
            if before.report != report:
                log.debug("node=%s release=%s %s %s", node, report.release, report.state, report.why or "")
            self._fleet[node] = self._news[node] = replace(before, report=report)
            return
        if node in self._roster:
            self._noted(node)

    def _noted(self, node: NodeId) -> None:
        """Take over what the roster has of a node."""
        status = self._roster[node].status
        member = self._fleet.get(node, Member())
        here, tags = status.state != "lost" and node not in self._roster.silent, dict(status.tags)
        if (member.here, dict(member.tags)) != (here, tags):
            self._fleet[node] = self._news[node] = replace(member, here=here, tags=tags)

    def finished(self, folder: Path) -> None:
        """Release a run where the settings ask for it; on the worker's thread."""
        kind = self._settings.after_publish
        if kind is None:
            return
        try:
            wish = ReleaseRequest(kind="tflite" if kind == "tflite" else None)
            made = self.keep(build.from_run(folder, wish, self._all_settings, self._clocks.wall()))
        except ApiaryError as e:
            log.warning(
                "run=%s is not released: %s; `apiary release create %s` tries again",
                folder.name,
                e,
                folder.name,
            )
            return
        if kind == "eim" and made.release.kind != "eim":
            log.warning("run=%s has no program (.eim): its .tflite is released instead", folder.name)
        self._ready.append(made.release)

    def tick(self, now: float) -> None:
        """Judge the wave; begin what was made."""
        if now - self._ticked_at < _TICK_S + len(self._fleet) * _TICK_S_A_NODE:
            return
        self._ticked_at = now
        self._begin_ready()
        silent = set(self._roster.silent)
        for node in silent ^ self._silent:
            if node in self._roster:
                self._noted(node)
        self._silent = silent
        self._take(words.RolloutTick())
        if self._rollout is not None and now - self._published_at >= _REPEAT_S:
            self._publish(now)

    def close(self) -> None:
        """What was made is journaled: it is rolled out at the next start."""
        try:
            self._begin_ready()
        except StoreError as e:
            log.error("%s", e)
        if self._rollout is not None and self._rollout.state == "rolling":
            log.warning(
                "release=%s is on its way, and goes on when a coordinator runs (apiary coordinator --stay)",
                self._rollout.release.name,
            )

    def keep(self, made: BuiltRelease) -> BuiltRelease:
        """Put a release's file where nodes can have it. For a worker's thread. Raises StoreError."""
        with disk_errors(f"{made.file}"):
            data = made.file.read_bytes()
        self._blobs.verify(Digest(made.release.file.digest))  # a damaged one of before is removed
        digest = self._blobs.put(data)
        if digest != made.release.file.digest:
            raise StoreError(f"{made.file} changed while it was read: try again")
        return made

    def begin(self, release: Release) -> Rollout:
        """Start to roll it out. Raises RequestRefused, StoreError."""
        going = self._rollout
        book = self._ledger.book
        if going is not None and going.state in ("rolling", "paused"):
            raise RequestRefused(
                f"{going.release.name} is {going.state}: wait for it, or apiary release abort"
            )
        if release.name in book.entries:
            raise RequestRefused(
                f"there is a release {release.name!r} already: apiary release rollback {release.name} gives "
                "it to the fleet again, --name gives this one another name"
            )
        if (stable := book.stable()) is not None and stable.file.digest == release.file.digest:
            raise RequestRefused(f"the fleet has these very bytes, as {stable.name}")
        if stable is not None and not release.relabels and set(stable.labels) != set(release.labels):
            raise RequestRefused(
                f"it has the labels {', '.join(release.labels)[:150]}, {stable.name} has "
                f"{', '.join(stable.labels)[:150]}; if that is meant: --new-labels"
            )
        if stable is not None and release.relabels:
            stable = stable.model_copy(update={"relabels": True})  # the way back is meant as well
        rollout, commands = table.begin(
            release, stable, self._settings, self._clocks.monotonic(), pins=book.pins, fleet=dict(self._fleet)
        )
        self._check_size(rollout)
        self._perform(rollout, commands)
        return rollout

    def pause(self) -> Rollout:
        """Open no further wave."""
        return self._change(words.PauseRollout(), "rolling")

    def resume(self) -> Rollout:
        """Go on; after a halt or an abort, begin again."""
        return self._change(words.ResumeRollout(), "paused, halted or aborted")

    def abort(self) -> Rollout:
        """Give it up."""
        return self._change(words.AbortRollout(), "rolling or paused")

    def rollback(self, name: str | None) -> Rollout:
        """Give the whole fleet an earlier release at once: the one before, or the one named."""
        book, going = self._ledger.book, self._rollout
        if going is None:
            raise RequestRefused("nothing was released yet")
        if name is None:
            if going.state in ("rolling", "paused"):
                return self.abort()
            if going.stable is None or going.stable.name == going.release.name:
                raise RequestRefused(
                    f"no release before {going.release.name}: name one of apiary release list"
                )
            release = going.stable
        elif name in book.entries:
            release = book.entries[name].release
        else:
            raise RequestRefused(f"no release {name!r}; there are: {', '.join(book.entries) or 'none'}")
        self._must_have(release)
        rollout, commands = table.restore(
            release.model_copy(update={"attempt": release.attempt + 1, "relabels": True}),
            self._settings,
            self._clocks.monotonic(),
            pins=book.pins,
            fleet=dict(self._fleet),
        )
        self._perform(rollout, commands)
        return rollout

    def pin(self, *, node: str | None, rule: str | None, name: str | None) -> Pins:
        """Pin a node, or the nodes with a tag, to a release; `name` None takes the pin away."""
        book = self._ledger.book
        if self._rollout is None:
            raise RequestRefused("nothing was released yet")
        nodes, tags = dict(book.pins.nodes), dict(book.pins.tags)
        pins, key = (nodes, node) if node is not None else (tags, rule)
        assert key is not None  # noqa: S101 - one of the two is given
        if name is None:
            if pins.pop(key, None) is None:
                raise RequestRefused(f"{key} is not pinned")
        elif name not in book.entries:
            raise RequestRefused(f"no release {name!r}; there are: {', '.join(book.entries) or 'none'}")
        else:
            self._must_have(book.entries[name].release)
            pins[key] = name
        used = {n: book.entries[n].release for n in sorted({*nodes.values(), *tags.values()})}
        if len(nodes) > MAX_PINS or len(tags) > MAX_PINS or len(used) > MAX_PINNED:
            raise RequestRefused(
                f"at most {MAX_PINS} nodes and tags are pinned, to at most {MAX_PINNED} releases"
            )
        pinned = Pins(nodes, tags, used)
        rollout, commands = table.handle(self._rollout, words.Pinned(pinned), self._clocks.monotonic())
        self._check_size(rollout)
        self._perform(rollout, commands)
        return pinned

    def _begin_ready(self) -> None:
        while self._ready:
            release = self._ready[0]
            try:
                self.begin(release)
            except RequestRefused as e:
                log.warning("release=%s is not rolled out: %s", release.name, e)
            self._ready.popleft()

    def _change(self, event: words.Event, when: str) -> Rollout:
        self._catch_up()
        if self._rollout is None:
            raise RequestRefused("nothing was released yet")
        before = self._rollout
        self._take(event)
        if self._rollout is before:
            raise RequestRefused(f"{before.release.name} is {before.state}, not {when}")
        return self._rollout

    def _catch_up(self) -> None:
        """Put what was reported of nodes through the table, all at once."""
        if self._rollout is not None and self._news:
            known = words.Known(self._news)
            self._rollout, _ = table.handle(self._rollout, known, self._clocks.monotonic())
            self._news = {}

    def _take(self, event: words.Event) -> None:
        self._catch_up()
        if self._rollout is not None:
            rollout, commands = table.handle(self._rollout, event, self._clocks.monotonic())
            self._perform(rollout, commands)

    def _perform(self, rollout: Rollout, commands: list[Publish]) -> None:
        """Journal first: where the disk refuses, nothing was decided, and it is decided again."""
        if not commands:
            self._rollout = rollout
            return
        book, wall = self._ledger.book, self._clocks.wall()
        for command in commands:
            book = book.with_rollout(rollout, HistoryLine(round(wall, 3), command.note, command.bad))
        self._ledger.write(replace(book, serial=book.next_serial(wall)))
        self._rollout = rollout
        for command in commands:
            log.log(logging.WARNING if command.bad else logging.INFO, "release: %s", command.note)
        self._serve()
        self._tidy()
        self._publish(self._clocks.monotonic())

    def _check_current(self, payload: bytes) -> None:
        """What stands on our topic: where it is not ours, nodes that come would find nothing to follow."""
        now = self._clocks.monotonic()
        if self._rollout is None or self._signer.is_ours(payload) or now - self._published_at < _AGAIN_S:
            return
        log.warning("release/current held %d bytes that are not ours; published again", len(payload))
        self._publish(now)

    def _publish(self, now: float) -> None:
        if self._rollout is not None:
            self._published_at = (
                now - _REPEAT_S + _AGAIN_S
            )  # where it cannot be sealed, again after a short while
            self._signer.send(current(self._rollout, self._ledger.book.serial))
            self._published_at = now

    def _serve(self) -> None:
        """Serve the files of every release that a node may be to have."""
        assert self._rollout is not None  # noqa: S101 - called where there is one
        named = [self._rollout.release, self._rollout.stable, *self._rollout.pins.releases.values()]
        refs = {r.file.digest: r.file for r in named if r is not None}
        self._model_server.serve(list(refs.values()), max(1, len(self._rollout.members)), OWNER)

    def _must_have(self, release: Release) -> None:
        if not self._blobs.verify(Digest(release.file.digest)):
            raise RequestRefused(
                f"the file of {release.name} is no longer kept (release.keep): create it again"
            )

    def _check_size(self, rollout: Rollout) -> None:
        size = len(current(rollout, 2**52).encode())
        if size > MAX_BYTES - _SEAL_ROOM:
            raise RequestRefused(
                f"its message would have {size} bytes, at most {MAX_BYTES - _SEAL_ROOM} are allowed: "
                "fewer labels, or fewer pins"
            )

    def _tidy(self) -> None:
        """Forget the files of releases that are neither in use nor among the newest."""
        book = self._ledger.book
        needed = book.in_use() | set(list(book.entries)[-self._settings.keep :])
        kept = {e.release.file.digest for n, e in book.entries.items() if n in needed}
        for name, entry in book.entries.items():
            digest = Digest(entry.release.file.digest)
            if name not in needed and digest not in kept and digest in self._blobs:
                log.info("release=%s its file is no longer kept", name)
                self._blobs.remove(digest)
