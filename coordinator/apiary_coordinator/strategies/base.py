"""What a strategy is: the name of a chain of stages, with the options that it is known for."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Strategy:
    """A stage of each kind by name, and options that differ from the stages' own defaults.

    A plug-in module of `apiary_coordinator.strategies` has one as `STRATEGY`.
    """

    node_rule: str = "plain"
    combiner: str = "mean"
    server_rule: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)
