"""Files that people write, in whatever their editor saves."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from tests.places import ROOT

from apiary.errors import DataError, SettingsError
from apiary.text_files import first_line, read_text


def test_a_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn\r\n")
    assert read_text(file) == "grün\r\n"
    assert first_line(file, what="password") == "grün"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"one\ntwo \xfc\n", "line 2: byte 0xfc is not UTF-8"),
        ("text".encode("utf-16"), "is UTF-16, expected UTF-8"),
        (b"x" * 101, "is larger than 100 bytes"),
    ],
)
def test_what_is_not_utf_8_is_named_with_its_line(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(DataError, match=rf"labels file .*labels\.txt.*{why}"):
        read_text(tmp_path / "labels.txt", what="labels file", error=DataError, max_bytes=100)
    with pytest.raises(SettingsError, match="No such file"):
        read_text(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("data", "line"),
    [(b" a b \n", " a b "), (b"secret", "secret"), (b"a\r\nb", "a"), ("mühsam \n".encode(), "mühsam ")],
)
def test_only_its_end_is_taken_off_a_secret(tmp_path: Path, data: bytes, line: str) -> None:
    (tmp_path / "p").write_bytes(data)
    assert first_line(tmp_path / "p", what="password") == line


@pytest.mark.parametrize("data", [b"", b"\nsecond", b"\r\n"])
def test_an_empty_secret_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(SettingsError, match=r"password .*p: its first line is empty"):
        first_line(tmp_path / "p", what="password")


def test_no_text_file_is_read_or_written_in_the_encoding_of_a_locale() -> None:
    found = []
    for root in ("core", "coordinator", "edge", "cli"):
        for path in sorted((ROOT / root).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = (
                    node.func.attr
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                    else ""
                )
                if name not in ("read_text", "write_text") or not isinstance(node, ast.Call):
                    continue
                if len(node.args) < 1 + (name == "write_text") and "encoding" not in ast.unparse(node):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_a_named_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "apiary.toml"
    os.mkfifo(pipe)
    with pytest.raises(SettingsError, match="is a named pipe, whose writer may never come: expected a file"):
        read_text(pipe, what="settings file")


def test_what_a_shell_substitutes_is_read() -> None:
    receiver, sender = os.pipe()
    os.write(sender, b"[run]\nrounds = 3\n")
    os.close(sender)
    assert read_text(Path(f"/dev/fd/{receiver}")) == "[run]\nrounds = 3\n"
    os.close(receiver)
