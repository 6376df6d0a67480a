"""What `apiary demo` trains on each data set: measured settings that reach a good model in minutes."""

from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Preset:
    """A data set's recipe, plan and shares."""

    nodes: int
    rounds: int
    recipe_options: dict[str, Any]
    plan: dict[str, Any]
    alpha: float = 0.5
    limit: int | None = None
    target: float | None = None
    run: dict[str, Any] = field(default_factory=dict)


PRESETS: Final = {
    "digits": Preset(
        nodes=5,
        rounds=16,
        recipe_options={"size": 16, "channels": 1, "widths": [16, 32, 48]},
        plan={"epochs": 8, "batch_size": 16, "learning_rate": 0.003, "shift": 0.07},
        target=0.97,
    ),
    "hardhat": Preset(
        nodes=2,
        rounds=12,
        recipe_options={"size": 96, "channels": 3},
        plan={"epochs": 8, "batch_size": 16, "learning_rate": 0.001, "flip": True, "shift": 0.1},
        target=0.97,
    ),
    "cifar10": Preset(
        nodes=5,
        rounds=10,
        recipe_options={"size": 32, "channels": 3},
        plan={"epochs": 2, "batch_size": 32, "learning_rate": 0.001, "flip": True, "shift": 0.1},
    ),
    "names": Preset(
        nodes=2,
        rounds=12,
        recipe_options={"length": 16, "hidden": 96},
        plan={"epochs": 2, "batch_size": 32, "learning_rate": 0.003},
        alpha=1.0,
        run={"recipe": "char_rnn"},
    ),
    "fer2013": Preset(
        nodes=5,
        rounds=10,
        recipe_options={"size": 48, "channels": 1},
        plan={"epochs": 2, "batch_size": 32, "learning_rate": 0.001, "flip": True, "shift": 0.1},
    ),
}
