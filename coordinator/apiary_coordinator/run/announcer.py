"""Publishes a run's messages: the round as it stands, invitations, results, the end."""

import logging
from typing import Final

from apiary.bus.outlet import Outlet
from apiary.settings import RunSettings
from apiary.wire import NodeId
from apiary.wire.messages import Announcement, Notice, RoundResult
from apiary_coordinator.round.runner import RoundRunner
from apiary_coordinator.round.server_state import ServerState
from apiary_coordinator.round.state import Phase
from apiary_coordinator.run import messages

log = logging.getLogger(__name__)

_METRICS: Final = ("accuracy", "loss", "bytes_up", "bytes_down", "seconds")


class Announcer:
    """Of one run."""

    def __init__(self, run: str, settings: RunSettings, *, outlet: Outlet, epoch: str):
        self._run = run
        self._settings = settings
        self._outlet = outlet
        self._epoch = epoch
        self._cached: tuple[tuple[RoundRunner, Phase, tuple[NodeId, ...]], Announcement] | None = None

    def announcement(self, runner: RoundRunner) -> Announcement:
        """The round as it stands; built once for all who ask meanwhile, because it names the whole cohort."""
        about = (runner, runner.round.phase, runner.round.cohort)
        if self._cached is None or any(a is not b for a, b in zip(self._cached[0], about, strict=True)):
            made = messages.opened(
                runner.round, runner.terms, runner.server, rounds=self._settings.rounds, epoch=self._epoch
            )
            self._cached = (about, made)
        return self._cached[1]

    def forget(self) -> None:
        """The round is over: free its announcement."""
        self._cached = None

    def announce(self, runner: RoundRunner) -> None:
        """Publish the announcement; where it has no room for the cohort, invite each node by itself."""
        announcement = self.announcement(runner)
        self._outlet.send(announcement)
        if announcement.cohort is None and announcement.state == "open":
            for node in runner.round.awaited:
                self.invite(runner, node)

    def invite(self, runner: RoundRunner, node: NodeId) -> None:
        """Notify a node that it belongs to the cohort."""
        self._outlet.send(self._notice(runner, node, invited=True), node)

    def notice(self, runner: RoundRunner, node: NodeId) -> Notice:
        """What is current, for one node."""
        return self._notice(runner, node, invited=runner.round.welcomes(node))

    def result(self, result: RoundResult) -> None:
        """Publish and log how a round ended."""
        publish_result(self._outlet, result)
        if result.state == "failed":
            log.warning("run=%s round=%d failed: %s", self._run, result.round, result.why)
            return
        log.info(
            "run=%s round=%d closed accuracy=%.1f%% loss=%.4f contributors=%d rejected=%d missing=%d "
            "left_out=%d",
            self._run,
            result.round,
            100 * (result.accuracy or 0),
            result.loss or 0,
            result.n_contributors,
            result.n_rejected,
            result.n_missing,
            len(result.left_out or ()),
        )

    def finished(self, server: ServerState, number: int) -> None:
        """Publish that the run is over after round `number`."""
        self._outlet.send(messages.finished(self._run, number, self._settings, server, self._epoch))

    def _notice(self, runner: RoundRunner, node: NodeId, *, invited: bool) -> Notice:
        again = True if invited and node in runner.again else None
        # Who else was drawn is no node's concern: with a large fleet the list is most of the message.
        announcement = self.announcement(runner).model_copy(update={"cohort": None})
        return Notice(invited=invited, again=again, announcement=announcement)


def publish_result(outlet: Outlet, result: RoundResult) -> None:
    """Publish how a round ended, perhaps once more: the broker, or a restart, may have lost it."""
    outlet.send(result.readable())
    if result.state == "closed":
        for name in _METRICS:
            outlet.metric(name, float(getattr(result, name) or 0.0))
        outlet.metric("contributors", result.n_contributors)
        outlet.metric("round", result.round)
