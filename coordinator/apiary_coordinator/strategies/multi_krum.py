"""FedAvg without the updates that lie apart from the others (Blanchard et al. 2017, arXiv:1703.02757)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(combiner="multi_krum")
