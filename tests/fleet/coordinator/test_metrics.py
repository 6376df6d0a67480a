"""The endpoint that Prometheus scrapes, fed by a real run, and the dashboard that reads it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.fleet.harness import Fleet, MakeFleet

from apiary.errors import SettingsError
from apiary_coordinator.monitoring.prometheus import Metrics, reason_of

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "apiary.json"
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def feature_of(fleet: Fleet) -> Metrics:
    assert fleet.coordinator is not None
    (metrics,) = [f for f in fleet.coordinator.features if isinstance(f, Metrics)]
    return metrics


def scrape(metrics: Metrics) -> Values:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


@pytest.fixture
def measured(make_fleet: MakeFleet) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(nodes: int = 3, **options: object) -> Fleet:
        made.append(make_fleet(nodes, more={"metrics": {"port": 0}}, **options))
        return made[-1]

    yield make
    for fleet in made:
        feature_of(fleet).close()


def test_what_a_run_did_can_be_scraped(measured: Callable[..., Fleet]) -> None:
    fleet = measured(rounds=2)
    summary = fleet.run()
    fleet.kill_node("pi-02")
    for _ in range(30):
        fleet.turn()
    found = scrape(feature_of(fleet))
    assert found["apiary_rounds_total", (("state", "closed"),)] == 2
    assert found["apiary_rounds_total", (("state", "failed"),)] == 0
    assert found["apiary_updates_total", (("result", "accepted"),)] == 6
    assert found["apiary_traffic_bytes_total", (("direction", "up"),)] == summary["bytes_up"]
    assert found["apiary_best_accuracy", (("run", "run"),)] == pytest.approx(summary["best_accuracy"])
    assert found["apiary_round_contributors", ()] == 3
    assert found["apiary_nodes", (("state", "ready"),)] == 2
    assert found["apiary_nodes", (("state", "lost"),)] == 1
    assert found["apiary_samples", ()] == sum(node.samples for node in fleet.nodes.values())
    assert found["apiary_run_active", ()] == 0
    assert found["apiary_round_seconds_count", ()] == 2
    assert found["apiary_update_bytes_count", ()] == 6
    assert found["process_resident_memory_bytes", ()] > 0


def test_a_silent_node_is_counted_as_that(measured: Callable[..., Fleet]) -> None:
    fleet = measured(stay=True)
    for _ in range(50):
        fleet.turn()
    del fleet.nodes["pi-02"]  # without a last will
    for _ in range(2500):
        fleet.turn()
    found = scrape(feature_of(fleet))
    assert found["apiary_nodes", (("state", "silent"),)] == 1
    assert found["apiary_nodes", (("state", "ready"),)] == 2
    assert found["apiary_samples", ()] == sum(node.samples for node in fleet.nodes.values())


def test_rounds_of_before_a_restart_are_not_counted_again(measured: Callable[..., Fleet]) -> None:
    fleet = measured(rounds=3)
    while len(fleet.results()) < 2:
        fleet.turn()
    feature_of(fleet).close()
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.run()
    assert scrape(feature_of(fleet))["apiary_rounds_total", (("state", "closed"),)] == 1


def test_every_query_of_the_dashboard_names_metrics_that_are_there(measured: Callable[..., Fleet]) -> None:
    fleet = measured(rounds=1)
    fleet.trainings["pi-00"].spoil = lambda data: data[:-1]
    fleet.run()
    for _ in range(30):
        fleet.turn()
    found = scrape(feature_of(fleet))
    there = {name for name, _ in found}
    board = json.loads(DASHBOARD.read_text())
    queries = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    queries += [v["query"]["query"] for v in board["templating"]["list"] if isinstance(v["query"], dict)]
    assert len(queries) > 20
    for query in queries:
        used = set(re.findall(r"\b(?:apiary|process|python)_\w+", query))
        assert used and used <= there, query
        for labels in re.findall(r"by \((\w+)\)", query):
            assert labels == "le" or any(labels in dict(pairs) for name, pairs in found if name in used), (
                query
            )
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
    squares = [
        (x, y)
        for at in (panel["gridPos"] for panel in board["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(squares)) == len(squares) and max(x for x, _ in squares) < 24


def test_every_metric_has_help_and_a_type_is_documented_and_on_the_dashboard(
    measured: Callable[..., Fleet],
) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{feature_of(measured()).port}/metrics", timeout=10) as got:
        families = list(text_string_to_metric_families(got.read().decode()))
    ours = [f for f in families if f.name.startswith("apiary_") and not f.name.endswith("_created")]
    assert len(ours) > 20 and all(f.documentation and f.type != "unknown" for f in ours)
    manual = (DASHBOARD.parents[2] / "docs" / "commands.md").read_text()
    queries = " ".join(t["expr"] for p in json.loads(DASHBOARD.read_text())["panels"] for t in p["targets"])
    for family in ours:
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}" in manual, name
        assert name in queries or name == "apiary_build_info", name


def test_an_endpoint_that_is_taken_is_told(measured: Callable[..., Fleet], make_fleet: MakeFleet) -> None:
    port = feature_of(measured()).port
    with pytest.raises(SettingsError, match=rf"metrics cannot listen on 127\.0\.0\.1:{port}"):
        make_fleet(1, more={"metrics": {"port": port}})


def test_it_is_off_by_default(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1)
    assert fleet.coordinator is not None
    assert not [f for f in fleet.coordinator.features if isinstance(f, Metrics)]


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("node a: tensor 'k' holds a number that is not finite", "not_finite"),
        ("node a: tensor 'k' holds 99, allowed are +-64", "magnitude"),
        ("node a: the update's norm is 1e+07, allowed is 1e+06", "norm"),
        ("the update counts 9 samples, allowed are 8", "samples"),
        ("the update has 9 bytes, allowed are 8", "size"),
        ("the update comes in the codec 'f16', the plan says 'int8'", "codec"),
        ("node a: the blob says run 'x', the offer said 'y'", "about"),
        ("node a: tensor 'k' has shape [1], expected [2]", "shape"),
        ("node a: the update's bytes do not give the digest it offered", "damaged"),
        ("something new", "other"),
    ],
)
def test_reasons_are_few(why: str, reason: str) -> None:
    assert reason_of(why) == reason


def test_the_round_that_fails_a_run_is_counted(measured: Callable[..., Fleet]) -> None:
    fleet = measured(stay=True, rounds=1, deadline_s=5, max_failed_rounds=2)
    for training in fleet.trainings.values():
        training.seconds = 1000
    fleet.ask("run.start", name="run")
    for _ in range(200):
        fleet.turn()
    assert fleet.coordinator is not None and fleet.coordinator.host.current is None
    found = scrape(feature_of(fleet))
    assert found["apiary_rounds_total", (("state", "failed"),)] == 2
    assert found["apiary_updates_total", (("result", "missing"),)] == 6


def test_every_counter_is_there_before_its_first_event(measured: Callable[..., Fleet]) -> None:
    """Otherwise `increase()` over it is zero for the first: a lone refused update would not be seen."""
    found = scrape(feature_of(measured()))
    for name, label, values in (
        ("updates", "result", ("accepted", "rejected", "missing")),
        ("updates_rejected", "reason", ("norm", "not_finite", "damaged", "other")),
        ("traffic_bytes", "direction", ("up", "down")),
        ("rounds", "state", ("closed", "failed")),
    ):
        for value in values:
            assert found[f"apiary_{name}_total", ((label, value),)] == 0
