"""The tensors of every recipe for some numbers of labels. Imports TensorFlow: run by test_recipes as a child.

`python -m tests.contract.recipe_shapes OPTIONS-BY-RECIPE 2 3` prints JSON: {recipe: [{tensor: shape}, ...]}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from apiary.learn.runtimes.keras import named_variables, prepare
from apiary.plugins import names
from apiary_coordinator.recipes.base import check_options, recipe


def shapes(name: str, options: dict[str, Any], labels: int) -> dict[str, list[int]]:
    """As the recipe builds them."""
    models = recipe(name).build(check_options(name, options), labels, base_weights=None, seed=0)
    return {tensor: list(variable.shape) for tensor, variable in named_variables(models.trained)}


if __name__ == "__main__":
    prepare(1)
    small = json.loads(sys.argv[1])
    found = {
        name: [shapes(name, small.get(name, {}), int(n)) for n in sys.argv[2:]]
        for name in names("apiary_coordinator.recipes")
    }
    print(json.dumps(found))
