"""A simulated run: the bits of real nodes, whatever the paces; drop-outs, quorums, thousands of nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.stand_ins.regression import PLAN, RegressionBuilder, RegressionRuntime
from tests.stand_ins.small_federation import SmallFederation

from apiary.blobs import BlobStore
from apiary.errors import RunFailed, SettingsError
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import Digest, blob
from apiary_cli.datasets.partition import Pool, materialise
from apiary_cli.simulation.fleet import FleetModel, traits
from apiary_cli.simulation.shares import Shares, Sharing, of_layout, open_pool, share_out
from apiary_cli.simulation.simulation import RECORD, Scenario, Simulated, simulate


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return open_pool("digits", tmp_path_factory.mktemp("pool") / "data", data_dir=None, seed=3, limit=300)


def settings_of(folder: Path, shares: Shares, **run: Any) -> Settings:
    return Settings.model_validate(
        {
            "run": {"rounds": 2, "min_nodes": 1, "seed": 3, "plan": PLAN, **run},
            "coordinator": {
                "state_dir": folder / "coordinator",
                "runs_dir": folder / "runs",
                "test_data": shares.test_data,
                "labels": list(shares.labels),
                "sync": False,
            },
        }
    )


def simulated(
    folder: Path, shares: Shares, model: FleetModel | None = None, *, seed: int = 3, **run: Any
) -> Simulated:
    model = model or FleetModel()
    nodes = tuple(traits(shares.names, model, seed=seed))
    scenario = Scenario(shares, nodes, model, seed, runtime=RegressionRuntime())
    folder.mkdir(exist_ok=True)
    result = simulate(
        settings_of(folder, shares, **run), scenario, folder, name="run", builders=RegressionBuilder
    )
    assert result is not None
    return result


def model(folder: Path, result: Simulated) -> Weights:
    blobs = BlobStore(folder / "coordinator" / "blobs")
    return blob.decode(blobs.read(Digest(result.summary["model_sha256"])), who="the test").weights


def lines(result: Simulated) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == "round"]


@pytest.mark.parametrize("codec", ["raw_f32", "int8"])
def test_the_model_has_the_bits_of_a_real_federation(tmp_path: Path, codec: str) -> None:
    laid = materialise("digits", tmp_path / "shares", nodes=4, by="dirichlet", alpha=0.3, seed=1, limit=200)
    shares = of_layout(tmp_path / "shares")
    run: dict[str, Any] = {"min_nodes": 4, "rounds": 3, "plan": {**PLAN, "codec": codec}}
    real = SmallFederation(settings_of(tmp_path / "real", shares, **run), laid.nodes).run()
    virtual = simulated(tmp_path / "virtual", shares, **run).summary
    slow = FleetModel(pace_s=0.7, pace_spread=5.0, up_mbit=0.01, down_mbit=0.02, latency_s=2.0)
    slowly = simulated(tmp_path / "slowly", shares, slow, **run).summary
    for summary in (virtual, slowly):
        assert summary["model_sha256"] == real["model_sha256"]
        assert (summary["bytes_up"], summary["best_accuracy"]) == (real["bytes_up"], real["best_accuracy"])
    assert slowly["seconds"] > 10 * virtual["seconds"]


def test_the_same_seed_gives_the_same_history(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(20, each=15))
    model = FleetModel(drop_out=0.3, away_s=20.0)
    runs = [
        simulated(tmp_path / name, shares, model, seed=seed, cohort_size=8, over_select=1.5)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    seconds = [[line["seconds"] for line in lines(run)] for run in runs]
    digests = [run.summary["model_sha256"] for run in runs]
    assert (seconds[0], digests[0]) == (seconds[1], digests[1])
    assert seconds[0] != seconds[2]


@pytest.mark.parametrize("strategy", ["fedavg", "fedacg", "median"])
def test_what_is_not_trained_stays_as_it_began_and_is_not_sent(
    tmp_path: Path, pool: Pool, strategy: str
) -> None:
    shares = share_out(pool, Sharing(4))
    run: dict[str, Any] = {"strategy": strategy, "min_nodes": 4, "rounds": 3, "quorum": 1.0}
    whole = simulated(tmp_path / "whole", shares, **run)
    part = simulated(tmp_path / "part", shares, **run, train=["*kernel"])
    before, after = model(tmp_path / "whole", whole), model(tmp_path / "part", part)
    assert before["bias"].any(), "all of it is trained without the setting"
    assert after["kernel"].any() and not after["bias"].any()
    assert 0 < whole.summary["bytes_up"] - part.summary["bytes_up"] < 4 * 4 * 3 * 100
    assert [line["n_rejected"] for line in lines(part)] == [0, 0, 0]


def test_nodes_that_vanish_are_replaced_and_come_back(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(30, each=15))
    model = FleetModel(drop_out=0.5, away_s=5.0)
    result = simulated(tmp_path, shares, model, rounds=4, cohort_size=10, min_nodes=5, lost_grace_s=1.0)
    assert result.figures["vanished"] > 5
    assert [line["state"] for line in lines(result)] == ["closed"] * 4
    assert all(line["n_contributors"] == 10 for line in lines(result))
    with_grace = simulated(
        tmp_path / "grace", shares, model, rounds=4, cohort_size=10, min_nodes=5, lost_grace_s=60.0
    )
    kept = [set(line["contributors"]) for line in lines(with_grace)]
    assert kept != [set(line["contributors"]) for line in lines(result)], (
        "within the grace a node keeps its place"
    )


def test_a_round_below_its_quorum_fails_at_its_deadline(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(6, each=15))
    with pytest.raises(RunFailed, match="without a model"):
        simulated(
            tmp_path,
            shares,
            FleetModel(pace_s=100.0),
            rounds=1,
            min_nodes=6,
            deadline_s=50.0,
            max_failed_rounds=1,
        )


def test_slow_links_take_the_time_that_their_bytes_need(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(3, each=15))
    link = {"pace_s": 1e-6, "start_s": 0.0, "latency_s": 0.0, "link_spread": 1.0, "down_mbit": 1e6}
    model = FleetModel.model_validate({**link, "up_mbit": 0.004})  # 500 bytes a second
    (only,) = lines(simulated(tmp_path, shares, model, rounds=1, min_nodes=3))
    each = only["bytes_up"] / 3 / 500
    assert each < only["seconds"] < each + 5, "three at a time, each on its own link"


def test_two_thousand_nodes_of_which_fifty_are_drawn(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(2000, each=10))
    result = simulated(tmp_path, shares, FleetModel(), cohort_size=50, min_nodes=2000)
    assert [line["n_contributors"] for line in lines(result)] == [50, 50]
    assert result.summary["virtual_nodes"] == 2000
    drawn = [set(line["contributors"]) for line in lines(result)]
    assert drawn[0] != drawn[1]
    record = json.loads((result.folder / RECORD).read_text())
    assert record["trained"] == 100 and record["virtual_s"] > 0 and record["fleet"]["pace_s"] == 0.02


def test_more_nodes_than_there_are_would_be_waited_for_for_ever(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(3, each=5))
    with pytest.raises(SettingsError, match=r"run.min_nodes is 4, the simulated fleet has 3 nodes"):
        simulated(tmp_path, shares, min_nodes=4)


def test_nodes_with_too_few_pictures_decline_and_the_run_ends(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(3, each=5))
    with pytest.raises(RunFailed):
        simulated(tmp_path, shares, plan={**PLAN, "min_samples": 50}, deadline_s=100.0)


def test_a_stopped_simulation_gives_nothing(tmp_path: Path, pool: Pool) -> None:
    shares = share_out(pool, Sharing(3, each=5))
    nodes = tuple(traits(shares.names, FleetModel(), seed=0))
    scenario = Scenario(shares, nodes, FleetModel(), 0, runtime=RegressionRuntime())
    settings = settings_of(tmp_path, shares)
    assert simulate(settings, scenario, tmp_path, stop=lambda: True, builders=RegressionBuilder) is None
