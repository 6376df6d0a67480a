"""What a user may type wrong at a command that needs no broker: one line, the right code, nothing left."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.edge.samples.parts import picture

from apiary.errors import DataError, SettingsError, StoreError
from apiary_cli.main import main

Lines = tuple[int, str, str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for key in [k for k in os.environ if k.startswith("APIARY_")]:
        monkeypatch.delenv(key)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def apiary(capsys: pytest.CaptureFixture[str]) -> Callable[..., Lines]:
    def run(*words: str) -> Lines:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize("command", ["demo", "chaos"])
def test_a_folder_for_runs_that_cannot_be_made_is_said(
    apiary: Callable[..., Lines], command: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, _, err = apiary(command, "--runs-dir", "file/runs")
    assert code == StoreError.exit_code
    assert err.startswith("apiary: cannot use the folder file/runs (--runs-dir): Not a directory")


def test_what_the_system_refuses_is_one_line_with_the_file_and_how_to_mend_it(
    apiary: Callable[..., Lines], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some call that no module foresaw: not the user's fault, but nothing that a traceback would mend."""
    (tmp_path / "file").touch()
    code, _, err = apiary("data", "partition", "digits", "--nodes", "2", "--out", "file/shares")
    assert code == StoreError.exit_code
    assert "Not a directory" in err and "Traceback" not in err

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/somewhere")

    from apiary_cli.commands import config

    monkeypatch.setattr(config, "run", full)
    code, _, err = apiary("config")
    assert code == StoreError.exit_code
    assert err.startswith("apiary: /var/somewhere: No space left on device: the disk is full; free some")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds 0: expected 1 or more"),
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--dataset", "hardhat"], "--dataset hardhat needs --data DIR"),
    ],
)
def test_a_demo_that_cannot_begin_names_no_logs_and_leaves_none(
    apiary: Callable[..., Lines], words: list[str], said: str, tmp_path: Path
) -> None:
    """`--rounds 0` was taken for no --rounds at all, and ran for a minute."""
    code, _, err = apiary("demo", *words)
    assert code == DataError.exit_code
    assert said in err and "logs:" not in err
    assert list(tmp_path.glob("runs/.demo-*")) == []


@pytest.mark.parametrize(
    "words", [["stats"], ["list"], ["undo"], ["label", "3f", "--as", "cat"], ["delete", "3f"]]
)
def test_where_there_is_no_sample_store_none_is_made_by_looking(
    apiary: Callable[..., Lines], words: list[str], tmp_path: Path
) -> None:
    """A wrong --state-dir, or the wrong working folder, showed an empty store, and left one behind."""
    code, _, err = apiary("samples", *words, "--state-dir", "typo")
    assert code == DataError.exit_code
    assert "there is no sample store in typo/samples" in err and "apiary samples import" in err
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("port", ["99999", "65536", "-1"])
def test_a_port_that_is_none_is_refused(apiary: Callable[..., Lines], port: str) -> None:
    """99999 became 34463, which nobody could know."""
    code, _, err = apiary("label", "--port", port)
    assert code == SettingsError.exit_code
    assert f"--port {port}: expected 0 to 65535" in err


def test_capturing_no_picture_is_refused(apiary: Callable[..., Lines]) -> None:
    """It went on for ever."""
    code, _, err = apiary("capture", "--camera", "folder", "--source", ".", "--count", "0")
    assert code == SettingsError.exit_code
    assert "--count 0: expected 1 or more" in err


def test_an_import_that_stopped_for_want_of_room_is_no_success(
    apiary: Callable[..., Lines], tmp_path: Path
) -> None:
    """It ended with 0 where any picture was there before, and a script believed it."""
    for i in range(4):
        (tmp_path / "photos" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "cat" / f"{i}.jpg").write_bytes(picture(i))
    few = ["--state-dir", "node", "--set", "edge.store.min_free_mb=0", "--set", "edge.store.max_count=2"]
    for _ in range(2):
        code, out, err = apiary("samples", "import", "photos", *few)
        assert code == StoreError.exit_code
        assert "stopped: the store is full of labelled pictures" in err and out.startswith("added ")
