"""A round's training on this node: the child's start, its crashes, its time, its progress, its update."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Final, assert_never

from apiary.blobs import BlobStore
from apiary.bus.outlet import Outlet
from apiary.errors import StoreError
from apiary.settings import EdgeSettings
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Announcement, BlobRef, Offer, Progress
from apiary_edge import session as table
from apiary_edge.capture_job import store_dir
from apiary_edge.job import Told, TrainJob
from apiary_edge.outbox import Outbox
from apiary_edge.samples.store import SampleStore
from apiary_edge.training import Training, scratch

log = logging.getLogger(__name__)

MAX_CRASHES: Final = 3
"""A training child that dies of itself is started again this often in a round.

One that was killed from outside (an operator, the kernel short of memory) is started again for as long as
the round lasts, after pauses that double up to `_CRASH_PAUSE_MAX_S`.
"""
_TRAIN_SHARE: Final = 0.7
"""Of a round's time, where the plan takes partial work."""
_CRASH_PAUSE_S: Final = 1.0
_CRASH_PAUSE_MAX_S: Final = 60.0
_PROGRESS_EVERY_S: Final = 2.0


class LocalTraining:
    """At most one round at a time. `handle` takes what came of it: Trained or TrainingFailed."""

    def __init__(
        self,
        settings: EdgeSettings,
        *,
        training: Training,
        outbox: Outbox,
        blobs: BlobStore,
        outlet: Outlet,
        store: SampleStore | None,
        handle: Callable[[table.Event], None],
    ):
        self._settings = settings
        self._node = NodeId(settings.node_id)
        self._training = training
        self._outbox = outbox
        self._blobs = blobs
        self._outlet = outlet
        self._store = store
        self._handle = handle
        self._job: Announcement | None = None
        self._began_at = 0.0
        self._start_at: float | None = None
        self._progress_at = 0.0
        self._crashes = 0
        self._kills = 0

    def begin(self, told: Announcement, now: float) -> None:
        """Train for this round."""
        self._job, self._began_at = told, now
        self._crashes = self._kills = 0
        self._start(told)

    def stop(self) -> None:
        """End it; nothing of it is told any more."""
        self._job = self._start_at = None
        self._training.stop()

    def tick(self, now: float) -> None:
        """Take what the child told; start it again, or give up, where that is due. Raises StoreError."""
        for told in self._training.collect():
            if self._job is not None:
                self._told(self._job, told, now)
        if self._job is None:
            return
        limit = self._settings.train_timeout_s
        if now - self._began_at >= limit:
            self._failed(f"training took longer than {limit:g} s (edge.train_timeout_s)")
        elif self._start_at is not None and now >= self._start_at:
            self._start(self._job)

    def _told(self, job: Announcement, told: Told, now: float) -> None:
        match told.kind:
            case "progress":
                self._progress(job, told, now)
            case "warning":
                log.warning("node=%s %s", self._node, told.text)
            case "done":
                self._trained(job, told)
            case "declined" | "failed":
                self._failed(told.text)
            case "crashed":
                self._crashed(job, told, now)
            case _:
                assert_never(told.kind)

    def _trained(self, job: Announcement, told: Told) -> None:
        offer = Offer.model_validate(
            {
                "run": job.run,
                "round": job.round,
                "update": BlobRef(digest=told.digest, bytes=told.bytes),
                "codec": job.plan.codec,
                "samples": told.samples,
                "metrics": told.metrics,
            }
        )
        try:
            self._outbox.put(scratch(self._settings.state_dir) / "update.blob", offer)
        except StoreError as e:
            self._failed(str(e))
            return
        log.info(
            "node=%s round=%d trained samples=%d loss=%.4f seconds=%.1f",
            self._node,
            job.round,
            told.samples,
            offer.metrics.loss,
            offer.metrics.seconds,
        )
        if self._store is not None:
            # What was deleted while it trained must not live on in the cache.
            self._store.forget_cached()
        self._job = None
        self._handle(table.Trained(offer))

    def _failed(self, why: str) -> None:
        self._job = None
        self._handle(table.TrainingFailed(why))

    def _crashed(self, job: Announcement, told: Told, now: float) -> None:
        if told.signal == signal.SIGKILL:
            self._kills += 1
        else:
            self._crashes += 1
        if self._crashes > MAX_CRASHES:
            self._failed(told.text)
            return
        tries = self._crashes + self._kills
        pause = min(_CRASH_PAUSE_MAX_S, _CRASH_PAUSE_S * 2 ** min(tries - 1, 10))
        log.warning(
            "node=%s round=%d %s; starting it again in %.0f s", self._node, job.round, told.text, pause
        )
        self._start_at = now + pause

    def _start(self, told: Announcement) -> None:
        self._start_at = None
        log.info("node=%s round=%d training epochs=%d", self._node, told.round, told.plan.epochs)
        try:
            self._training.start(self._job_of(told))
        except StoreError as e:
            self._failed(str(e))

    def _job_of(self, told: Announcement) -> TrainJob:
        settings, path = self._settings, self._blobs.path
        return TrainJob(
            run=told.run,
            round=told.round,
            node=self._node,
            plan=told.plan,
            manifest=path(Digest(told.manifest.digest)),
            trainer=path(Digest(told.trainer.digest)) if told.trainer else None,
            base=path(Digest(told.base.digest)) if told.base else None,
            base_digest=told.base.digest if told.base else None,
            model=path(Digest(told.model.digest)),
            data_dir=settings.data_dir,
            store=store_dir(settings) if self._store is not None else None,
            cache_dir=settings.state_dir / "cache",
            cache_mb=settings.cache_mb,
            out=scratch(settings.state_dir),
            runtime=settings.runtime,
            threads=settings.threads,
            # The rest of the time is for the way back.
            time_s=_TRAIN_SHARE * told.deadline_s if told.plan.partial else None,
        )

    def _progress(self, job: Announcement, told: Told, now: float) -> None:
        if now - self._progress_at < _PROGRESS_EVERY_S:
            return
        self._progress_at = now
        self._outlet.send(
            Progress.model_validate(
                {
                    "run": job.run,
                    "round": job.round,
                    **told.model_dump(include={"epoch", "epochs", "loss", "accuracy", "left_s"}),
                }
            ),
            self._node,
        )
