from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from apiary.errors import SettingsError
from apiary.options import bounds
from apiary.settings import Settings, load_settings
from apiary.settings.run import RunSettings
from apiary.wire.messages import Plan
from apiary_cli.commands import config


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No apiary.toml and no APIARY_* of the developer's own."""
    import os

    monkeypatch.chdir(tmp_path)
    for key in [k for k in os.environ if k.startswith("APIARY_")]:
        monkeypatch.delenv(key)


def command(
    capsys: pytest.CaptureFixture[str], *argv: str, file: Path | None = None, **overrides: Any
) -> str:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    args = parser.parse_args(argv)
    args.config, args.overrides = file, {k.replace("__", "."): v for k, v in overrides.items()}
    assert config.run(args) == 0
    return capsys.readouterr().out


def test_each_value_says_where_it_came_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nrounds = 5\nseed = 4\nrecipe_options = {size = 64}\n[run.plan]\nepochs = 3\n")
    monkeypatch.setenv("APIARY_RUN__SEED", "7")
    rows = json.loads(command(capsys, "--json", file=file, broker__port=1999))
    assert rows["run.rounds"] == {"value": 5, "origin": str(file)}
    assert rows["run.plan.epochs"] == {"value": 3, "origin": str(file)}
    assert rows["run.recipe_options"] == {"value": {"size": 64}, "origin": str(file)}
    assert rows["run.seed"] == {"value": 7, "origin": "environment"}
    assert rows["broker.port"] == {"value": 1999, "origin": "command line"}
    assert rows["federation"] == {"value": "default", "origin": "default"}
    changed = command(capsys, "--changed", file=file, broker__port=1999).splitlines()
    assert "broker.port = 1999  # command line" in changed
    assert len(changed) == 5


def test_secrets_are_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIARY_BROKER__PASSWORD", "sesame")
    for argv in (["--json"], []):
        out = command(capsys, *argv)
        assert "sesame" not in out
        assert "***" in out


def test_nothing_changed_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "--changed") == "every setting has its default\n"


def test_the_defaults_file_loads_as_it_is_and_with_every_line_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = command(capsys, "--defaults")
    file = tmp_path / "apiary.toml"
    file.write_text(text)
    assert load_settings(file).settings == Settings()
    taken = re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE)
    file.write_text(taken)
    loaded = load_settings(file)
    assert loaded.settings == Settings()
    assert len(loaded.origin) == len(re.findall(r"^#\w", text, flags=re.MULTILINE)) > 40
    assert tomllib.loads(taken)["broker"]["port"] == 1883


def test_the_defaults_file_names_and_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    text = command(capsys, "--defaults")
    for key in config.effective(load_settings()):
        name = key.rsplit(".", 1)[-1]
        assert re.search(rf"^#{name} = |^# {name} \(unset\): \w", text, flags=re.MULTILINE), key
    assert "name or address of the broker" in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_unknown_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'run.round'; did you mean 'run.rounds'\?"):
        command(capsys, run__round=3)


def every_setting(model: type[BaseModel] = Settings, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from every_setting(info.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}", info


@pytest.mark.parametrize(("key", "info"), [pytest.param(*row, id=row[0]) for row in every_setting()])
def test_every_setting_has_a_line_and_every_number_its_bounds(key: str, info: FieldInfo) -> None:
    assert info.description
    assert info.description[:1] != " "
    kinds = (info.annotation, *get_args(info.annotation))
    if int in kinds or float in kinds:
        assert get_origin(info.annotation) is list or bounds(info)
    (line,) = [
        line
        for section, lines in sections(config.defaults_toml()).items()
        for line in lines
        if f"{section}{re.split(r'[ =]', line.lstrip('# '))[0]}" == key
    ]
    assert info.description.removeprefix("unset: ") in line
    assert f"({bounds(info)})" in line or not bounds(info)


def sections(text: str) -> dict[str, list[str]]:
    """The settings' lines of a defaults file by their section's path."""
    found: dict[str, list[str]] = {"": []}
    for line in text.splitlines():
        if line.startswith("["):
            found[line.strip("[]") + "."] = []
        elif re.match(r"#\w+ = |# \w+ \(unset\): ", line):
            found[list(found)[-1]].append(line)
    return found


def test_bounds_read_as_words() -> None:
    run, plan = RunSettings.model_fields, Plan.model_fields
    assert bounds(run["rounds"]) == "1 to 100_000"
    assert bounds(run["target_accuracy"]) == "over 0, at most 1"
    assert bounds(run["patience"]) == "at least 1"
    assert bounds(plan["momentum"]) == "at least 0, under 1"
    assert bounds(plan["shift"]) == "0 to 0.5"
    assert bounds(plan["optimizer"]) == "sgd, adam"
    assert bounds(run["recipe"]) == bounds(plan["flip"]) == ""


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("run.recipe", "edge_cmn", "run.recipe: recipes: no 'edge_cmn'; did you mean 'edge_cnn'?"),
        ("run.strategy", "x", "run.strategy: strategies: no 'x'. There are: fedacg, "),
        ("run.plan.codec", "x", "run.plan.codec: codecs: no 'x'. There are: f16, int8, raw_f32"),
        ("run.recipe_options", {"siz": 1}, "run.recipe_options: recipe edge_cnn: no option 'siz'"),
        ("publish.after_run", ["x"], "publish.after_run: publishers: no 'x'. There are: "),
    ],
)
def test_a_name_that_there_is_not_is_refused(key: str, value: Any, why: str) -> None:
    args = argparse.Namespace(config=None, overrides={key: value}, defaults=False, changed=False, json=False)
    with pytest.raises(SettingsError) as refused:
        config.run(args)
    assert str(refused.value).startswith(f"command line: {why}")
