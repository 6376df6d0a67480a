"""FedAvg with Adam on the server (Reddi et al. 2021, arXiv:2003.00295)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(server_rule="fedadam")
