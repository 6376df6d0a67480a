"""FedAvg by the median of each coordinate (Yin et al. 2018, arXiv:1803.01498)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(combiner="median")
