"""What a node can do for a round, as names in its status: a round draws only nodes that can do what it needs.

The list grows with each version, and names that a party does not know mean nothing to it. Unknown keys of a
plan are ignored, so what is new in a plan must have a name here: an older node would train by half of it.
"""

from typing import Final

from apiary.plugins import names
from apiary.wire.messages.plan import Plan

CODEC: Final = "codec."
RULES: Final = (
    "rule.augment",
    "rule.augment.2",
    "rule.batch_statistics",
    "rule.class_weights",
    "rule.dropout",
    "rule.gradient_clip",
    "rule.label_smoothing",
    "rule.partial",
    "rule.parts",
    "rule.proximal",
    "rule.steps",
    "rule.weight_decay",
)
"""Rules of a plan that this version's nodes follow."""
VERSION_0: Final = frozenset(
    {
        "codec.f16",
        "codec.int8",
        "codec.raw_f32",
        "rule.augment",
        "rule.class_weights",
        "rule.partial",
        "rule.proximal",
    }
)
"""What the nodes of 0.1 could, whose status has no list. It stays as it is."""


def of_this_version() -> list[str]:
    """What a node of this version can do, sorted."""
    return sorted([*(CODEC + name for name in names("apiary.wire.codecs")), *RULES])


def needed(plan: Plan, *, parts: bool = False) -> frozenset[str]:
    """What a node must be able to do to train by this plan, `parts` of the model alone."""
    rules = {
        "rule.augment": plan.flip or plan.shift > 0,
        "rule.augment.2": any((plan.rotate, plan.zoom, plan.brightness, plan.contrast, plan.erase, plan.mix)),
        "rule.class_weights": plan.class_weights,
        "rule.gradient_clip": plan.gradient_clip > 0,
        "rule.label_smoothing": plan.label_smoothing > 0,
        "rule.partial": plan.partial,
        "rule.parts": parts,
        "rule.proximal": plan.proximal_mu > 0,
        "rule.steps": plan.steps is not None,
        "rule.weight_decay": plan.weight_decay > 0,
    }
    return frozenset({CODEC + plan.codec, *(rule for rule, used in rules.items() if used)})
