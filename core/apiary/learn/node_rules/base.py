"""What a node rule is: options, and a plan that says all that a node needs of them."""

from typing import Any, Protocol

from apiary.options import StageOptions
from apiary.wire.messages import Plan


class NodeRule(Protocol):
    """A plug-in module of `apiary.learn.node_rules` has these."""

    Options: type[StageOptions]

    def plan(self, plan: Plan, options: Any) -> Plan:
        """The plan with what this rule needs of the nodes; planned twice it is the same."""
