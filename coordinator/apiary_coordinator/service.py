"""The coordinator's loop: messages to the inbox, turns to the run, and what is due to the broker."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from apiary.bus.bus import BrokerLimits, Will
from apiary.bus.inlet import Delivery
from apiary.errors import BusError, StoreError
from apiary.files import clear_partial
from apiary.service import Service
from apiary.settings import Settings
from apiary.wire.chunks import CHUNK_BYTES, ENVELOPE_BYTES
from apiary.wire.topics import TopicKind, Topics
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.inbox import KINDS, Inbox
from apiary_coordinator.resources import Outgoing, Platform, Resources, Storage
from apiary_coordinator.run.host import RunHost
from apiary_coordinator.run.messages import status
from apiary_coordinator.run.run import Run
from apiary_coordinator.updates.model_server import ModelServer

log = logging.getLogger(__name__)


class Coordinator(Service[CoordinatorFeature]):
    """One federation's server. Its features are set by whoever makes it, before `start`.

    Where it is to `stay` it goes on after a run and calls `ended` with it; otherwise it is over with its run.
    `after_run` gets the folder of each run's result, on the worker's thread.
    """

    kinds = KINDS

    def __init__(
        self,
        settings: Settings,
        platform: Platform,
        storage: Storage,
        *,
        stay: bool,
        after_run: Callable[[Path], object],
        ended: Callable[[Run], None],
    ):
        super().__init__(
            platform.bus,
            settings.topics,
            clock=platform.clocks.monotonic,
            gate=platform.gate,
            tap=platform.tap,
        )
        self.settings = settings
        self.roster = Roster()
        self._model_server = ModelServer(self._topics, storage.blobs, settings.coordinator.gather_s)
        outgoing = Outgoing(platform.bus, self._outlet, self._model_server)
        self.resources = Resources(platform.clocks, storage, outgoing, platform.worker)
        self._after_run = after_run
        self.host = RunHost(
            self.resources,
            platform.worker,
            self.roster,
            platform.epoch,
            stay=stay,
            after_run=self._finished,
            ended=ended,
        )
        self._inbox = Inbox(
            settings.federation,
            self.host,
            self.roster,
            self.resources,
            complaints=self._complaints,
            tap=platform.tap,
        )
        self._window = settings.broker.inflight

    def start(self) -> None:
        """Subscribe, start the features, and publish that the coordinator is online."""
        clear_partial(self.settings.coordinator.state_dir, below=True)
        self._start(self._clock())
        self.host.publish_status()

    @property
    def over(self) -> bool:
        """Whether the one run is over, where the coordinator does not stay."""
        return self.host.over

    def close(self) -> None:
        """Publish that the coordinator is offline; an unfinished run is resumed at the next start."""
        self.host.close()
        self._close(self.host.status("offline"))

    def _disk_failed(self, error: StoreError) -> None:
        # Each time: what it holds up is tried again after a pause, and an operator waits for it.
        log.error("%s", error)

    def _wait_s(self, timeout_s: float) -> float:
        due = self._model_server.next_due()
        return timeout_s if due is None else min(timeout_s, max(0.0, due - self._clock()))

    def _received(self, delivery: Delivery) -> None:
        self._inbox.received(delivery)

    def _work(self, now: float) -> None:
        self.host.collect(now)
        self._guarded(self.host.tick)
        self._guarded(partial(self._inbox.tick, now))

    def _flush(self, now: float) -> None:
        self._guarded(self._outlet.renew)
        self._model_server.due(now)
        self._guarded(partial(self._model_server.flow.pump, self._bus, self._window))

    def connected(self, limits: BrokerLimits) -> None:
        """The broker accepted the connection: keep to its limits, publish again what it may not have."""
        need = CHUNK_BYTES + ENVELOPE_BYTES + 256
        if 0 < limits.max_packet_bytes < need:
            raise BusError(
                f"the broker takes packets of at most {limits.max_packet_bytes} bytes, chunks need {need}: "
                "raise max_packet_size in mosquitto.conf"
            )
        if limits.receive_maximum:
            self._window = min(self._window, limits.receive_maximum)
        super().connected(limits)

    def _finished(self, folder: Path) -> None:
        """Worker: what follows a run."""
        self._after_run(folder)
        for feature in self.features:
            feature.finished(folder)


def will(topics: Topics, epoch: str) -> Will:
    """What the broker publishes when the coordinator vanishes."""
    return Will(topics.build(TopicKind.COORDINATOR_STATUS), status("offline", epoch, None).encode())
