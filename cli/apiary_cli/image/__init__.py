"""`apiary image`: what a card must hold so that a Pi joins the fleet at its first start."""

from apiary_cli.image.command import add_arguments, run

__all__ = ["add_arguments", "run"]
