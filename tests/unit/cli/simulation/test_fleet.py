"""Paces and links of a simulated fleet: by seed, by a profile, and refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apiary.errors import DataError, SettingsError
from apiary_cli.simulation.fleet import FleetModel, read_profile, traits

NAMES = [f"node-{i}" for i in range(1000)]


def profile(tmp_path: Path, *nodes: dict[str, Any], **more: Any) -> Path:
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps({"v": 1, "nodes": list(nodes), **more}))
    return path


def test_the_same_seed_gives_the_same_fleet_and_a_spread_is_two_thirds_of_it() -> None:
    model = FleetModel(pace_s=0.1, pace_spread=2.0, up_mbit=8.0, link_spread=1.0)
    one, two, other = (traits(NAMES, model, seed=seed) for seed in (1, 1, 2))
    assert one == two != other
    paces = np.array([node.pace_s for node in one])
    assert 0.6 < np.mean((paces > 0.05) & (paces < 0.2)) < 0.76
    assert {node.link.up_bytes_s for node in one} == {1_000_000.0}


def test_nodes_are_those_of_a_profile_and_what_it_does_not_know_is_the_models(tmp_path: Path) -> None:
    path = profile(
        tmp_path,
        {"id": "pi-1", "labels": {"a": 3}, "pace_s": 0.5, "up_bytes_s": 100.0},
        {"id": "pi-2", "labels": {"a": 1}},
    )
    model = FleetModel(pace_s=0.25, pace_spread=1.0, up_mbit=8.0, link_spread=1.0)
    found = traits(["pi-2", "pi-1", "pi-9"], model, seed=0, profile=read_profile(path))
    assert [node.pace_s for node in found[:2]] == [0.25, 0.5]
    assert [node.link.up_bytes_s for node in found[:2]] == [1_000_000.0, 100.0]
    assert found[2].pace_s in (0.25, 0.5), "a name that is not in it takes after one that is"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "profile"),
        ('{"v": 1, "nodes": []}', "nodes is"),
        ('{"v": 2, "nodes": [{"id": "a", "labels": {}}]}', "v is '2'"),
        ('{"v": 1, "nodes": [{"id": "a b", "labels": {}}]}', "nodes.0.id is 'a b'"),
        ('{"v": 1, "nodes": [{"id": "a", "labels": {}, "pace_s": 0}]}', "nodes.0.pace_s is '0.*'"),
        (
            '{"v": 1, "nodes": [{"id": "a", "labels": {}}, {"id": "a", "labels": {}}]}',
            "node a more than once",
        ),
    ],
)
def test_a_profile_that_does_not_hold_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(text)
    with pytest.raises(DataError, match=why) as refused:
        read_profile(path)
    assert str(path) in str(refused.value)


def test_a_profile_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises((DataError, SettingsError), match=r"gone\.json"):
        read_profile(tmp_path / "gone.json")
