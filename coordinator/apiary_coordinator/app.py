"""A coordinator put together from its settings: the loop, what it runs on, its features."""

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from apiary.bus.client_id import passing_id
from apiary.bus.mqtt import MqttBus
from apiary.bus.outlet import Tap
from apiary.clocks import Clocks
from apiary.identity.gate import OPEN
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import Settings
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.fleet.watch import FleetWatch
from apiary_coordinator.journal import RunRow
from apiary_coordinator.model.keras import KerasModelBuilder
from apiary_coordinator.monitoring.watchdog import Watchdog
from apiary_coordinator.operators.node_commands import NodeCommands
from apiary_coordinator.operators.requests import OperatorRequests
from apiary_coordinator.releases import operations
from apiary_coordinator.releases.ledger import Ledger
from apiary_coordinator.releases.service import ReleaseService
from apiary_coordinator.releases.signer import CertificateSigner, ReleaseKeySigner, ReleaseSigner
from apiary_coordinator.resources import Platform, Storage
from apiary_coordinator.run.checks import check_settings
from apiary_coordinator.run.run import Run
from apiary_coordinator.schedule.queue import ModelBuilders, RunQueue
from apiary_coordinator.service import Coordinator, will
from apiary_coordinator.worker import ThreadWorker

log = logging.getLogger(__name__)


def platform(settings: Settings, tap: Tap) -> Platform:
    """This machine's clocks and worker, and a bus to the broker of the settings.

    Raises SettingsError, StoreError.
    """
    marks = settings.coordinator.state_dir / "marks.sqlite"
    gate = load_gate(settings.security, Role.COORDINATOR, None, marks, time.time)
    if gate is OPEN:
        log.info(
            "messages are not signed (security.ca is not set): whoever may write to the broker is believed"
        )
    epoch = secrets.token_hex(4)
    client_id = passing_id(f"{settings.federation}-coordinator")
    bus = MqttBus(settings.broker, client_id=client_id, will=will(settings.topics, epoch))
    clocks = Clocks(time.monotonic, time.time)
    return Platform(bus, ThreadWorker("worker", bus.wake), clocks, epoch, gate, tap)


def build(
    settings: Settings,
    platform: Platform,
    storage: Storage,
    *,
    one: RunRow | None = None,
    builders: ModelBuilders = KerasModelBuilder,
    after_run: Callable[[Path], object] = lambda folder: None,
    ended: Callable[[Run], None] = lambda run: None,
) -> Coordinator:
    """A coordinator for `one` run, or, without, one that stays and has runs one after another; not started.

    `after_run` gets the folder of each run's result on the worker's thread, before the features do; `ended`
    each run that is over where the coordinator stays. Raises SettingsError.
    """
    check_settings(settings)  # an unknown name is refused now, not after hours of training
    coordinator = Coordinator(settings, platform, storage, stay=one is None, after_run=after_run, ended=ended)
    resources, host, roster = coordinator.resources, coordinator.host, coordinator.roster
    operators = OperatorRequests(resources.outgoing.outlet, platform.clocks.monotonic, storage.journal)
    watchdog = Watchdog(platform.worker, settings.publish)
    features: list[CoordinatorFeature] = [
        operators,
        RunQueue(settings, host, resources, roster, operators=operators, builders=builders, one=one),
        FleetWatch(platform.bus, host, roster, storage.journal),
        NodeCommands(operators, host, roster, resources.outgoing.outlet, platform.clocks),
        _releases(coordinator, operators),
        watchdog,
    ]
    if settings.metrics.port is not None:
        # Only here: its library is loaded where it is used.
        from apiary_coordinator.monitoring.prometheus import Metrics

        features.append(
            Metrics(
                settings,
                platform.bus,
                platform.worker,
                roster,
                host=host,
                operators=operators,
                watchdog=watchdog,
            )
        )
    coordinator.features = features
    return coordinator


def _releases(coordinator: Coordinator, operators: OperatorRequests) -> ReleaseService:
    settings, resources = coordinator.settings, coordinator.resources
    state, outlet = settings.coordinator.state_dir, resources.outgoing.outlet
    signer: ReleaseSigner = CertificateSigner(outlet)
    if settings.security.ca is None:
        signer = ReleaseKeySigner(outlet, settings.topics, state / "release-key.pem")
    ledger = Ledger(state, settings.release)
    releases = ReleaseService(settings, resources, coordinator.roster, ledger, signer)
    operations.register(operators, releases, settings, resources)
    return releases
