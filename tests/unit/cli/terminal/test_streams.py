"""What a command prints: printable, in any encoding, into what is closed or full."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apiary_cli.terminal.streams import PrintableStream, printable_output, raw

APIARY = [sys.executable, "-m", "apiary_cli"]


def test_what_was_printed_controls_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = sys.stdout, sys.stderr
    with printable_output():
        print("a\x1b[2J\tb\u202e")
        print("c\x07\rd", file=sys.stderr)
        print("\x1b[1m", end="", file=raw(sys.stdout))
    assert (sys.stdout, sys.stderr) == (out, err)
    assert capsys.readouterr() == ("a\\x1b[2J\tb\\u202e\n\x1b[1m", "c\\x07\\rd\n")


def test_a_sign_that_a_terminal_does_not_have_is_escaped() -> None:
    below = io.BytesIO()
    stream = PrintableStream(io.TextIOWrapper(below, encoding="ascii"))
    stream.write("°C … ü")
    stream.flush()
    assert below.getvalue() == rb"\xb0C \u2026 \xfc"


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("APIARY_", "LC_", "LANG", "PYTHON"))}
    return {**kept, **more}


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_terminal_and_a_locale_of_ascii_end_in_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "apiary.toml").write_text('federation = "x"\n[edge]\ndata_dir = "/srv/Bäume"\n', "utf-8")
    done = subprocess.run(
        [*APIARY, "config"],
        cwd=tmp_path,
        env=environment(**ASCII),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"B\\xe4ume" in done.stdout and done.stderr == b""
    done = subprocess.run(
        [*APIARY, "samples", "list", "--state-dir", "/nö"],
        cwd=tmp_path, env=environment(**ASCII), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and done.stderr.startswith(b"apiary: there is no sample store")


@pytest.mark.parametrize("words", [["config"], ["--help"], ["data", "list"]], ids=" ".join)
def test_a_full_disk_behind_the_output_is_reported(words: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*APIARY, *words], cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE,
            timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 8
    assert done.stderr == b"apiary: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("words", [["config"], ["--help"], ["data", "list"]], ids=" ".join)
def test_who_has_read_enough_gets_no_complaint(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [*APIARY, *words], cwd=tmp_path, env=environment(), stdout=closed, stderr=subprocess.PIPE,
            timeout=120, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_standard_output_that_is_closed_is_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *APIARY, "config"],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, timeout=120, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
