"""A part of the coordinator beside its run: releases, operators, metrics; called on its loop."""

from pathlib import Path

from apiary.service import Feature


class CoordinatorFeature(Feature):
    """A feature that also learns of each run's result."""

    def finished(self, folder: Path) -> None:
        """A run's result lies in `folder`, reported and published. On the worker's thread; must not raise."""
