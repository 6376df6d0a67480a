"""What a round needs of a node, and what a node's status lacks of it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from apiary.learn.folder import labels as naming
from apiary.settings import RunSettings
from apiary.tags import as_text, matches, with_name
from apiary.wire.capabilities import VERSION_0, needed
from apiary.wire.messages import NodeStatus, Plan
from apiary_coordinator.recipes.base import capabilities

_NAMED: Final = 5
"""Labels or tags that a reason names."""


@dataclass(frozen=True)
class Demands:
    """Of one round, or of the next run where no round is open."""

    min_samples: int = 1
    only: tuple[str, ...] = ()
    """Rules on tags."""
    capabilities: frozenset[str] = frozenset()
    labels: tuple[str, ...] = ()
    """Those of the model, in its order; empty where they are not known yet."""

    @classmethod
    def of(cls, run: RunSettings, plan: Plan, labels: Iterable[str] = ()) -> Demands:
        """Of a run with this plan, and a model with these labels."""
        can = needed(plan, parts=bool(run.train)) | capabilities(run.recipe, run.recipe_options)
        return cls(plan.min_samples, tuple(run.only), can, tuple(labels))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.labels)

    def unmet(self, status: NodeStatus, node: str = "") -> str | None:
        """Why a node with this status cannot take part, whatever it is at; None where it can."""
        if not matches(with_name(status.tags, node), self.only):
            return f"the run is for {', '.join(self.only)}; this node has {as_text(status.tags) or 'no tags'}"
        if (why := self.misfit(status)) is not None:
            return why
        samples = self._samples(status)
        if samples < self.min_samples:
            return f"has {samples} samples, the plan asks for {self.min_samples}"
        return None

    def misfit(self, status: NodeStatus) -> str | None:
        """What does not pass by itself: another version, or other labels; None where there is nothing."""
        if lacks := self.capabilities - set(_can(status)):
            version = f" (version {status.version})" if status.version else ""
            return f"cannot do what the round needs{version}: {', '.join(sorted(lacks))}; upgrade the node"
        if self.labels and status.labels and self._known.isdisjoint(status.labels):
            spelled = {naming.key(label) for label in self.labels}
            alike = any(naming.key(label) in spelled for label in status.labels)
            mend = "set its edge.join_labels" if alike else "rename its labels"
            return (
                f"none of its labels ({some(status.labels)}) is one of the model's ({some(self.labels)}): "
                f"{mend}, or add them at the coordinator"
            )
        return None

    def left_out(self, status: NodeStatus) -> str | None:
        """Which pictures of a node that takes part are not trained, for their labels; None where all are."""
        if not self.labels or not status.labels:
            return None
        unknown = {label: n for label, n in status.labels.items() if label not in self._known and n}
        if not unknown or len(unknown) == len(status.labels):
            return None
        spelled = {naming.key(label) for label in self.labels}
        alike = any(naming.key(label) in spelled for label in unknown)
        mend = "set its edge.join_labels" if alike else "rename the label, or add it at the coordinator"
        n = sum(unknown.values())
        return f"{naming.pictures(n)} not trained, the model has no {some(sorted(unknown))}: {mend}"

    def _samples(self, status: NodeStatus) -> int:
        """What it may train of the model's labels; all of its samples where its labels are not known."""
        if not self.labels or not status.labels:
            return status.samples or 0
        return sum(n for label, n in status.labels.items() if label in self._known)


def some(names: Collection[str]) -> str:
    """A few of many names: `cat, dog, ... (12)`."""
    shown = ", ".join(list(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown}, ... ({len(names)})"


def _can(status: NodeStatus) -> Collection[str]:
    return VERSION_0 if status.capabilities is None else status.capabilities
