"""Prometheus metrics, and a watchdog for the worker."""
