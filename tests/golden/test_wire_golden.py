"""Frozen bytes of protocol version 1: what was written yesterday is written and read the same today.

The files in `v1/` are the protocol. Where a change of the wire is meant, raise `apiary.wire.PROTOCOL`, keep
the old folder, and write the new one by `python tests/golden/test_wire_golden.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apiary.plugins import names
from apiary.tensors import Weights
from apiary.wire import PROTOCOL, blob, chunks
from apiary.wire import messages as m
from apiary.wire.topics import TopicKind, Topics

FOLDER = Path(__file__).parent / f"v{PROTOCOL}"
HEX, HEX2 = "0123456789abcdef" * 4, "fedcba9876543210" * 4
REF, REF2 = m.BlobRef(digest=HEX, bytes=836_112), m.BlobRef(digest=HEX2, bytes=1_234)
ANNOUNCEMENT = m.Announcement(
    run="run-1",
    round=3,
    state="open",
    rounds=12,
    epoch="e0a1",
    labels=["hardhat", "no hardhat"],
    model=REF,
    manifest=REF2,
    trainer=REF2,
    base=None,
    plan=m.Plan(proximal_mu=0.01, flip=True, shift=0.1, seed=7),
    bounds=m.Bounds(),
    deadline_s=120.5,
    cohort=["pi-07", "pi-08"],
    cohort_size=2,
    needs=m.Needs(picture_bytes=27_648, activations=293_544),
)
RELEASE = m.Release(
    name="autumn-eim",
    file=REF,
    kind="eim",
    machine="aarch64",
    labels=["hardhat", "no hardhat"],
    input=m.PictureShape(height=96, width=96, channels=3),
    accuracy=0.9746,
    contributors=5,
    run="autumn",
    created=1_800_000_000,
    expires=1_900_000_000,
    min_version="0.1.0",
)
MESSAGES: list[m.Message] = [
    m.ReleaseCurrent(
        serial=1_800_000_000_123,
        state="rolling",
        release=RELEASE,
        share=0.25,
        canaries=["pi-07"],
        stable=RELEASE.model_copy(update={"name": "summer-tflite", "kind": "tflite", "machine": None}),
        pins={"pi-08": "summer-tflite"},
        tag_pins={"site=north": "summer-tflite"},
    ),
    m.NodeRelease(
        state="healthy",
        serial=1_800_000_000_123,
        release="autumn-eim",
        digest=HEX,
        attempt=1,
        current="autumn-eim",
        accuracy=0.95,
        accuracy_before=0.9,
        pictures=20,
        inference_ms=7.25,
        machine="aarch64",
    ),
    ANNOUNCEMENT,
    m.Notice(invited=True, again=True, announcement=ANNOUNCEMENT),
    m.RoundResult(
        run="run-1",
        round=3,
        state="closed",
        accuracy=0.9746,
        loss=0.125,
        n_contributors=1,
        n_rejected=1,
        n_missing=1,
        n_samples=120,
        contributors={"pi-07": m.Contributor(samples=120, bytes=836_112, seconds=9.5)},
        rejected={"pi-08": "tensor 'dense/kernel' is not finite"},
        missing={"pi-09": "lost"},
        node_accuracy=0.95,
        bytes_up=836_112,
        bytes_down=836_112,
        seconds=14.25,
        model=HEX,
        why="quorum",
    ),
    m.ModelManifest(
        run="run-1",
        round=3,
        model=REF,
        labels=["a", "b"],
        accuracy=0.5,
        best=True,
        manifest=REF2,
        trainer=REF2,
    ),
    m.CoordinatorStatus(state="online", epoch="e0a1", version="0.1.0", run="run-1"),
    m.NodeStatus(
        state="paused",
        why="81 degrees",
        run="run-1",
        round=3,
        samples=120,
        labels={"hardhat": 70, "no hardhat": 50},
        declined=True,
        tags={"site": "north", "hardware": "pi4"},
        runtimes=["litert"],
        memory_mb=416,
        version="0.1.0",
        session="s1",
        accuracy_global=0.9,
        accuracy_personal=0.95,
        model="round 3 of run autumn (tuned)",
    ),
    m.Prediction(
        label="hardhat",
        probability=0.875,
        top=[m.Likely(label="hardhat", probability=0.875), m.Likely(label="no hardhat", probability=0.125)],
        model=HEX,
        ms=12.5,
        at=1700000000.25,
    ),
    m.NodeHealth(
        temperature_c=61.2,
        throttled=["under-voltage"],
        throttled_since_boot=["under-voltage", "throttled"],
        memory_mb=968,
        memory_available_mb=524,
        disk_mb=31_000,
        disk_free_mb=12_300,
        load=0.75,
        cores=4,
        uptime_s=86_400,
        service_mb=48,
    ),
    m.Progress(run="run-1", round=3, epoch=1, epochs=2, loss=0.75, accuracy=0.5, left_s=4.5),
    m.Ask(session="s1"),
    m.Want(digest=HEX, missing=[(0, 4), (6, 7)]),
    m.Offer(
        run="run-1",
        round=3,
        update=REF,
        codec="raw_f32",
        samples=120,
        metrics=m.TrainMetrics(loss=0.25, accuracy=0.9, accuracy_before=0.5, seconds=9.5),
    ),
    m.Grant(digest=HEX, missing=[(0, 7)]),
    m.OperatorRequest(id="7f3a", op="run.start", args={"name": "autumn", "settings": {"rounds": 3}}),
    m.OperatorReply(id="7f3a", state="done", result={"run": "autumn", "queued": None}),
    m.NodeCommand(id="7f3a.pi-07", op="pause", by="anna", args={}),
    m.NodeReply(id="7f3a.pi-07", state="refused", why="unknown command", result=[1, 2.5, "x", None]),
    m.Receipt(digest=HEX, state="missing", run="run-1", round=3, why="chunks lost", missing=[(2, 3)]),
]
LATER: dict[str, m.Message] = {
    # Fields that came after the first bytes of their message were frozen, a file each time.
    "coordinatorstatus_nodes.json": m.CoordinatorStatus(
        state="online", epoch="e0a1", version="0.2.0", run="run-1", nodes=120
    ),
    "nodestatus_capabilities.json": m.NodeStatus(
        state="ready",
        samples=120,
        version="0.2.0",
        capabilities=["codec.raw_f32", "rule.proximal"],
        repeat_s=66.0,
        session="s1",
    ),
    "nodestatus_waiting.json": m.NodeStatus(state="ready", samples=40, waiting=14, also_held_out=2),
    "roundresult_tested_on.json": m.RoundResult(
        run="run-1", round=3, state="closed", accuracy=0.9746, tested_on=400
    ),
    "modelmanifest_tested_on.json": m.ModelManifest(
        run="run-1", round=3, model=REF, labels=["a", "b"], accuracy=0.5, tested_on=400
    ),
    "roundresult_left_out.json": m.RoundResult(
        run="run-1",
        round=3,
        state="closed",
        n_contributors=1,
        n_samples=120,
        contributors={"pi-07": m.Contributor(samples=120, bytes=836_112, seconds=9.5)},
        left_out={"pi-08": "the held-out loss is 4.2 with its update and 0.31 without it"},
    ),
    "announcement_held_out.json": ANNOUNCEMENT.model_copy(update={"held_out": REF}),
}
WEIGHTS = Weights(
    {
        "conv/kernel": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
        "dense/bias": np.array([0.0, 0.5, -127.0], np.float32),
    }
)
DATA = bytes(range(256)) * 3
DIGEST = chunks.digest_of(DATA)


def golden() -> dict[str, bytes]:
    """File name to bytes, as this version of the code writes them."""
    files = {f"{type(x).__name__.lower()}.json": x.encode() for x in MESSAGES}
    files |= {name: x.encode() for name, x in LATER.items()}
    for codec in names("apiary.wire.codecs"):
        files[f"blob_{codec}.bin"] = blob.encode(
            WEIGHTS, codec_name=codec, about={"run": "run-1", "round": 3}
        )
    files["chunk_0.bin"] = chunks.encode(DIGEST, 0, DATA)
    topic = {"node": "pi-07", "digest": HEX, "index": 12, "metric": "accuracy"}
    lines = [f"{k.name} {k.qos} {k.retain} {Topics().build(k, **topic)}" for k in TopicKind]  # type: ignore[arg-type] # str for NewType
    files["topics.txt"] = ("\n".join(lines) + "\n").encode()
    return files


NAMES = sorted(golden())


def frozen(name: str) -> bytes:
    path = FOLDER / name
    assert path.is_file(), (
        f"{path} is missing: something new travels; write it by `python {Path(__file__).name}`"
    )
    return path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_are_written(name: str) -> None:
    assert golden()[name] == frozen(name)


def test_no_frozen_file_is_forgotten() -> None:
    assert sorted(p.name for p in FOLDER.iterdir()) == NAMES


def test_every_kind_of_message_is_frozen() -> None:
    assert {type(x) for x in MESSAGES} == set(m.Message.__subclasses__())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda x: type(x).__name__)
def test_frozen_message_is_read(message: m.Message) -> None:
    data = frozen(f"{type(message).__name__.lower()}.json")
    assert type(message).decode(data, who="golden") == message
    assert len(data) < m.READABLE_BYTES


@pytest.mark.parametrize("name", LATER)
def test_frozen_message_with_later_fields_is_read(name: str) -> None:
    assert type(LATER[name]).decode(frozen(name), who="golden") == LATER[name]


@pytest.mark.parametrize("codec", names("apiary.wire.codecs"))
def test_frozen_blob_is_read(codec: str) -> None:
    got = blob.decode(frozen(f"blob_{codec}.bin"), who="golden")
    assert (got.codec, got.about) == (codec, {"run": "run-1", "round": 3})
    assert got.weights.shapes == WEIGHTS.shapes
    error = blob.codec(codec).relative_error
    for name, tensor in WEIGHTS.items():
        assert np.max(np.abs(got.weights[name] - tensor)) <= error * np.max(np.abs(tensor)) * 1.001


def test_frozen_chunk_is_read() -> None:
    taken = chunks.Assembly(DIGEST, len(DATA)).accept(0, frozen("chunk_0.bin"))
    assert taken is not None
    assert taken[1] == DATA


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for file, content in golden().items():
        (FOLDER / file).write_bytes(content)
    print(f"wrote {len(golden())} files to {FOLDER}")
