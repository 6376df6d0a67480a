"""FedAvg whose nodes are held near the model against client drift (Li et al. 2020, arXiv:1812.06127)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(node_rule="proximal")
