"""Wrong names in settings are refused with the names that there are."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.errors import SettingsError
from apiary.settings import RunSettings, Settings
from apiary_coordinator.run.checks import check_run, check_settings


def test_the_defaults_hold() -> None:
    check_settings(Settings())


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ({"recipe": "edge_cmn"}, "run.recipe: recipes: no 'edge_cmn'; did you mean 'edge_cnn'?"),
        ({"strategy": "fedporx"}, "run.strategy: strategies: no 'fedporx'; did you mean 'fedprox'?"),
        ({"plan": {"codec": "f17"}}, "run.plan.codec: codecs: no 'f17'; did you mean 'f16'?"),
        ({"recipe_options": {"siz": 3}}, "run.recipe_options: recipe edge_cnn: no option 'siz'"),
        ({"strategy_options": {"mu": 3}}, "run.strategy_options: fedavg has no options, got mu"),
    ],
)
def test_a_wrong_name_is_refused_with_those_there_are(run: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check_run(RunSettings.model_validate(run))
    assert str(refused.value).startswith(why)


def test_publishers_too() -> None:
    settings = Settings.model_validate({"publish": {"after_run": ["directory", "edge_impuls"]}})
    with pytest.raises(SettingsError, match=r"publish.after_run: publishers: no 'edge_impuls'; did you mean"):
        check_settings(settings)
