"""The parts of a coordinator beside its runs, put together: who registers where."""

from __future__ import annotations

from collections.abc import Sequence

from apiary.plugins import load
from apiary_coordinator.feature import CoordinatorFeature, Desk
from apiary_coordinator.monitoring.watchdog import Watchdog
from apiary_coordinator.operators.node_commands import NodeCommands
from apiary_coordinator.operators.requests import OperatorRequests
from apiary_coordinator.publishers.base import PACKAGE as PUBLISHERS
from apiary_coordinator.releases import operations
from apiary_coordinator.releases.ledger import Ledger
from apiary_coordinator.releases.service import ReleaseService, policy_of
from apiary_coordinator.releases.signer import CertificateSigner, ReleaseKeySigner, ReleaseSigner
from apiary_coordinator.schedule.queue import ModelBuilders, RunQueue
from apiary_coordinator.schedule.runbook import RunBook


def features(desk: Desk, workshops: ModelBuilders | None = None) -> Sequence[CoordinatorFeature]:
    """Every feature that the settings ask for; with `workshops` runs begin one after another.

    Raises SettingsError.
    """
    for name in desk.settings.publish.after_run:
        load(PUBLISHERS, name)  # a name that is none is said now, not after hours of training
    operators = OperatorRequests(desk.outlet, desk.clock)
    runs = RunQueue(desk, operators, RunBook(desk.journal), workshops)
    vigil = Watchdog(desk)
    found: list[CoordinatorFeature] = [
        operators,
        runs,
        NodeCommands(desk, operators),
        _releasing(desk, operators),
        vigil,
    ]
    if desk.settings.metrics.port is not None:
        # Only here: its library is loaded where it is used.
        from apiary_coordinator.monitoring.prometheus import Metrics

        found.append(Metrics(desk, operators, vigil))
    return found


def _releasing(desk: Desk, operators: OperatorRequests) -> ReleaseService:
    state, chosen = desk.settings.coordinator.state_dir, desk.settings.release
    voice: ReleaseSigner = CertificateSigner(desk)
    if desk.settings.security.ca is None:
        voice = ReleaseKeySigner(desk, state / "release-key.pem")
    releasing = ReleaseService(chosen, desk, Ledger(state, policy_of(chosen)), voice)
    operations.register(operators, releasing, desk)
    return releasing
