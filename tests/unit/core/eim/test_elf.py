"""What passes for a program, on both sides of every check; the launcher of the stand-ins is a real ELF."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stand_ins.elf_launcher import launcher

from apiary.eim import elf
from apiary.errors import ModelError

HERE = Path(__file__)


@pytest.mark.parametrize(("machine", "bits"), [("aarch64", 64), ("armv7", 32), ("x86_64", 64)])
def test_a_program_is_known_by_its_headers(machine: str, bits: int) -> None:
    data = launcher(HERE, machine=machine)
    assert elf.check(data, machine, who="x.eim") == elf.Program(bits, machine)


def test_this_python_is_a_program() -> None:
    data = Path(sys.executable).resolve().read_bytes()
    assert elf.read(data, who="python").machine == elf.machine_of_host(platform.machine())


@pytest.mark.parametrize("made", ["aarch64", "armv7", "x86_64"])
@pytest.mark.parametrize("wanted", ["aarch64", "armv7", "x86_64"])
def test_the_wrong_machine_is_refused(made: str, wanted: str) -> None:
    if made == wanted:
        return
    with pytest.raises(ModelError, match=rf"program for {made}, expected (32|64) bit for {wanted}"):
        elf.check(launcher(HERE, machine=made), wanted, who="x.eim")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "x.eim is empty, expected a Linux program"),
        (b"<!DOCTYPE html><title>502</title>" * 900, "a web page"),
        (b"  <html>" * 9000, "a web page"),
        (b'{"success":false,"error":"no"}', 'JSON: {"success":false,"error":"no"}'),
        (b"PK\x03\x04" + bytes(50000), "a zip archive"),
        (b"\x00asm" * 9000, "neither .36000 bytes beginning 00 61 73 6d"),
        (b"\x7fELF" + bytes(30000), "no Raspberry Pi reads"),
        (b"\x7fELF\x02\x02" + bytes(30000), "no Raspberry Pi reads"),  # big-endian
    ],
)
def test_what_is_no_program_is_called_by_its_name(data: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        elf.read(data, who="x.eim")


@pytest.mark.parametrize("machine", ["aarch64", "armv7"])
def test_a_cut_off_program_is_refused_wherever_it_was_cut(machine: str) -> None:
    whole = launcher(HERE, machine=machine)
    elf.read(whole, who="x.eim")
    for size in (len(whole) - 1, len(whole) // 2, elf.MIN_BYTES):
        with pytest.raises(
            ModelError, match=f"cut off: {size} bytes came, its headers speak of {len(whole)}"
        ):
            elf.read(whole[:size], who="x.eim")
    for size in range(0, 400):
        with pytest.raises(ModelError):
            elf.read(whole[:size], who="x.eim")


def test_a_table_of_sections_beyond_the_end_is_a_cut() -> None:
    data = bytearray(Path(sys.executable).resolve().read_bytes())
    with pytest.raises(ModelError, match="cut off"):
        elf.read(bytes(data[:-64]), who="x.eim")


def test_both_sides_of_the_size_bounds() -> None:
    small = launcher(HERE, size=elf.MIN_BYTES)
    elf.read(small, who="x.eim", max_bytes=len(small))
    with pytest.raises(ModelError, match=f"{len(small)} bytes, expected at most {len(small) - 1}"):
        elf.read(small, who="x.eim", max_bytes=len(small) - 1)
    with pytest.raises(ModelError, match=f"is {elf.MIN_BYTES - 1} bytes, expected a program of at least"):
        elf.read(launcher(HERE, size=elf.MIN_BYTES - 1), who="x.eim")


def test_headers_of_chance_raise_nothing_but_our_error() -> None:
    chance = random.Random(7)
    head = launcher(HERE, size=elf.MIN_BYTES)
    for _ in range(3000):
        data = bytearray(head)
        for _ in range(6):
            data[chance.randrange(4, 140)] = chance.randrange(256)
        with contextlib.suppress(ModelError):
            elf.read(bytes(data), who="x.eim")


@pytest.mark.parametrize(
    ("target", "machine"),
    [
        ("runner-linux-aarch64", "aarch64"),
        ("runner-linux-aarch64-qnn", "aarch64"),
        ("runner-linux-armv7", "armv7"),
        ("runner-linux-x86_64", "x86_64"),
        ("runner-linux-sparc", None),
        ("runner-mac-x86_64", None),
        ("zip", None),
    ],
)
def test_targets_name_their_machine(target: str, machine: str | None) -> None:
    assert elf.machine_of_target(target) == machine


def test_the_launcher_runs_its_script_with_the_arguments(tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the launcher's code is for x86_64")
    script = tmp_path / "say.py"
    script.write_text("import os, sys\nprint(sys.argv[1:], os.environ['APIARY_SAYS'])\n")
    program = tmp_path / "x.eim"
    program.write_bytes(launcher(script))
    program.chmod(0o755)
    done = subprocess.run(
        [program, "a b", "--c"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"APIARY_SAYS": "hello"},
    )
    assert done.stdout == "['a b', '--c'] hello\n", done
