"""Worker: from a round's updates to the next model, evaluated, and on disk before any message names it."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass

from apiary.blobs import BlobStore
from apiary.learn.metrics import Evaluation
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary.wire import NodeId, blob
from apiary.wire.messages import BlobRef
from apiary_coordinator import strategies
from apiary_coordinator.model.builder import ModelBuilder
from apiary_coordinator.round.collector import Collector
from apiary_coordinator.round.server_state import NextModel, ServerState
from apiary_coordinator.updates.leave_one_out import LeftOut, without_harmful
from apiary_coordinator.updates.limits import median_norm

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewWeights:
    """What the strategy makes of a mean: not written yet, and not evaluated."""

    strategy_state: Weights
    weights: Weights


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """The next model, how good it is, and which accepted updates are not in it."""

    made: NextModel
    evaluation: Evaluation
    left_out: tuple[LeftOut, ...] = ()


class Aggregation:
    """Of one round. The held-out loss is compared with `loss_before`; None where it is unknown."""

    def __init__(
        self,
        run: RunSettings,
        server: ServerState,
        collector: Collector,
        *,
        builder: ModelBuilder,
        blobs: BlobStore,
        loss_before: float | None,
    ):
        self._run = run
        self._server = server
        self._collector = collector
        self._builder = builder
        self._blobs = blobs
        self._loss_before = loss_before

    def aggregate(self, expected: int) -> NewWeights:
        """Apply the strategy to the mean of all accepted updates, `expected` in number."""
        if (added := self._collector.sum.updates) != expected:
            raise AssertionError(f"the sum holds {added} updates, {expected} were accepted")
        return self._applied()

    def evaluate(self, new: NewWeights) -> EvaluatedModel:
        """Evaluate it, leave out what makes it worse, and write it. Raises StoreError."""
        evaluation, left_out = self._evaluated(new), list[LeftOut]()
        before, gain = self._loss_before, self._run.leave_out_gain
        if before is not None and gain > 0:
            pulls = {node: one.samples * one.norm for node, one in self._collector.in_sum.items()}
            left_out, evaluation = without_harmful(
                pulls, evaluation, self._without, loss_before=before, gain=gain
            )
        gone = frozenset(one.node for one in left_out)
        if gone:
            new = self._weights_without(gone)
        return EvaluatedModel(self._written(new, gone), evaluation, tuple(left_out))

    def _without(self, nodes: frozenset[NodeId]) -> Evaluation:
        log.debug("evaluating the model without %s", ", ".join(sorted(nodes)))
        return self._evaluated(self._weights_without(nodes))

    def _weights_without(self, nodes: frozenset[NodeId]) -> NewWeights:
        """Without these updates. The sum is exact: afterwards it is to the bit what it was."""
        with ExitStack() as back:
            for node in nodes:
                self._collector.take_out(node)
                back.callback(self._collector.put_back, node)
            return self._applied()

    def _evaluated(self, new: NewWeights) -> Evaluation:
        return self._builder.evaluate(self._server.exported, new.weights)

    def _applied(self) -> NewWeights:
        strategy = strategies.load(self._run)
        kept = self._server.strategy_state
        before = (
            strategy.init(self._server.weights)
            if kept is None
            else blob.decode(self._blobs.read(kept), who="the journal").weights
        )
        state, weights = strategy.apply(before, self._server.weights, self._collector.sum.mean())
        return NewWeights(state, weights)

    def _written(self, new: NewWeights, gone: frozenset[NodeId]) -> NextModel:
        document = blob.encode(new.weights)
        model = BlobRef(digest=self._blobs.put(document), bytes=len(document))
        state = new.strategy_state
        kept = self._blobs.put(blob.encode(state)) if len(state) else None
        norms = (one.norm for node, one in self._collector.in_sum.items() if node not in gone)
        return NextModel(new.weights, model, kept, median_norm(norms))
