"""The loss and `mu/2 |w - w_global|^2`: a node stays near the model (Li et al. 2020, arXiv:1812.06127)."""

from typing import Final

from pydantic import Field

from apiary.options import StageOptions
from apiary.wire.messages import Plan

_MU: Final = 0.01


class Options(StageOptions):
    """`mu` alone."""

    mu: float | None = Field(
        None, gt=0, le=1000, description=f"weight of the term; unset: run.plan.proximal_mu, else {_MU}"
    )


def plan(plan: Plan, options: Options) -> Plan:
    """The plan with the term's weight."""
    mu = options.mu if options.mu is not None else plan.proximal_mu or _MU
    return plan.model_copy(update={"proximal_mu": float(mu)})
