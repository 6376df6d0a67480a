"""`apiary pki`: the fleet's private authority, and a device's part of it."""

from apiary_cli.pki.command import add_arguments, run

__all__ = ["add_arguments", "run"]
