"""Whom an announcement lists: everybody where a person can read that, and once only where it is long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId
from apiary.wire.messages import READABLE_BYTES, SEAL_BYTES, Announcement, BlobRef, Bounds, Plan
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.round.server_state import RoundTerms, SentModel, ServerState
from apiary_coordinator.round.state import Phase, Round
from apiary_coordinator.run.messages import REPEATED_BYTES, finished, opened

REF = BlobRef(digest=Digest("ab" * 32), bytes=840_000)
EXPORTED = ExportedModel(labels=("a", "b"), manifest=REF, trainer=REF, base=None, initial=REF)

MANIFEST = Manifest(
    recipe="fake",
    input=PictureInput(height=96, width=96, channels=3),
    labels=("a", "b"),
    tensors=(Tensor(name="a", shape=(1,), argument="p0"),),
    batch_size=16,
    optimizer="adam",
    activations=100_000,
)


def announced(nodes: int, phase: Phase) -> Announcement:
    cohort = tuple(NodeId(f"pi-{i:05d}") for i in range(nodes))
    round_ = Round("run", 3, cohort, (), nodes, nodes, deadline_at=60.0)
    terms = RoundTerms(Plan(), Bounds(), 60.0, {}, 0)
    server = ServerState(EXPORTED, MANIFEST, Weights({}), REF, None)
    return opened(replace(round_, phase=phase), terms, server, rounds=10, epoch="e")


def most_listed(phase: Phase) -> int:
    """The largest fleet that is listed."""
    low, high = 1, 20_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if announced(middle, phase).cohort is not None else (low, middle)
    return low


@pytest.mark.parametrize(
    ("phase", "limit"),
    [(Phase.OPEN, READABLE_BYTES), (Phase.COLLECTING, REPEATED_BYTES), (Phase.EVALUATING, REPEATED_BYTES)],
)
def test_cohort_is_listed_up_to_the_limit_of_its_state(phase: Phase, limit: int) -> None:
    most = most_listed(phase)
    # A signature and its certificate still fit.
    assert limit - 30 < len(announced(most, phase).encode()) + SEAL_BYTES <= limit
    over = announced(most + 1, phase)
    assert over.cohort is None
    assert over.cohort_size == most + 1
    assert len(over.encode()) < 1_500


def test_nodes_train_on_what_is_sent_and_predict_with_what_is_judged() -> None:
    ahead = BlobRef(digest=Digest("cd" * 32), bytes=840_000)
    server = ServerState(EXPORTED, MANIFEST, Weights({}), REF, None, SentModel(Weights({}), ahead))
    round_ = Round("run", 3, (NodeId("pi-1"),), (), 1, 1, deadline_at=60.0)
    terms = RoundTerms(Plan(), Bounds(), 60.0, {}, 0)
    assert opened(round_, terms, server, rounds=10, epoch="e").model == ahead
    assert finished("run", 3, RunSettings(), server, "e").model == REF
    assert ahead not in server.files and {REF.digest, ahead.digest} <= {
        f.digest for f in server.training_files
    }
