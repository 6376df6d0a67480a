"""What a run says on the bus: the round as it stands, invitations, results, its last word."""

from __future__ import annotations

import logging
from typing import Final

from apiary.bus.outlet import Outlet
from apiary.settings import RunSettings
from apiary.wire import NodeId
from apiary.wire.messages import Announcement, BlobRef, ModelManifest, Notice, RoundResult
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.round.runner import RoundRunner
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
        self._told: tuple[tuple[RoundRunner, Phase, tuple[NodeId, ...]], Announcement] | None = None

    def announcement(self, live: RoundRunner) -> Announcement:
        """As it stands; made once for all who ask meanwhile, because it names the whole cohort."""
        about = (live, live.round.phase, live.round.cohort)
        if self._told is None or any(a is not b for a, b in zip(self._told[0], about, strict=True)):
            told = messages.opened(
                live.round,
                live.parts.artefacts,
                model=live.model,
                plan=live.plan,
                bounds=live.bounds,
                deadline_s=live.deadline_s,
                rounds=self._settings.rounds,
                epoch=self._epoch,
                needs=messages.needs(live.parts.manifest),
            )
            self._told = (about, told)
        return self._told[1]

    def forget(self) -> None:
        """The round is over: let it go."""
        self._told = None

    def announce(self, live: RoundRunner) -> None:
        """Tell everyone; those one by one whom the announcement has no room for."""
        told = self.announcement(live)
        self._outlet.send(told)
        if told.cohort is None and told.state == "open":
            for node in live.round.awaited:
                self.invite(live, node)

    def invite(self, live: RoundRunner, node: NodeId) -> None:
        """Tell a node that it belongs to the cohort."""
        self._outlet.send(self._notice(live, node, invited=True), node)

    def notice(self, live: RoundRunner, node: NodeId) -> Notice:
        """What is current, for one node."""
        return self._notice(live, node, invited=live.round.welcomes(node))

    def result(self, result: RoundResult) -> None:
        """A round is over."""
        self.remind(result)
        if result.state == "failed":
            log.warning("run=%s round=%d failed: %s", self._run, result.round, result.why)
            return
        log.info(
            "run=%s round=%d closed accuracy=%.1f%% loss=%.4f contributors=%d rejected=%d missing=%d",
            self._run,
            result.round,
            100 * (result.accuracy or 0),
            result.loss or 0,
            result.n_contributors,
            result.n_rejected,
            result.n_missing,
        )

    def remind(self, result: RoundResult) -> None:
        """Say how a round ended, perhaps once more: the broker, or a restart of ours, may have lost it."""
        self._outlet.send(result.readable())
        if result.state == "closed":
            for name in _METRICS:
                self._outlet.metric(name, float(getattr(result, name) or 0.0))
            self._outlet.metric("contributors", result.n_contributors)
            self._outlet.metric("round", result.round)

    def model(self, result: RoundResult, model: BlobRef, artefacts: ExportedModel, *, best: bool) -> None:
        """The newest global model."""
        self._outlet.send(
            ModelManifest(
                run=self._run,
                round=result.round,
                model=model,
                labels=list(artefacts.labels),
                accuracy=result.accuracy,
                best=best,
                manifest=artefacts.manifest,
                trainer=artefacts.trainer,
                base=artefacts.base,
            )
        )

    def finished(self, artefacts: ExportedModel, model: BlobRef, number: int) -> None:
        """The run is over after round `number`: nobody is drawn any more."""
        self._outlet.send(
            messages.finished(
                artefacts,
                run=self._run,
                number=number,
                model=model,
                plan=self._settings.plan,
                bounds=self._settings.bounds,
                rounds=self._settings.rounds,
                epoch=self._epoch,
            )
        )

    def _notice(self, live: RoundRunner, node: NodeId, *, invited: bool) -> Notice:
        again = True if invited and node in live.again else None
        return Notice(invited=invited, again=again, announcement=self._without_cohort(live))

    def _without_cohort(self, live: RoundRunner) -> Announcement:
        """Who else was drawn is no node's concern: with a large fleet the list is most of the message."""
        return self.announcement(live).model_copy(update={"cohort": None})
