"""The messages that the coordinator publishes of a run, built from what it knows. Pure."""

from typing import Final, Literal

from apiary import __version__
from apiary.learn.manifest import Manifest
from apiary.settings import RunSettings
from apiary.wire.messages import (
    READABLE_BYTES,
    SEAL_BYTES,
    Announcement,
    BlobRef,
    CoordinatorStatus,
    ModelManifest,
    Needs,
    RoundResult,
)
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.round.server_state import RoundTerms, ServerState
from apiary_coordinator.round.state import Phase, Round

REPEATED_BYTES: Final = 4_000
"""An announcement is published again in each state, to all nodes: the cohort of a larger fleet is listed in
the first only. Reading 1000 names takes a node 0.2 ms (measured), four more times; who missed them asks."""


def opened(round_: Round, terms: RoundTerms, server: ServerState, *, rounds: int, epoch: str) -> Announcement:
    """The round as it stands; without its cohort where that is not readable, or too long to repeat."""
    full = Announcement(
        run=round_.run,
        round=round_.number,
        state=round_.phase.value,
        rounds=rounds,
        epoch=epoch,
        labels=list(server.exported.labels),
        model=server.train_on,
        manifest=server.exported.manifest,
        trainer=server.exported.trainer,
        base=server.exported.base,
        plan=terms.plan,
        bounds=terms.bounds,
        deadline_s=terms.deadline_s,
        cohort=list(round_.cohort),
        cohort_size=len(round_.cohort),
        needs=needs(server.manifest),
        held_out=server.exported.held_out,
    )
    room = (READABLE_BYTES if round_.phase is Phase.OPEN else REPEATED_BYTES) - SEAL_BYTES
    return full if len(full.encode()) <= room else full.model_copy(update={"cohort": None})


def finished(run: str, number: int, settings: RunSettings, server: ServerState, epoch: str) -> Announcement:
    """The run is over after round `number`: no cohort is drawn any more."""
    return Announcement(
        run=run,
        round=number,
        state="finished",
        rounds=settings.rounds,
        epoch=epoch,
        labels=list(server.exported.labels),
        model=server.model,
        manifest=server.exported.manifest,
        trainer=server.exported.trainer,
        base=server.exported.base,
        plan=settings.plan,
        bounds=settings.bounds,
        deadline_s=1.0,
        cohort=[],
    )


def current_model(result: RoundResult, model: BlobRef, exported: ExportedModel) -> ModelManifest:
    """The model of a closed round, the best of its run so far, for predictions."""
    return ModelManifest(
        run=result.run,
        round=result.round,
        model=model,
        labels=list(exported.labels),
        accuracy=result.accuracy,
        tested_on=result.tested_on,
        best=True,
        manifest=exported.manifest,
        trainer=exported.trainer,
        base=exported.base,
    )


def needs(manifest: Manifest) -> Needs:
    """What a model takes of a node's memory."""
    side = manifest.input
    return Needs(
        picture_bytes=side.height * side.width * side.channels,
        features=manifest.features,
        activations=manifest.activations,
    )


def status(
    state: Literal["online", "offline"], epoch: str, run: str | None, nodes: int | None = None
) -> CoordinatorStatus:
    """The coordinator's status: its first message, its last, and its will."""
    return CoordinatorStatus(state=state, epoch=epoch, version=__version__, run=run, nodes=nodes)
