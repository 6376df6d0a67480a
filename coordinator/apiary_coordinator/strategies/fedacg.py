"""FedAvg whose nodes begin ahead by the server's momentum (Kim et al. 2024, arXiv:2201.03172)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(server_rule="fedacg")
