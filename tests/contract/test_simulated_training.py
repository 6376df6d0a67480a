"""A virtual node's update is, byte for byte, what the training child makes of the same pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiary.blobs import BlobStore
from apiary.learn import images
from apiary.learn.runtimes import choose
from apiary.wire import blob
from apiary.wire.messages import Plan
from apiary_cli.datasets.partition import materialise
from apiary_cli.simulation.pool import ManyProcesses, OneProcess, TrainingPool
from apiary_cli.simulation.shares import of_layout
from apiary_cli.simulation.training import ShareTask, store
from apiary_coordinator.export.client import build_in_child
from apiary_coordinator.export.job import BuildJob
from apiary_edge.training.job import TrainJob
from apiary_edge.training.worker import train

PLAN = Plan(epochs=2, batch_size=8, learning_rate=0.01, shift=0.1, seed=7, codec="int8")


@pytest.mark.tensorflow
@pytest.mark.slow
def test_one_process_several_and_the_nodes_own_child_agree(tmp_path: Path) -> None:
    laid = materialise("digits", tmp_path / "shares", nodes=3, by="dirichlet", alpha=0.5, seed=2, limit=120)
    built = build_in_child(
        BuildJob(
            recipe="edge_cnn",
            options={"size": 16, "channels": 1, "widths": [4, 8]},
            labels=laid.labels,
            plan=PLAN,
            out=tmp_path / "build",
        ),
        cache=None,
    )
    blobs = BlobStore(tmp_path / "blobs")
    model = blobs.path(blobs.put(blob.encode(built.initial)))
    shares = of_layout(tmp_path / "shares")
    found, parts = shares.scan(laid.labels, built.manifest.input)
    store(tmp_path / "pictures", images.load(found, built.manifest.input), parts)
    pools: list[TrainingPool] = [
        OneProcess(tmp_path / "pictures", choose()),
        ManyProcesses(tmp_path / "pictures", 2),
    ]
    digests = []
    for number, pool in enumerate(pools):
        tasks = [
            ShareTask(
                id=place,
                run="r",
                round=1,
                node=name,
                place=place,
                plan=PLAN,
                manifest=built.manifest_file,
                trainer=built.trainer,
                model=model,
                max_norm=0.5,
                epochs=PLAN.epochs,
                out=tmp_path / f"{number}-{name}",
            )
            for place, name in enumerate(shares.names)
        ]
        for task in tasks:
            pool.begin(task)
        digests.append([pool.result(task.id).digest for task in reversed(tasks)][::-1])
        pool.close()
    own = [_child(tmp_path, node, built.manifest_file, built.trainer, model) for node in laid.nodes]
    assert digests == [own, own]
    assert len(set(own)) == 3


def _child(tmp_path: Path, node: Path, manifest: Path, trainer: Path, model: Path) -> str:
    job = TrainJob(
        run="r",
        round=1,
        node=node.name,
        plan=PLAN,
        manifest=manifest,
        trainer=trainer,
        base=None,
        base_digest=None,
        model=model,
        data_dir=node,
        cache_dir=tmp_path / "cache",
        cache_mb=10,
        out=tmp_path / "out",
        runtime="auto",
        threads=1,
        max_norm=0.5,
    )
    events: list[str] = []
    train(job, lambda event: events.append(event.digest))
    return events[-1]
