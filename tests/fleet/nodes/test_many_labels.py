"""A run with many labels, and nodes with one picture, or with labels that no other has."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fleet.harness import FakeModelBuilder, MakeFleet

from apiary_coordinator.model.builder import ExportedModel
from apiary_edge.training.census import Census


@pytest.mark.parametrize(("count", "chars"), [(130, 4), (130, 64), (1000, 64)])
def test_a_run_with_many_labels_draws_all_whose_labels_it_knows(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, count: int, chars: int
) -> None:
    labels = tuple(f"l{i:03d}".ljust(chars, "x") for i in range(count))
    build = FakeModelBuilder.build

    def with_many(self: FakeModelBuilder) -> ExportedModel:
        return build(self).model_copy(update={"labels": labels})

    monkeypatch.setattr(FakeModelBuilder, "labels", lambda self: labels)
    monkeypatch.setattr(FakeModelBuilder, "build", with_many)
    pictures: dict[str, dict[str, int]] = {
        "pi-00": dict.fromkeys(labels[: count - 10], 3),
        "pi-01": {labels[5]: 1},
        "pi-02": dict.fromkeys(labels[count - 10 :], 3),
        "pi-03": {"other": 5},
    }
    fleet = make_fleet(4, stay=True, min_nodes=3, rounds=2)
    for node, has in pictures.items():
        monkeypatch.setattr(fleet.nodes[node]._presence, "_census", Census(labels=has))
        monkeypatch.setattr(fleet.nodes[node]._presence, "_counted_at", 1e9)  # they stay
    fleet.ask("run.start", name="run")
    fleet.until(lambda: len(fleet.results()) == 2, 120)
    for result in fleet.results():
        assert sorted(result["contributors"]) == ["pi-00", "pi-01", "pi-02"]
        assert result["missing"] == {}
    assert fleet.trainings["pi-03"].started == 0
    heard: Any = fleet.ask("node.heard").result
    assert heard["unfit"]["pi-03"].startswith("none of its labels (other) is one of the model's (l000")
