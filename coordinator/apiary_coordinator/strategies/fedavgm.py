"""FedAvg with momentum on the server (Hsu et al. 2019, arXiv:1909.06335)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(server_rule="fedavgm")
