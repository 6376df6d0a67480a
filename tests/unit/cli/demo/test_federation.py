"""The settings file of a local federation says exactly what it was given."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiary.settings import to_toml
from apiary_cli.demo.federation import LocalFederation

KEY = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PLAIN = st.one_of(
    st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
VALUE = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(KEY, st.dictionaries(KEY, VALUE, max_size=4), max_size=3))
def test_what_is_written_is_what_is_read(settings: dict[str, dict[str, Any]]) -> None:
    assert tomllib.loads(to_toml(settings)) == settings


def test_sections_paths_and_what_is_unset() -> None:
    text = to_toml({"run": {"rounds": 3, "patience": None, "path": Path("/a b")}, "run.plan": {"flip": True}})
    assert tomllib.loads(text) == {"run": {"rounds": 3, "path": "/a b", "plan": {"flip": True}}}


@pytest.mark.parametrize("text", ['say "hi"', "C:\\pictures", "täglich", "a\nb", "a\tb", "\x7f"])
def test_texts_that_need_care(text: str) -> None:
    assert tomllib.loads(to_toml({"edge": {"data_dir": text}})) == {"edge": {"data_dir": text}}


def test_what_no_file_can_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="not TOML serializable"):
        to_toml({"run": {"x": object()}})


def test_a_federation_writes_its_file_and_stops_though_nothing_runs(tmp_path: Path) -> None:
    federation = LocalFederation(tmp_path, {"broker": {"port": 1}})
    assert tomllib.loads(federation.settings_file.read_text()) == {"broker": {"port": 1}}
    assert federation.result() is None
    federation.check()
    federation.stop()
