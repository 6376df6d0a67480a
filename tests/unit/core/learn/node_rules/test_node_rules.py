from __future__ import annotations

import pytest

from apiary.learn.node_rules import plain, proximal
from apiary.wire.capabilities import needed
from apiary.wire.messages import Plan


def test_plain_is_what_the_plan_says() -> None:
    for plan in (Plan(epochs=3), Plan(proximal_mu=0.2)):
        assert plain.plan(plan, plain.Options()) is plan


@pytest.mark.parametrize(
    ("option", "before", "mu"), [(None, 0.0, 0.01), (None, 0.3, 0.3), (0.5, 0.3, 0.5), (1000, 0.0, 1000.0)]
)
def test_proximal_asks_the_nodes_for_its_term(option: float | None, before: float, mu: float) -> None:
    made = proximal.plan(Plan(proximal_mu=before), proximal.Options(mu=option))
    assert made == Plan(proximal_mu=mu)
    assert "rule.proximal" in needed(made)
