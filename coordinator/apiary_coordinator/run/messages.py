"""What the coordinator says about a run, built from what it knows. Pure."""

from __future__ import annotations

from typing import Final, Literal

from apiary import __version__
from apiary.learn.manifest import Manifest
from apiary.wire.messages import (
    READABLE_BYTES,
    SEAL_BYTES,
    Announcement,
    BlobRef,
    Bounds,
    CoordinatorStatus,
    Needs,
    Plan,
    RoundState,
)
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.round.state import Phase, Round

REPEATED_BYTES: Final = 4_000
"""An announcement is published again in each state, to all nodes: the cohort of a larger fleet is listed in
the first only. Reading 1000 names takes a node 0.2 ms (measured), four more times; who missed them asks."""


def opened(
    round_: Round,
    artefacts: ExportedModel,
    *,
    model: BlobRef,
    plan: Plan,
    bounds: Bounds,
    deadline_s: float,
    rounds: int,
    epoch: str,
    needs: Needs,
) -> Announcement:
    """The round as it stands; without its cohort where that is not readable, or too long to repeat."""
    full = _announcement(
        artefacts,
        run=round_.run,
        number=round_.number,
        state=round_.phase.value,
        rounds=rounds,
        epoch=epoch,
        model=model,
        plan=plan,
        bounds=bounds,
        deadline_s=deadline_s,
        cohort=list(round_.cohort),
        needs=needs,
    )
    room = (READABLE_BYTES if round_.phase is Phase.OPEN else REPEATED_BYTES) - SEAL_BYTES
    return full if len(full.encode()) <= room else full.model_copy(update={"cohort": None})


def finished(
    artefacts: ExportedModel,
    *,
    run: str,
    number: int,
    model: BlobRef,
    plan: Plan,
    bounds: Bounds,
    rounds: int,
    epoch: str,
) -> Announcement:
    """The run is over: nobody is drawn any more."""
    return _announcement(
        artefacts,
        run=run,
        number=number,
        state="finished",
        rounds=rounds,
        epoch=epoch,
        model=model,
        plan=plan,
        bounds=bounds,
        deadline_s=1.0,
        cohort=[],
    )


def needs(manifest: Manifest) -> Needs:
    """What a model asks of a node's memory."""
    side = manifest.input
    return Needs(
        picture_bytes=side.height * side.width * side.channels,
        features=manifest.features,
        activations=manifest.activations,
    )


def status(state: Literal["online", "offline"], epoch: str, run: str | None) -> CoordinatorStatus:
    """The coordinator's birth, goodbye, or last will."""
    return CoordinatorStatus(state=state, epoch=epoch, version=__version__, run=run)


def _announcement(
    artefacts: ExportedModel,
    *,
    run: str,
    number: int,
    state: RoundState,
    rounds: int,
    epoch: str,
    model: BlobRef,
    plan: Plan,
    bounds: Bounds,
    deadline_s: float,
    cohort: list[str],
    needs: Needs | None = None,
) -> Announcement:
    return Announcement(
        run=run,
        round=number,
        state=state,
        rounds=rounds,
        epoch=epoch,
        labels=list(artefacts.labels),
        model=model,
        manifest=artefacts.manifest,
        trainer=artefacts.trainer,
        base=artefacts.base,
        plan=plan,
        bounds=bounds,
        deadline_s=deadline_s,
        cohort=cohort,
        cohort_size=len(cohort),
        needs=needs,
    )
