"""A run that begins with a model that is there: its weights in the shape of the new run's model. Pure.

Labels may be in another order, new ones may be added, some may be gone: a recipe declares the tensors with an
axis of labels, and along it each known label keeps its slice. docs/decisions/0029-a-run-goes-on.md.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from apiary.errors import ModelError
from apiary.tensors import Weights


class Ancestor(BaseModel):
    """The model that a run begins with: of a round of another run, or of a file.

    `accuracy` is what its own run measured, `accuracy_here` what this run's held-out pictures give before the
    first round, None until they are evaluated. `added` and `dropped` are this run's labels against its own.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    run: str | None = None
    round: int | None = None
    file: str | None = None
    model: str | None = None
    """Digest of its weights in the blob store; None where they are read from a file."""
    labels: tuple[str, ...]
    accuracy: float | None = None
    accuracy_here: float | None = None
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`round 12 of run autumn`, or the file."""
        return f"round {self.round} of run {self.run}" if self.run is not None else str(self.file)

    def compared_with(self, labels: Sequence[str]) -> "Ancestor":
        """With `added` and `dropped` for a run of these labels."""
        added = tuple(label for label in labels if label not in self.labels)
        dropped = tuple(label for label in self.labels if label not in labels)
        return self.model_copy(update={"added": added, "dropped": dropped})


def carried_over(
    before: Weights, known: Sequence[str], fresh: Weights, labels: Sequence[str], axes: Mapping[str, int]
) -> Weights:
    """The weights `before`, of the labels `known`, for a model of `labels` with the initial weights `fresh`.

    `axes` gives the axis of labels of each tensor that has one. A label's slice comes from `before` where it
    is known there, from `fresh` where it is new; other tensors come from `before` as they are. With the same
    labels in the same order the weights are `before`, to the bit.

    Raises ModelError where `before` lacks a tensor, or has one of another shape.
    """
    place = {label: i for i, label in enumerate(known)}
    kept = [(i, place[label]) for i, label in enumerate(labels) if label in place]
    here, there = [i for i, _ in kept], [i for _, i in kept]
    made = {}
    for name, tensor in fresh.items():
        if name not in before:
            raise ModelError(f"the start model has no tensor {name!r}; it has {_some(before)}")
        found = before[name]
        axis = axes.get(name)
        want = list(tensor.shape)
        if axis is not None:
            want[axis] = len(known)
        if list(found.shape) != want:
            raise ModelError(
                f"the start model's tensor {name!r} has the shape {list(found.shape)}, expected {want}"
            )
        if axis is None:
            made[name] = found
            continue
        out = np.moveaxis(tensor.copy(), axis, 0)
        out[here] = np.moveaxis(found, axis, 0)[there]
        made[name] = np.ascontiguousarray(np.moveaxis(out, 0, axis))
    return Weights(made)


def _some(weights: Weights) -> str:
    names = list(weights)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
