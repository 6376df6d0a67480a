"""A round's training on this node: the child's start, its crashes, its time, its progress, its update."""

import logging
import signal
from collections.abc import Callable
from typing import Final, Literal, assert_never

from apiary.errors import StoreError
from apiary.settings import EdgeSettings
from apiary.wire import Digest
from apiary.wire.held_out import fits
from apiary.wire.messages import Announcement, BlobRef, Offer, Progress
from apiary_edge.health.memory import address_limit
from apiary_edge.health.readings import MB
from apiary_edge.stores import NodeStores
from apiary_edge.training import session as table
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.training.process import Training, scratch
from apiary_edge.transfer.channel import NodeChannel

log = logging.getLogger(__name__)

MAX_CRASHES: Final = 3
"""A training child that dies of itself is started again this often in a round.

One that was killed from outside (an operator, the kernel short of memory) is started again for as long as
the round lasts, after pauses that double up to `_CRASH_PAUSE_MAX_S`.
"""
_TRAIN_SHARE: Final = 0.7
"""Of a round's time, where the plan takes partial work."""
OUT_OF_ADDRESSES: Final = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGTRAP)
"""What C++ ends with where an allocation fails; under RLIMIT_AS another try would end the same way."""
_CRASH_PAUSE_S: Final = 1.0
_CRASH_PAUSE_MAX_S: Final = 60.0
_PROGRESS_EVERY_S: Final = 2.0


class TrainingSupervisor:
    """At most one round at a time. `handle` takes what came of it: Trained or TrainingFailed."""

    def __init__(
        self,
        settings: EdgeSettings,
        channel: NodeChannel,
        stores: NodeStores,
        training: Training,
        handle: Callable[[table.Event], None],
    ):
        self._settings = settings
        self._node = channel.node
        self._channel = channel
        self._stores = stores
        self._training = training
        self._handle = handle
        self.job: Announcement | None = None
        """The round that is trained, or rests."""
        self.also_held_out: int | None = None
        """Pictures that were trained last and the server holds out as well, where that is known."""
        self._began_at = 0.0
        self._start_at: float | None = None
        self._progress_at = 0.0
        self._crashes = 0
        self._kills = 0
        self._rest: Literal["none", "frozen", "freed"] = "none"
        self._rests_at = 0.0
        self._left_s: tuple[float, float] | None = None

    @property
    def resident(self) -> int:
        """Bytes of memory that the child holds."""
        return self._training.resident()

    def left_s(self, now: float) -> float | None:
        """Seconds that training still needs, as it reported last; None where it has not."""
        if self._left_s is None:
            return None
        left, said_at = self._left_s
        return left if self._rest != "none" else max(0.0, left - (now - said_at))

    def begin(self, announcement: Announcement, now: float) -> None:
        """Train for this round."""
        self.job, self._began_at = announcement, now
        self._crashes = self._kills = 0
        if self._rest == "none":
            self._start(announcement)
        else:
            self._rest = "freed"

    def stop(self) -> None:
        """End it; its events are dropped."""
        if self.job is not None:
            log.info("node=%s round=%d training ended before it was done", self._node, self.job.round)
        self.job = self._start_at = self._left_s = None
        self._training.stop()

    def rest(self, now: float, *, free: bool) -> None:
        """Pause: the child is frozen with its memory, or, to `free` that, ended to begin anew later."""
        if self._rest == "none":
            self._rests_at = now
        if free and self._rest != "freed":
            self._rest = "freed"
            self._start_at = self._left_s = None
            self._training.stop()
        elif self._rest == "none":
            self._rest = "frozen"
            self._training.freeze()

    def go_on(self, now: float) -> None:
        """The pause is over; it does not count as time that training took."""
        before, self._rest = self._rest, "none"
        self._began_at += now - max(self._rests_at, self._began_at)
        if before == "frozen":
            self._training.thaw()
        elif before == "freed" and self.job is not None:
            self._start(self.job)

    def tick(self, now: float) -> None:
        """Take the child's events; start it again, or give up, where that is due. Raises StoreError."""
        for event in self._training.collect():
            if self.job is not None:
                self._handle_event(self.job, event, now)
        if self.job is None:
            return
        limit = self._settings.train_timeout_s
        if self._rest == "none" and now - self._began_at >= limit:
            self.give_up(f"training took longer than {limit:g} s (edge.train_timeout_s)")
        elif self._start_at is not None and now >= self._start_at and self._rest == "none":
            self._start(self.job)

    def _handle_event(self, job: Announcement, event: TrainingEvent, now: float) -> None:
        match event.kind:
            case "progress":
                self._progress(job, event, now)
            case "warning":
                log.warning("node=%s %s", self._node, event.text)
            case "done":
                self._trained(job, event)
            case "declined" | "failed":
                self.give_up(event.text)
            case "crashed":
                self._crashed(job, event, now)
            case _:
                assert_never(event.kind)

    def _trained(self, job: Announcement, event: TrainingEvent) -> None:
        self.also_held_out = event.also_held_out
        offer = Offer.model_validate(
            {
                "run": job.run,
                "round": job.round,
                "update": BlobRef(digest=event.digest, bytes=event.bytes),
                "codec": job.plan.codec,
                "samples": event.samples,
                "metrics": event.metrics,
            }
        )
        try:
            self._stores.outbox.put(scratch(self._settings.state_dir) / "update.blob", offer)
        except StoreError as e:
            self.give_up(str(e))
            return
        log.info(
            "node=%s round=%d trained samples=%d loss=%.4f seconds=%.1f",
            self._node,
            job.round,
            event.samples,
            offer.metrics.loss,
            offer.metrics.seconds,
        )
        if self._stores.samples is not None:
            # What was deleted while it trained must not live on in the cache.
            self._stores.samples.forget_cached()
        self.job = None
        self._handle(table.Trained(offer))

    def give_up(self, why: str) -> None:
        """This node cannot finish the round."""
        self.job = None
        self._handle(table.TrainingFailed(why))

    def _crashed(self, job: Announcement, event: TrainingEvent, now: float) -> None:
        self._left_s = None
        limit = address_limit()
        if limit is not None and event.signal in OUT_OF_ADDRESSES:
            self.give_up(
                f"{event.text[:300]}; its address space is limited to {limit // MB} MB (RLIMIT_AS, ulimit -v)"
            )
            return
        if event.signal == signal.SIGKILL:
            self._kills += 1
        else:
            self._crashes += 1
        if self._crashes > MAX_CRASHES:
            self.give_up(event.text)
            return
        tries = self._crashes + self._kills
        pause = min(_CRASH_PAUSE_MAX_S, _CRASH_PAUSE_S * 2 ** min(tries - 1, 10))
        log.warning(
            "node=%s round=%d %s; starting it again in %.0f s", self._node, job.round, event.text, pause
        )
        self._start_at = now + pause

    def _start(self, announcement: Announcement) -> None:
        self._start_at = self._left_s = None
        plan = announcement.plan
        if plan.steps is None:
            log.info("node=%s round=%d training epochs=%d", self._node, announcement.round, plan.epochs)
        else:
            log.info("node=%s round=%d training steps=%d", self._node, announcement.round, plan.steps)
        try:
            self._training.start(self._job_of(announcement))
        except StoreError as e:
            self.give_up(str(e))

    def _job_of(self, announcement: Announcement) -> TrainJob:
        settings, path, held_out = self._settings, self._stores.blobs.path, announcement.held_out
        return TrainJob(
            run=announcement.run,
            round=announcement.round,
            node=self._node,
            plan=announcement.plan,
            manifest=path(Digest(announcement.manifest.digest)),
            trainer=path(Digest(announcement.trainer.digest)) if announcement.trainer else None,
            base=path(Digest(announcement.base.digest)) if announcement.base else None,
            base_digest=announcement.base.digest if announcement.base else None,
            model=path(Digest(announcement.model.digest)),
            data_dir=settings.data_dir,
            join_labels=settings.join_labels,
            held_out=path(Digest(held_out.digest)) if held_out is not None and fits(held_out.bytes) else None,
            store=settings.store_dir if self._stores.samples is not None else None,
            cache_dir=settings.cache_dir,
            cache_mb=settings.cache_mb,
            out=scratch(settings.state_dir),
            runtime=settings.runtime,
            threads=min(settings.threads, settings.guest.max_cores or settings.threads),
            # The rest of the time is for the way back.
            time_s=_TRAIN_SHARE * announcement.deadline_s if announcement.plan.partial else None,
            # The service looks seldom and pauses; the child looks often, and gives up below half of that.
            reserve_mb=settings.guest.min_memory_mb // 2,
            max_memory_mb=settings.guest.max_memory_mb,
            max_norm=announcement.bounds.max_norm,
        )

    def _progress(self, job: Announcement, event: TrainingEvent, now: float) -> None:
        self._left_s = (event.left_s, now) if event.left_s is not None else None
        if now - self._progress_at < _PROGRESS_EVERY_S:
            return
        self._progress_at = now
        self._channel.send(
            Progress.model_validate(
                {
                    "run": job.run,
                    "round": job.round,
                    **event.model_dump(include={"epoch", "epochs", "loss", "accuracy", "left_s"}),
                }
            )
        )
