"""Nodes that follow the newest model get it: those of the round, those that declined, after the last."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fleet.harness import Features, Fleet

from apiary_edge.feature import NodeFeature
from apiary_edge.predicting import model_files
from apiary_edge.predicting.follower import ModelFollower
from apiary_edge.service import Edge


class Unwilling(NodeFeature):
    """Takes part in nothing."""

    def unfit(self, told: object) -> str:
        return "it only looks"


def following(folder: Path, node: str, *more: NodeFeature) -> Features:
    def features(edge: Edge) -> list[NodeFeature]:
        return [ModelFollower(edge.node, edge.clocks, edge.downloads, folder / node, fetch=True), *more]

    return features


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_follower_has_the_best_model_when_the_run_is_over(tmp_path: Path, rounds: int) -> None:
    names = [f"pi-{i:02d}" for i in range(5)]
    features = {name: following(tmp_path / "follow", name) for name in names[:4]}
    features["pi-04"] = following(tmp_path / "follow", "pi-04", Unwilling())
    fleet = Fleet(tmp_path / "fleet", 5, features=features, rounds=rounds)
    try:
        fleet.run()
        for _ in range(40):
            fleet.turn()
        last = fleet.results()[-1]
        best = max(fleet.results(), key=lambda r: (r["accuracy"], -r["loss"]))
        assert "pi-04" not in last["contributors"] and len(last["contributors"]) == 4
        for name in names:
            found = model_files.newest(tmp_path / "follow" / name)
            assert found is not None and found.digest == best["model"], name
            assert found.name == f"round {best['round']} of run run" and found.file.is_file()
            assert found.manifest is not None and found.trainer is not None and found.trainer.is_file()
            assert model_files.known_labels(tmp_path / "follow" / name) == found.labels
    finally:
        fleet.close()


def test_a_node_learns_the_labels_of_a_run_that_waits_for_nodes(tmp_path: Path) -> None:
    features = {"pi-00": following(tmp_path / "follow", "pi-00")}
    fleet = Fleet(tmp_path / "fleet", 1, features=features, min_nodes=2)
    try:
        for _ in range(1000):
            fleet.turn()
        assert fleet.results() == []
        assert fleet.hosted.exported is not None
        labels = tuple(fleet.hosted.exported.labels)
        assert model_files.known_labels(tmp_path / "follow" / "pi-00") == labels
    finally:
        fleet.close()
