"""Federated averaging: nodes train, their mean is the next model (McMahan et al. 2017, arXiv:1602.05629)."""

from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy()
