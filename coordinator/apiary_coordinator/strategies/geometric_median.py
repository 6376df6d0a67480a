"""FedAvg by the geometric median: robust aggregation, RFA (Pillutla et al. 2019, arXiv:1912.13445)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(combiner="geometric_median")
