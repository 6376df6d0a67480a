"""The loss alone, or as `run.plan` says (McMahan et al. 2017, arXiv:1602.05629)."""

from apiary.options import StageOptions
from apiary.wire.messages import Plan


class Options(StageOptions):
    """None."""


def plan(plan: Plan, options: Options) -> Plan:
    """The plan as it is."""
    return plan
