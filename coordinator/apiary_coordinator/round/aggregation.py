"""Worker: from a round's updates to the next model, evaluated, and on disk before any message names it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from apiary.blobs import BlobStore
from apiary.learn.metrics import Evaluation
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.messages import BlobRef
from apiary_coordinator import strategies
from apiary_coordinator.model.builder import ModelBuilder
from apiary_coordinator.model.checkpoints import keep
from apiary_coordinator.round.server_state import NextModel, SentModel, ServerState
from apiary_coordinator.strategies import Chain
from apiary_coordinator.updates.counted import CountedUpdates
from apiary_coordinator.updates.leave_one_out import LeftOut, without_harmful
from apiary_coordinator.updates.limits import median_norm

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewWeights:
    """What combiner and server rule make of some updates: not written yet, and not evaluated."""

    strategy_state: Weights
    weights: Weights
    dropped: Mapping[NodeId, str]
    """By the combiner, and why."""


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """The next model, how good it is, and which accepted updates are not in it, and why."""

    made: NextModel
    evaluation: Evaluation
    left_out: Mapping[NodeId, str]


class Aggregation:
    """Of one round. The held-out loss is compared with `loss_before`; None where it is unknown."""

    def __init__(
        self,
        run: RunSettings,
        server: ServerState,
        updates: CountedUpdates,
        *,
        builder: ModelBuilder,
        blobs: BlobStore,
        loss_before: float | None,
    ):
        self._run = run
        self._chain = strategies.load(run)
        self._server = server
        self._updates = updates
        self._builder = builder
        self._blobs = blobs
        self._loss_before = loss_before

    def aggregate(self, expected: int) -> NewWeights:
        """Apply the chain to all accepted updates, `expected` in number. Raises StoreError."""
        if (counted := len(self._updates.by_node)) != expected:
            raise AssertionError(f"{counted} updates are counted, {expected} were accepted")
        return self._applied()

    def evaluate(self, new: NewWeights) -> EvaluatedModel:
        """Evaluate it, leave out what makes it worse, and write it. Raises StoreError."""
        evaluation, harmful = self._evaluated(new), list[LeftOut]()
        before, gain = self._loss_before, self._run.leave_out_gain
        if before is not None and gain > 0:
            harmful, evaluation = without_harmful(
                self._pulls(new), evaluation, self._without, loss_before=before, gain=gain
            )
        if harmful:
            new = self._weights_without(frozenset(one.node for one in harmful))
        left_out = {**new.dropped, **{one.node: one.why for one in harmful}}
        return EvaluatedModel(self._written(new, left_out), evaluation, left_out)

    def _pulls(self, new: NewWeights) -> dict[NodeId, float]:
        """How far each update that is in the model may have moved it."""
        return {
            node: one.samples * one.norm
            for node, one in self._updates.by_node.items()
            if node not in new.dropped
        }

    def _without(self, nodes: frozenset[NodeId]) -> Evaluation:
        log.debug("evaluating the model without %s", ", ".join(sorted(nodes)))
        return self._evaluated(self._weights_without(nodes))

    def _weights_without(self, nodes: frozenset[NodeId]) -> NewWeights:
        with self._updates.without(nodes):
            return self._applied()

    def _evaluated(self, new: NewWeights) -> Evaluation:
        return self._builder.evaluate(self._server.exported, new.weights)

    def _applied(self) -> NewWeights:
        before = rule_state(self._blobs, self._server.strategy_state)
        combined = self._chain.combine(self._updates)
        averaged = self._server.manifest.statistics
        state, weights = self._chain.apply(before, self._server.weights, combined.update, averaged=averaged)
        return NewWeights(state, weights, combined.dropped)

    def _written(self, new: NewWeights, left_out: Mapping[NodeId, str]) -> NextModel:
        state = new.strategy_state
        kept = self._blobs.put(blob.encode(state)) if len(state) else None
        norms = (one.norm for node, one in self._updates.by_node.items() if node not in left_out)
        model = keep(self._blobs, new.weights)
        sent = sent_model(self._chain, self._blobs, state, new.weights, model)
        return NextModel(new.weights, model, kept, median_norm(norms), sent)


def rule_state(blobs: BlobStore, kept: Digest | None) -> Weights:
    """The server rule's state that a round starts from; empty before a run's first. Raises StoreError."""
    return Weights({}) if kept is None else blob.decode(blobs.read(kept), who="the journal").weights


def sent_model(
    chain: Chain, blobs: BlobStore, state: Weights, weights: Weights, model: BlobRef
) -> SentModel | None:
    """What the nodes train on, kept; None where that is the `model` itself. Raises StoreError."""
    sent = chain.sent(state, weights)
    if sent is weights:
        return None
    ref = keep(blobs, sent)
    return None if ref == model else SentModel(sent, ref)
