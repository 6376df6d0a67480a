"""`apiary chaos`: a real federation on this machine, disturbed by a seeded schedule of faults."""

from apiary_cli.chaos.command import add_arguments, run

__all__ = ["add_arguments", "run"]
