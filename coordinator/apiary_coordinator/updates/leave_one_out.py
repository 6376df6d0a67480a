"""Which accepted updates a round's mean is better without: those that make the model worse. Pure.

The bounds on weights and norms limit what one update does; a false one of five may still undo what the others
learn. So where the held-out loss rises with all updates, each is left out in turn, and the one whose absence
brings back most of the rise is dropped: updates are judged by held-out data as in Zeno (Xie et al. 2019,
arXiv:1805.10032), but only when the model became worse. docs/decisions/0025-what-worsens-the-model.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from apiary.learn.metrics import Evaluation
from apiary.wire import NodeId

MAX_CANDIDATES: Final = 16
"""Updates that are left out in turn in one step: those that pull most, by samples times norm."""
MAX_LEFT_OUT: Final = 4
"""In one round: at most 16 + 15 + 14 + 13 evaluations."""
_SHARE_BACK: Final = 0.5
"""Of the rise that an update's absence must bring back."""
_SLACK: Final = 0.02
"""Added to what is allowed, in nats: near a loss of 0 a third more is chance."""
LOOKED_BACK: Final = 5
"""Closed rounds whose lowest loss is what a rise is measured from."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An update that is not in the mean: the held-out losses with it, without it, and before the round."""

    node: NodeId
    loss_with: float
    loss_without: float
    loss_before: float

    @property
    def cures(self) -> bool:
        """Whether its absence brings back enough of the rise."""
        return self.loss_with - self.loss_without >= _SHARE_BACK * (self.loss_with - self.loss_before)

    @property
    def why(self) -> str:
        """For the result, the log and people."""
        return (
            f"the held-out loss is {self.loss_with:.4g} with its update and {self.loss_without:.4g} "
            f"without it, {self.loss_before:.4g} before (run.max_loss_increase)"
        )


def worsening(
    pulls: Mapping[NodeId, float],
    found: Evaluation,
    evaluate_without: Callable[[frozenset[NodeId]], Evaluation],
    *,
    loss_before: float,
    max_increase: float,
) -> tuple[list[LeftOut], Evaluation]:
    """Updates to leave out, in the order found, and how good the model is without them.

    `pulls` are samples times norm of each accepted update, `found` the evaluation of the mean of all of
    them, `evaluate_without` that of the mean without some. Nothing is left out while the loss is at most
    `1 + max_increase` times `loss_before`, and a little; never half of the updates or more. The last one
    brings back at least half of the rise that those before it leave: of two that harm alike only the absence
    of both does. Ties are decided by node id: the outcome follows from the inputs.
    """
    steps: list[LeftOut] = []
    evaluations = [found]
    most = min(MAX_LEFT_OUT, (len(pulls) - 1) // 2)
    while _worse(evaluations[-1].loss, loss_before, max_increase) and len(steps) < most:
        gone = frozenset(step.node for step in steps)
        candidates = sorted(pulls.keys() - gone, key=lambda node: (-pulls[node], node))[:MAX_CANDIDATES]
        tried = {node: evaluate_without(gone | {node}) for node in candidates}
        node = min(tried, key=lambda node: (tried[node].loss, node))
        steps.append(LeftOut(node, evaluations[-1].loss, tried[node].loss, loss_before))
        evaluations.append(tried[node])
    while steps and not steps[-1].cures:
        steps.pop()
        evaluations.pop()
    return steps, evaluations[-1]


def _worse(loss: float, before: float, max_increase: float) -> bool:
    return loss > before * (1 + max_increase) + _SLACK
