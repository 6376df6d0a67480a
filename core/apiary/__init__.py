"""Apiary: federated learning for fleets of Raspberry Pis over MQTT."""

__version__ = "0.1.0"
