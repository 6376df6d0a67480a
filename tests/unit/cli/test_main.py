"""The command line itself: help, versions, --set, and errors that become exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apiary import __version__, errors
from apiary.errors import ApiaryError
from apiary_cli import main as cli
from apiary_cli.main import COMMANDS, main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in [k for k in os.environ if k.startswith("APIARY_")]:
        monkeypatch.delenv(key)


@pytest.fixture(autouse=True)
def logging_as_before() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def left(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code and what was printed, of a line that argparse itself answers."""
    with pytest.raises(SystemExit) as e:
        main(argv)
    out = capsys.readouterr()
    return int(e.value.code or 0), out.out, out.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert left(["--version"], capsys) == (0, f"apiary {__version__}\n", "")


def test_help_lists_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = left(["--help"], capsys)
    assert code == 0
    for name, text in COMMANDS.items():
        assert f"    {name}" in out
        assert text.split(":")[0][:40] in out
    assert (
        "8 storage, 9 publishing, 10 refused, 11 not now, 130 interrupted (Ctrl-C), 143 ended (SIGTERM)"
        in out
    )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_the_common_flags(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = left([command, "--help"], capsys)
    assert code == 0
    assert f"apiary {command}" in out
    assert "--set KEY=VALUE" in out and "--config FILE" in out
    assert f"  apiary {command}" in out, "examples"


def words(name: str) -> argparse.ArgumentParser:
    """The parser of a command, without the flags that all have."""
    parser = argparse.ArgumentParser(prog=name)
    importlib.import_module(f"apiary_cli.commands.{name.replace('-', '_')}").add_arguments(parser)
    return parser


def below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield sub
                yield from below(sub)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_described(command: str) -> None:
    parser = words(command)
    for one in (parser, *below(parser)):
        for action in one._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{one.prog}: {action.option_strings or action.dest}"


@pytest.mark.parametrize(
    "argv", [["run", "start"], ["samples", "import"], ["node", "pause"], ["pki", "init"]]
)
def test_a_command_below_another_shows_and_takes_the_common_flags(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = left([*argv, "--help"], capsys)[1]
    for flag in ("--config FILE", "--set KEY=VALUE", "--verbose", "--log-format {text,json}"):
        assert flag in out


def test_a_json_log_may_be_asked_for_behind_a_command_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "stats", "--log-format", "json"]) == 3
    assert json.loads(capsys.readouterr().err)["level"] == "ERROR"


def test_pictures_may_stand_behind_the_options() -> None:
    args = cli._parse(["predict", "latest", "--int8", "a.jpg", "--top", "2", "b.jpg"])[1]
    assert [str(path) for path in args.images] == ["a.jpg", "b.jpg"]
    assert (args.run, args.int8, args.top) == ("latest", True, 2)


@pytest.mark.parametrize("argv", [["predict", "latest", "--int8", "a.jpg", "--nix"], ["run", "list", "nix"]])
def test_what_is_no_option_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = left(argv, capsys)
    assert code == 2 and "unrecognized arguments: " in err and err.endswith(f"{argv[-1]}\n")


def test_a_run_whose_name_fits_no_topic_is_a_wrong_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "--run", "a/b"]) == 2
    assert "--run 'a/b' cannot stand in a topic: use 1 to 64 letters" in capsys.readouterr().err


def test_a_demo_with_an_unknown_strategy_ends_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--strategy", "fedprx"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("apiary: strategies: no 'fedprx'; did you mean 'fedprox'? There are: fedacg, ")


@pytest.mark.parametrize("wait", ["0", "-1", "nan", "soon"])
def test_a_wait_of_nothing_is_refused(wait: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = left(["run", "list", "--timeout", wait], capsys)
    assert code == 2 and f"{wait!r}: expected seconds, more than 0" in err


@pytest.mark.parametrize("argv", [[], ["fly"], ["edge", "--no-such-flag"], ["coordinator", "--rounds", "x"]])
def test_wrong_usage_is_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = left(argv, capsys)
    assert code == 2
    assert err.startswith("usage: apiary")


def test_an_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(name in left(["fly"], capsys)[2] for name in COMMANDS)


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("run.rounds=12", "run.rounds", 12),
        ("run.target_accuracy=0.9", "run.target_accuracy", 0.9),
        ("coordinator.sync=false", "coordinator.sync", False),
        ("broker.host=pi.local", "broker.host", "pi.local"),
        ('broker.host="pi"', "broker.host", "pi"),
        ("edge.data_dir=/a b/c", "edge.data_dir", "/a b/c"),
        ("coordinator.labels=['cat', 'dog']", "coordinator.labels", ["cat", "dog"]),
        ("run.recipe_options={size = 16}", "run.recipe_options", {"size": 16}),
        ('run.recipe_options={"size":160}', "run.recipe_options", {"size": 160}),
        ("run.recipe_options={size", "run.recipe_options", "{size"),
        ("edge.node_id=a=b", "edge.node_id", "a=b"),
        ("edge.node_id=", "edge.node_id", ""),
        ("edge.node_id=12", "edge.node_id", "12"),
        ("edge.data_dir=2026", "edge.data_dir", "2026"),
        ("broker.protocol=5", "broker.protocol", "5"),
        ("broker.password=0123", "broker.password", "0123"),
        ("broker.password=1e5", "broker.password", "1e5"),
        ("coordinator.labels=[1]", "coordinator.labels", [1]),
    ],
)
def test_set_reads_values_as_toml_and_else_as_text(pair: str, key: str, value: Any) -> None:
    assert cli._overrides([pair]) == {key: value}


def test_the_last_set_wins() -> None:
    assert cli._overrides(["run.seed=1", "run.seed=2"]) == {"run.seed": 2}


@pytest.mark.parametrize("pair", ["run.rounds", "=3", ""])
def test_a_set_that_is_none_says_what_one_is(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--set", pair]) == 2
    assert capsys.readouterr().err == (f"apiary: --set {pair!r}: expected KEY=VALUE, such as run.rounds=12\n")


@pytest.mark.parametrize("command", ["config", "edge", "coordinator", "broker"])
def test_an_unknown_setting_is_exit_code_2_with_the_nearest(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--set", "run.round=3"]) == 2
    assert capsys.readouterr().err == (
        "apiary: command line: unknown setting 'run.round'; did you mean 'run.rounds'?\n"
    )


def everyone(kind: type[ApiaryError]) -> list[type[ApiaryError]]:
    """The tree of `apiary.errors`; what a module raises and catches within itself never comes here."""
    subs = [s for s in kind.__subclasses__() if s.__module__ == "apiary.errors"]
    return [kind, *(e for sub in subs for e in everyone(sub))]


class Failing:
    """A command that ends with what it is told."""

    error: BaseException

    EXAMPLES = ""

    def add_arguments(self, parser: Any) -> None:
        pass

    def run(self, args: Any) -> int:
        raise self.error


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    made = Failing()
    monkeypatch.setitem(sys.modules, "apiary_cli.commands.config", made)
    return made


# Those of the tree: a module may have one of its own that never leaves it.
TREE = [kind for kind in everyone(ApiaryError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", TREE, ids=lambda k: k.__name__)
def test_every_error_becomes_one_line_and_its_exit_code(
    kind: type[ApiaryError], failing: Failing, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.error = kind("what, and how to mend it")
    assert main(["config"]) == kind.exit_code
    assert capsys.readouterr().err == "apiary: what, and how to mend it\n"


def test_the_exit_codes_are_those_that_the_help_tells() -> None:
    codes = {e.__name__: e.exit_code for e in ApiaryError.__subclasses__()}
    assert codes == {
        "SettingsError": 2,
        "DataError": 3,
        "BusError": 4,
        "WireError": 5,
        "ModelError": 6,
        "RunFailed": 7,
        "StoreError": 8,
        "PublishError": 9,
        "RequestRefused": 10,
    }
    assert errors.ApiaryError.exit_code == 1


def test_ctrl_c_is_130(failing: Failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing.error = KeyboardInterrupt()
    assert main(["config"]) == 130
    assert capsys.readouterr().err == "apiary: interrupted\n"


def test_our_own_bug_is_not_hidden(failing: Failing) -> None:
    failing.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        main(["config"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    line = f"{sys.executable} -m apiary_cli config | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_node_loads_neither_tensorflow_nor_the_coordinator() -> None:
    """What `apiary edge` imports before it trains decides a node's memory."""
    code = (
        "import sys; from apiary_cli import main; "
        "sys.argv = ['apiary', 'edge', '--set', 'x']; main.main(); "
        "heavy = ('tensorflow', 'apiary_coordinator', 'PIL', 'tflite_runtime'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "[]\n"


def test_the_exit_code_stays_where_nothing_can_be_said(tmp_path: Path) -> None:
    """With its log on the disk that is full, a service ended with 1 instead of 8."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "apiary_cli", "config", "--set", "x"], stderr=full, timeout=30, check=False
        )
    assert done.returncode == 2
