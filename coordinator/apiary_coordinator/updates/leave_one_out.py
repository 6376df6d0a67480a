"""Which accepted updates a round's mean is better without: those that make the model worse. Pure.

The bounds on weights and norms limit what one update does; a false one of five may still undo what the others
learn. So where the held-out loss does not fall, each is left out in turn, and the one whose absence lowers
it far is dropped: updates are judged by held-out data as in Zeno (Xie et al. 2019, arXiv:1805.10032), but
only in rounds that bring no progress. docs/decisions/0025-what-worsens-the-model.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from apiary.learn.metrics import Evaluation
from apiary.wire import NodeId

MAX_CANDIDATES: Final = 8
"""Updates that are left out in turn in one step: those that pull most, by samples times norm."""
MAX_LEFT_OUT: Final = 4
"""In one round: at most 8 evaluations for each, and four times 8 in all."""
LOOKED_BACK: Final = 5
"""Closed rounds whose lowest loss is what it is compared with."""
_LEAST: Final = 0.05
"""Nats that an absence must gain in any case: of a good model's loss a quarter is chance."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An update that is not in the mean: the held-out losses with it, without it, and before the round."""

    node: NodeId
    loss_with: float
    loss_without: float
    loss_before: float

    @property
    def why(self) -> str:
        """For the result, the log and people."""
        return (
            f"the held-out loss is {self.loss_with:.4g} with its update and {self.loss_without:.4g} "
            f"without it, {self.loss_before:.4g} before (run.leave_out_gain)"
        )


def without_harmful(
    pulls: Mapping[NodeId, float],
    found: Evaluation,
    evaluate_without: Callable[[frozenset[NodeId]], Evaluation],
    *,
    loss_before: float,
    gain: float,
) -> tuple[list[LeftOut], Evaluation]:
    """Updates to leave out, in the order found, and how good the model is without them.

    `pulls` are samples times norm of each accepted update, `found` the evaluation of the mean of all of
    them, `evaluate_without` that of the mean without some. Nothing is tried unless the loss is above
    `loss_before`; never half of the updates or more are left out. The last one lowers the loss that those
    before it leave by at least the share `gain`: of two that harm alike only the absence of both does. Ties
    are decided by node id: the outcome follows from the inputs.
    """
    steps: list[LeftOut] = []
    evaluations = [found]
    most = min(MAX_LEFT_OUT, (len(pulls) - 1) // 2)
    while evaluations[-1].loss > loss_before and len(steps) < most:
        gone = frozenset(step.node for step in steps)
        candidates = sorted(pulls.keys() - gone, key=lambda node: (-pulls[node], node))[:MAX_CANDIDATES]
        tried = {node: evaluate_without(gone | {node}) for node in candidates}
        node = min(tried, key=lambda node: (tried[node].loss, node))
        steps.append(LeftOut(node, evaluations[-1].loss, tried[node].loss, loss_before))
        evaluations.append(tried[node])
    while steps and steps[-1].loss_with - steps[-1].loss_without < max(_LEAST, gain * steps[-1].loss_with):
        steps.pop()
        evaluations.pop()
    return steps, evaluations[-1]
