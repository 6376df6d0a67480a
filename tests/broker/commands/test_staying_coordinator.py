"""A coordinator that stays up on a real broker, in real processes: asked by commands, killed, doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.harness import Fleet

from apiary.settings import to_toml
from apiary_cli.main import main

pytestmark = pytest.mark.broker
CONF = "listener {port} 127.0.0.1\nallow_anonymous true\n"
PARTY = Path(__file__).parents[2] / "stand_ins" / "fleet_party.py"
RUN = {"rounds": 2, "settle_s": 0.5, "seed": 5}


class Hive:
    """One federation's settings file and processes."""

    def __init__(self, folder: Path, port: int, federation: str, nodes: list[str], **more: Any):
        self.folder = folder / federation
        pictures = self.folder / "pictures" / "a"
        pictures.mkdir(parents=True)
        for i in range(30):
            (pictures / f"{i}.png").touch()
        self.file = self.folder / "apiary.toml"
        state = {"state_dir": self.folder / "coordinator", "runs_dir": self.folder / "runs", "sync": False}
        text = to_toml(
            {
                "broker": {"host": "127.0.0.1", "port": port},
                "run": {**RUN, "min_nodes": len(nodes)},
                "coordinator": state,
                "edge": {"data_dir": pictures.parent, "upload_idle_s": 3.0, "want_idle_s": 2.0, **more},
                "operator": {"name": "anna"},
            }
        )
        self.file.write_text(f'federation = "{federation}"\n{text}')
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("coordinator", *nodes):
            self.start(name)

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, str(PARTY), str(self.file), name],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("APIARY_")},
            )

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "runs" / run / "summary.json").read_text())
        return found


@pytest.fixture
def hive(run_mosquitto: Callable[..., int], tmp_path: Path) -> Iterator[Callable[..., Hive]]:
    """`hive("f", ["a", "b"])`: a federation; all of one test are on one broker."""
    port = run_mosquitto(CONF)
    made: list[Hive] = []

    def make(federation: str, nodes: list[str], **more: Any) -> Hive:
        made.append(Hive(tmp_path, port, federation, nodes, **more))
        return made[-1]

    yield make
    for one in made:
        for name in list(one.processes):
            one.kill(name)


@pytest.fixture
def apiary(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """`apiary(hive, "run", "list")`: exit code, and the JSON it printed, or what it said instead."""

    def run(hive: Hive, *argv: str) -> tuple[int, Any]:
        code = main([*argv, "--config", str(hive.file), "--json"])
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if shown.out else shown.err

    return run


Command = Callable[..., tuple[int, Any]]


def until(done: Callable[[], Any], within_s: float = 60.0) -> Any:
    end = time.monotonic() + within_s
    while not (value := done()):
        assert time.monotonic() < end, "not so in time"
        time.sleep(0.1)
    return value


def here(apiary: Command, hive: Hive, count: int) -> None:
    """Until the coordinator answers and so many nodes are ready."""

    def ready() -> bool:
        code, told = apiary(hive, "nodes")
        states = [node["state"] for node in told["nodes"]] if code == 0 else []
        return states.count("ready") == count and apiary(hive, "run", "list")[0] == 0

    until(ready)


def states(apiary: Command, hive: Hive) -> dict[str, str]:
    code, told = apiary(hive, "run", "list")
    return {run["run"]: run["state"] for run in told["runs"]} if code == 0 else {}


def test_killed_in_a_run_it_takes_up_that_run_and_then_those_that_wait(
    hive: Callable[..., Hive], apiary: Command, tmp_path: Path
) -> None:
    undisturbed = Fleet(tmp_path / "alone", 2, rounds=3)
    alone = undisturbed.run()["model_sha256"]
    undisturbed.close()
    one = hive("f", ["pi-00", "pi-01"])
    here(apiary, one, 2)
    assert apiary(one, "run", "start", "--name", "first", "--rounds", "3")[1] == {"run": "first", "ahead": 0}
    assert apiary(one, "run", "start", "--name", "second")[1] == {"run": "second", "ahead": 1}
    until((one.folder / "runs" / "first" / "history.jsonl").exists)
    one.kill("coordinator")
    code, said = apiary(one, "run", "list")
    assert code == 4
    assert "the coordinator of the federation 'f' on 127.0.0.1:" in said and "is offline" in said
    one.kill("pi-01")
    one.start("pi-01")
    one.start("coordinator")
    until(lambda: states(apiary, one) == {"first": "finished", "second": "finished"})
    assert one.summary("first")["model_sha256"] == alone
    assert one.summary("first")["rounds_closed"] == 3
    assert one.summary("second")["rounds_closed"] == 2


def test_two_federations_on_one_broker_do_not_touch_each_other(
    hive: Callable[..., Hive], apiary: Command
) -> None:
    north, south = hive("north", ["a", "b"]), hive("south", ["a", "c"])
    for one in (north, south):
        here(apiary, one, 2)
    assert apiary(north, "node", "pause", "all")[0] == 0
    assert [n["state"] for n in apiary(north, "nodes")[1]["nodes"]] == ["paused", "paused"]
    assert [n["state"] for n in apiary(south, "nodes")[1]["nodes"]] == ["ready", "ready"]
    assert apiary(south, "run", "start", "--name", "same-name")[0] == 0
    assert states(apiary, north) == {}
    assert apiary(north, "node", "resume", "all")[0] == 0
    assert apiary(north, "run", "start", "--name", "same-name")[0] == 0
    for one, nodes in ((north, ["a", "b"]), (south, ["a", "c"])):
        until(lambda one=one: states(apiary, one) == {"same-name": "finished"})  # type: ignore[misc]  # a lambda's default
        assert one.summary("same-name")["contributors"] == {"1": nodes, "2": nodes}
    north.kill("coordinator")
    until(lambda: apiary(north, "run", "list")[0] == 4)
    assert apiary(south, "run", "list")[0] == 0


def test_every_command_answers_scripts(hive: Callable[..., Hive], apiary: Command) -> None:
    one = hive("f", ["a", "b"], tags={"site": "north"})
    here(apiary, one, 2)
    code, told = apiary(one, "run", "start", "--set", "run.rounds=1", "--set", "run.only=['site=north']")
    assert code == 0
    run = told["run"]
    until(lambda: states(apiary, one) == {run: "finished"})
    code, told = apiary(one, "run", "show")
    assert (code, told["run"], told["state"], told["settings"]["only"]) == (
        0,
        run,
        "finished",
        ["site=north"],
    )
    code, told = apiary(one, "rounds")
    assert (code, told["run"], [r["contributors"] for r in told["rounds"]]) == (0, run, [2])
    assert apiary(one, "rounds", str(one.folder / "runs" / run))[1] == told
    code, told = apiary(one, "nodes", "--tag", "site=north", "--sort", "samples")
    assert [(n["id"], n["tags"], n["samples"]) for n in told["nodes"]] == [
        ("a", {"site": "north"}, 30),
        ("b", {"site": "north"}, 30),
    ]
    assert all(n["seen_s"] is not None for n in told["nodes"])
    code, told = apiary(one, "node", "logs", "a")
    assert (code, told["nodes"]["a"]["why"]) == (10, "this node keeps no log in memory")
    one.kill("b")
    until(lambda: apiary(one, "nodes", "--state", "lost")[1]["nodes"])
    code, told = apiary(one, "node", "pause", "a", "b")
    assert (code, {n: x["state"] for n, x in told["nodes"].items()}) == (10, {"a": "done", "b": "absent"})
    code, said = apiary(one, "run", "stop")
    assert (code, said) == (10, "apiary: refused: no run is under way\n")
    code, said = apiary(one, "run", "start", "--set", "coordinator.sync=false")
    assert code == 2 and "a run takes settings of [run] only" in said
