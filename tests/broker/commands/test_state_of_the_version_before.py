"""State folders that commit 8fbd764 left in the middle of a round are taken up to the same bits.

Two updates lie in the coordinator's spool, two wait in their nodes' outboxes: nothing is left to train and
the sum is exact, so the model is the same on every machine. tests/fixtures/state_8fbd764 has the folders.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.state_8fbd764.unpack import unpack

from apiary_cli.demo.federation import LocalFederation

pytestmark = [pytest.mark.broker, pytest.mark.slow]

CONF = "listener {port} 127.0.0.1\nallow_anonymous true\n"
WITHIN_S = 600.0
"""The final files are made with TensorFlow; all else is there after some seconds."""


def test_an_open_round_comes_to_the_same_bits(run_mosquitto: Callable[..., int], tmp_path: Path) -> None:
    expected = unpack(tmp_path)
    nodes = sorted(expected["cut"]["outbox"])
    federation = LocalFederation(
        tmp_path,
        {
            **tomllib.loads(expected["settings"]),
            "broker": {"host": "127.0.0.1", "port": run_mosquitto(CONF)},
            "coordinator": {
                "state_dir": tmp_path / "state" / "coordinator",
                "test_data": tmp_path / "data" / "server",
                "runs_dir": tmp_path / "runs",
            },
        },
    )
    try:
        federation.start_coordinator()
        for node in nodes:
            federation.start_node(node, tmp_path / "data" / node)
        end = time.monotonic() + WITHIN_S
        while federation.result() is None:
            federation.check()
            assert time.monotonic() < end, (tmp_path / "coordinator.log").read_text()
            time.sleep(0.1)
    finally:
        federation.stop()
    run = tmp_path / "runs" / expected["run"]
    summary = json.loads((run / "summary.json").read_text())
    assert selected(summary, expected["summary"]) == expected["summary"]
    for found, was in zip(rounds(run), expected["rounds"], strict=True):
        # Judged on this machine, whose arithmetic may round otherwise.
        assert found.pop("accuracy") == pytest.approx(was.pop("accuracy"), abs=0.05)
        assert found.pop("loss") == pytest.approx(was.pop("loss"), rel=1e-3)
        if was["round"] == expected["cut"]["round"]:
            # The coordinator measures them, from when it opened or took up the round.
            for node in (node for node in nodes if expected["cut"]["outbox"][node]):
                del found["contributors"][node]["seconds"], was["contributors"][node]["seconds"]
        assert found == was
    for node in nodes:
        assert " training epochs=" not in (tmp_path / f"{node}.log").read_text(), f"{node} trained once more"
        assert list((tmp_path / "state" / node / "outbox").glob("*.update")) == []


def rounds(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    keys = ("round", "state", "model", "contributors", "accuracy", "loss")
    return [selected(line, keys) for line in lines if line["kind"] == "round"]


def selected(found: dict[str, Any], keys: Any) -> dict[str, Any]:
    return {key: found[key] for key in keys}
