"""What `apiary nodes`, `rounds`, `run` and `node` print, and their flags after the command below."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from apiary.errors import DataError, SettingsError
from apiary.wire import NodeId
from apiary.wire.messages import CoordinatorStatus, NodeHealth, NodeRelease, NodeStatus
from apiary.wire.topics import TopicKind
from apiary_cli import main
from apiary_cli.commands import node, nodes, rounds, run, status
from apiary_cli.terminal.table import duration, share, table
from apiary_cli.terminal.view import RunView


def test_columns_are_as_wide_as_their_widest_cell_and_empty_ones_are_left_out() -> None:
    told = table(["NAME", "N", "GONE", "WHY"], [["a", "5", "", "x"], ["long-name", "10", "", ""]])
    assert told.splitlines() == ["NAME        N  WHY", "a           5  x", "long-name  10"]
    assert table(["A", "B"], []) == ""
    assert table((), [["[bold]x", "1"]]) == "[bold]x  1"


def test_a_table_is_cut_to_a_terminal_and_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["pi-1", "w" * 100]]
    assert table(["NODE", "WHY"], rows).splitlines()[1] == f"pi-1  {'w' * 100}"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert table(["NODE", "WHY"], rows).splitlines()[1] == f"pi-1  {'w' * 33}…"
    assert table(["NODE", "WHY"], rows, fold=True).splitlines()[1:4] == [
        f"pi-1  {'w' * 34}", f"      {'w' * 34}", f"      {'w' * 32}"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, ""),
        (0.4, "0 s"),
        (119, "119 s"),
        (121, "2 min"),
        (7201, "2 h"),
        (172_801, "2 d"),
        (10**7, "116 d"),
    ],
)
def test_durations(seconds: float | None, told: str) -> None:
    assert duration(seconds) == told


def test_shares() -> None:
    assert (share(None), share(0.9751)) == ("", "97.5%")


def fleet() -> list[dict[str, Any]]:
    view = RunView()
    said: list[tuple[TopicKind, str, Any]] = [
        (
            TopicKind.NODE_STATUS,
            "b",
            NodeStatus(state="ready", samples=50, tags={"site": "north"}, model="round 3"),
        ),
        (TopicKind.NODE_HEALTH, "b", NodeHealth(temperature_c=71.4)),
        (TopicKind.NODE_RELEASE, "b", NodeRelease(state="healthy", current="hats-2")),
        (TopicKind.NODE_STATUS, "a", NodeStatus(state="paused", why="too hot", samples=7, waiting=12)),
        (TopicKind.NODE_STATUS, "c", NodeStatus(state="lost", why="connection lost")),
        (TopicKind.NODE_HEALTH, "d", NodeHealth(temperature_c=80.0)),
    ]
    for kind, name, message in said:
        view.take(kind, NodeId(name), message)
    heard = nodes.Heard({"b": 3.0})
    return [nodes.describe(n, v, heard) for n, v in view.nodes.items()]


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("id", "abcd"),
        ("state", "cabd"),
        ("samples", "bacd"),
        ("temperature", "dbac"),
        ("release", "bacd"),
        ("seen", "bacd"),
    ],
)
def test_nodes_are_sorted_with_what_is_not_known_last(by: str, order: str) -> None:
    assert "".join(n["id"] for n in nodes.sort(fleet(), by)) == order


def test_a_table_of_nodes() -> None:
    told = nodes.render(nodes.sort(fleet(), "id"), 4).splitlines()
    assert told == [
        "NODE  STATE    SAMPLES  UNLABELLED  TAGS        MODEL    RELEASE  TEMP   SEEN  WHY",
        "a     paused         7          12                                             too hot",
        "b     ready         50              site=north  round 3  hats-2   71 °C  3 s",
        "c     lost                                                                     connection lost",
        "d     unknown                                                     80 °C",
        "",
        "4 nodes: 1 lost, 1 paused, 1 ready, 1 unknown",
    ]
    assert nodes.render([], 0) == "no node was heard of"
    assert nodes.render([], 4) == "none of 4 nodes is like that"


def test_a_node_that_is_silent_or_not_drawn_is_shown_so_and_other_versions_are_named_once() -> None:
    view = RunView()
    view.take(
        TopicKind.COORDINATOR_STATUS, None, CoordinatorStatus(state="online", epoch="e", version="0.2.0")
    )
    for name, version in (("a", "0.1.0"), ("b", "0.2.0"), ("c", "0.1.0")):
        view.take(TopicKind.NODE_STATUS, NodeId(name), NodeStatus(state="ready", version=version))
    heard = nodes.Heard({}, frozenset({"a"}), {"a": "silent: for long", "b": "has 0 samples"})
    found = [nodes.describe(n, v, heard) for n, v in view.nodes.items()]
    assert nodes.render(found, 3, view.version).splitlines() == [
        "NODE  STATE   VERSION  WHY",
        "a     silent  0.1.0    silent: for long",
        "b     ready   0.2.0    has 0 samples",
        "c     ready   0.1.0",
        "",
        "3 nodes: 2 ready, 1 silent",
        "2 nodes run another version than the coordinator (0.2.0): 0.1.0: a, c. "
        "How to upgrade: docs/operations.md",
    ]


def test_answers_of_nodes() -> None:
    told: dict[str, Any] = {
        "nodes": {
            "a": {"state": "done", "result": {"state": "paused", "still_sends": False}},
            "b": {"state": "done", "result": {"run": "r", "round": 3}},
            "c": {"state": "silent", "why": "no answer within 15 s"},
        }
    }
    assert node.render("pause", told).splitlines() == [
        "NODE  ANSWER",
        "a     done    paused",
        "b     done    run r, round 3",
        "c     silent  no answer within 15 s",
    ]
    logs: dict[str, Any] = {"nodes": {"a": {"state": "done", "result": {"lines": ["x", "y"]}}}}
    assert node.render("logs", logs) == "x\ny"
    logs["nodes"]["c"] = told["nodes"]["c"]
    assert node.render("logs", logs) == "a: x\na: y\nc: silent: no answer within 15 s"


RUN: dict[str, Any] = {
    "run": "r", "created": 0, "ended": 60, "rounds": 0, "accuracy": None, "why": "by hand", "stop": None
}  # fmt: skip


def test_a_run_that_never_began_took_no_time() -> None:
    runs = [{**RUN, "state": state} for state in ("waiting", "withdrawn", "stopped")]
    told = run.render("list", {"runs": runs, "next": None, "wanted_samples": None}).splitlines()
    assert [" ".join(line.split()) for line in (told[0], told[1], told[2])] == [
        "RUN STATE BEGAN TOOK ROUNDS ASKED FOR",
        "r waiting 0 by hand",
        "r withdrawn 0 by hand",
    ]
    assert "1970-01-01" in told[3] and "60 s" in told[3]
    more: dict[str, Any] = {"stage": None, "folder": "runs/r", "settings": {}, "results": []}
    for state, word in (("withdrawn", "queued   "), ("stopped", "began    ")):
        assert run.render("show", {**RUN, **more, "state": state}).splitlines()[1].startswith(word)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"state": "withdrawn"}, "run r will not begin"),
        ({"state": "stopping", "best": 3}, "run r is being finished with its best model, of round 3"),
        (
            {"state": "stopping", "best": None},
            "run r comes to its end; it has no model unless a round closes yet",
        ),
        ({"state": "stopped", "best": None}, "run r has ended, without a model"),
    ],
)
def test_what_becomes_of_a_stopped_run_is_not_promised(told: dict[str, Any], line: str) -> None:
    assert run.render("stop", {"run": "r", **told}) == line


NOW = {"run": "b", "round": 2, "rounds": 5, "state": "open"}
LAST = {"run": "a", "round": 7, "state": "failed", "why": "stopped by operator ann"}


@pytest.mark.parametrize(
    ("now", "last", "lines"),
    [
        (NOW, None, ["round        2 of 5 of run b, open"]),
        (
            NOW,
            LAST,
            [
                "round        2 of 5 of run b, open",
                "last round   7 of run a failed: stopped by operator ann",
            ],
        ),
        (
            {**NOW, "state": "evaluating"},
            {**LAST, "run": "b", "round": 2, "state": "closed", "accuracy": 0.5, "loss": 1.0,
             "n_contributors": 2, "seconds": 3.0},
            [
                "round        2 of 5 of run b, closed; the next one has not begun",
                "last round   2 of run b: accuracy 50.0%, loss 1.000, 2 updates, 3.0 s",
            ],
        ),
        ({**NOW, "state": "finished"}, None, ["round        none: run b is over after 2 of 5"]),
    ],
)  # fmt: skip
def test_status_says_of_which_run_a_round_is(
    now: dict[str, Any], last: dict[str, Any] | None, lines: list[str]
) -> None:
    coordinator = {"state": "online"}
    told = {"federation": "f", "coordinator": coordinator, "round": now, "last": last, "nodes": {}}
    assert status.render(told).splitlines()[2:-1] == lines


@pytest.mark.parametrize(
    "command", [["run", "list"], ["rounds"], ["node", "pause", "all"], ["release", "status"]]
)
@pytest.mark.parametrize("wait", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_to_wait_has_an_end_and_is_more_than_nothing(
    command: list[str], wait: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main.main([*command, "--timeout", wait])
    assert refused.value.code == 2 and "argument --timeout" in capsys.readouterr().err


ROUND = {
    "round": 1,
    "state": "closed",
    "accuracy": 0.5,
    "loss": 1.25,
    "contributors": {"a": {}, "b": {}},
    "rejected": {"c": "bad"},
    "missing": {},
    "bytes_up": 1_500_000,
    "bytes_down": 0,
    "seconds": 2.0,
    "why": None,
}


def history(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_rounds_from_a_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    began = json.dumps({"kind": "run", "run": "autumn"})
    history(tmp_path / "runs" / "autumn", began, json.dumps({"kind": "round", **ROUND}))
    assert main.main(["rounds", "autumn"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run autumn",
        "ROUND  STATE   ACCURACY   LOSS  UPDATES  REJECTED  TOOK   UP      DOWN",
        "    1  closed     50.0%  1.250        2         1  2.0 s  1.5 MB  0.0 MB",
    ]
    assert main.main(["rounds", "runs/autumn", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rounds"][0]["contributors"] == 2 and told["rounds"][0]["rejected"] == 1


@pytest.mark.parametrize(
    "text", ["", "[]", '{"run": "x"}', '{"kind": "round"}', '{"kind": "run", "run": "x", "rounds": [1]}']
)
def test_a_damaged_history_is_told(tmp_path: Path, text: str) -> None:
    from apiary.settings import Settings

    folder = history(tmp_path / "x", text)
    with pytest.raises(DataError, match=r"history\.jsonl cannot be read"):
        rounds._from_folder(Settings(), str(folder))


def wanted(*argv: str) -> dict[str, Any]:
    _, args = main._parse(["run", *argv])
    return run._wanted(args)


def test_settings_of_a_run_come_from_flags_and_set_wherever_it_stands() -> None:
    assert wanted("--set", "run.seed=4", "start", "--rounds", "3") == {"seed": 4, "rounds": 3}
    assert wanted("start", "--set", "run.plan.epochs=2", "--set", "run.only=['site=north']") == {
        "plan.epochs": 2,
        "only": ["site=north"],
    }
    assert wanted("start", "--set", "broker.port=1", "--set", "security.ca=x", "--set", "federation=f") == {}
    with pytest.raises(SettingsError, match=r"coordinator\.sync: a run takes settings of \[run\] only"):
        wanted("start", "--set", "coordinator.sync=false")


def test_common_flags_after_a_command_below_win_over_those_before() -> None:
    _, args = main._parse(["run", "--config", "a.toml", "list"])
    assert args.config == Path("a.toml") and not args.verbose
    _, args = main._parse(["run", "--config", "a.toml", "list", "--config", "b.toml", "-v"])
    assert args.config == Path("b.toml") and args.verbose


def test_every_command_below_takes_them() -> None:
    for name in ("run", "node", "release", "pki", "samples", "data"):
        command: Any = __import__(f"apiary_cli.commands.{name}", fromlist=["x"])
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        main._common_below(parser)
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        assert below, name
        for sub in below[0].choices.values():
            assert {"--config", "--set", "-v"} <= set(sub._option_string_actions), f"{name} {sub.prog}"
