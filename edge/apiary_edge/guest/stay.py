"""The guest rules at work on a node: look at the machine, pause and go on, decline what does not fit."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from apiary.blobs import BlobStore
from apiary.clocks import Clocks
from apiary.settings import GuestSettings
from apiary.wire import Digest
from apiary.wire.messages import Announcement, NodeHealth, parts_of
from apiary_edge import hours
from apiary_edge.feature import NodeFeature, Rounds
from apiary_edge.guest import rules
from apiary_edge.guest.round_needs import RoundNeeds, room_for, too_small
from apiary_edge.guest.rules import TrainingPause
from apiary_edge.health.news import health, is_news
from apiary_edge.health.readings import Readings
from apiary_edge.transfer.channel import NodeChannel

log = logging.getLogger(__name__)

_WHO = "guest"


class Machine(Protocol):
    """What reads the machine; `health.reader.Reader` is one."""

    def read(self) -> Readings:
        """How it is now; must not wait."""

    def close(self) -> None:
        """End what still runs."""


class Guest(NodeFeature):
    """Publishes the machine's health, and keeps training off it where `[edge.guest]` says so."""

    def __init__(
        self,
        channel: NodeChannel,
        rounds: Rounds,
        clocks: Clocks,
        blobs: BlobStore,
        *,
        settings: GuestSettings,
        machine: Machine,
        runtime: str,
        minute: Callable[[float], int] = hours.minute_of_day,
    ):
        self.pause = TrainingPause()
        self._channel = channel
        self._rounds = rounds
        self._clocks = clocks
        self._blobs = blobs
        self._guest = settings
        self._machine = machine
        self._runtime = runtime
        self._minute = minute
        self._hours = hours.parse(settings.hours, "edge.guest.hours")
        self._looked_at = -math.inf
        self._published: tuple[NodeHealth, float] | None = None
        self._heard: tuple[str, int, float] | None = None

    def start(self, now: float) -> None:
        """Look once before the first round can come."""
        self._look(now)

    def tick(self, now: float) -> None:
        """Look again where that is due; act on what was seen."""
        if now - self._looked_at >= self._guest.check_s:
            self._look(now)

    def announced(self, announcement: Announcement) -> None:
        """Note when a round was first heard of: its deadline counts from before that."""
        if self._heard is None or self._heard[:2] != (announcement.run, announcement.round):
            self._heard = (announcement.run, announcement.round, self._clocks.monotonic())

    def unfit(self, announcement: Announcement) -> str | None:
        """Whether this machine can hold the round."""
        found = self._machine.read()
        if found.memory_available is not None:
            # A child of the round before ends when this one begins.
            free = found.memory_available + self._rounds.training.resident
            found = replace(found, memory_available=free)
        return too_small(self._room(announcement), found, self._guest)

    def close(self) -> None:
        """End what still reads."""
        self._machine.close()

    def _look(self, now: float) -> None:
        self._looked_at = now
        found = self._machine.read()
        training, before = self._rounds.training, self.pause
        minute = self._minute(self._clocks.wall())
        why = rules.judge(
            found,
            self._guest,
            self._hours,
            minute,
            held=before.why,
            wanted_memory=self._room(training.job).memory if training.job is not None else 0,
        )
        self.pause = pause = rules.advance(before, why, now, settle_s=self._guest.settle_s)
        self._publish(found, now, urgent=set(pause.why) != set(before.why))
        if not pause:
            if before:
                log.info("node=%s training goes on after %.0f s", self._channel.node, now - before.since)
                training.go_on(now)
                self._rounds.hold(_WHO, None)
            return
        if set(pause.why) != set(before.why):
            log.warning("node=%s training pauses: %s", self._channel.node, pause.text)
        if training.job is not None and (vain := self._in_vain(training.job, now, minute)) is not None:
            training.give_up(vain)
        training.rest(now, free=pause.frees_memory(now, self._guest))
        self._rounds.hold(_WHO, pause.text)

    def _in_vain(self, job: Announcement, now: float, minute: int) -> str | None:
        heard = self._heard
        heard_at = heard[2] if heard is not None and heard[:2] == (job.run, job.round) else now
        return rules.in_vain(
            self.pause,
            now=now,
            ends_at=heard_at + job.deadline_s,
            left_s=self._rounds.training.left_s(now),
            opens_s=rules.opens_in_s(self._hours, minute),
        )

    def _publish(self, found: Readings, now: float, *, urgent: bool) -> None:
        """Publish where it is news; a new reason of a pause is published with it."""
        news = health(found)
        before, at = self._published or (None, 0.0)
        if is_news(before, news, silent_s=now - at, every_s=0.0 if urgent else self._guest.health_s):
            self._published = (news, now)
            self._channel.send(news)

    def _room(self, announcement: Announcement) -> RoundNeeds:
        refs = {ref.digest: ref.bytes for ref in parts_of(announcement)}
        missing = sum(size for digest, size in refs.items() if Digest(digest) not in self._blobs)
        return room_for(announcement, samples=self._rounds.samples, runtime=self._runtime, missing=missing)
