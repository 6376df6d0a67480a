"""Whether bytes are a whole Linux program for the machine they are meant for, by their headers."""

import struct
from dataclasses import dataclass
from typing import Final

from apiary.errors import ModelError

MIN_BYTES: Final = 16 * 1024
"""Smaller than any program with an inference engine in it; an error page or an empty file is."""
MAX_BYTES: Final = 256 * 2**20
"""Larger than any classifier that a Raspberry Pi runs; also what a node would have to store."""

_MACHINES: Final = {0x28: "armv7", 0x3E: "x86_64", 0xB7: "aarch64", 0x03: "i686", 0xF3: "riscv"}
_BITS: Final = {"aarch64": 64, "x86_64": 64, "armv7": 32}
_HOSTS: Final = {
    "arm64": "aarch64",
    "aarch64": "aarch64",
    "armv7l": "armv7",
    "x86_64": "x86_64",
    "amd64": "x86_64",
}


@dataclass(frozen=True, slots=True)
class Program:
    """An ELF file's class (32 or 64) and machine: aarch64, armv7, x86_64 or a number in hexadecimal."""

    bits: int
    machine: str


def machine_of_target(target: str) -> str | None:
    """The machine that a deployment target builds for, None where the target is not a Linux program.

    `runner-linux-aarch64` and its variants (`runner-linux-aarch64-qnn`) are all for aarch64.
    """
    prefix = "runner-linux-"
    if not target.startswith(prefix):
        return None
    return next((name for name in _BITS if target.removeprefix(prefix).startswith(name)), None)


def machine_of_host(machine: str) -> str | None:
    """`platform.machine()` in our names, None for machines that no target is built for."""
    return _HOSTS.get(machine.lower())


def read(data: bytes, *, who: str, max_bytes: int = MAX_BYTES) -> Program:
    """The program in `data`, whole by its own headers. Raises ModelError naming `who` and what came."""
    if len(data) > max_bytes:
        raise ModelError(f"{who} is {len(data)} bytes, expected at most {max_bytes}")
    if data[:4] != b"\x7fELF":
        raise ModelError(f"{who} is {_looks_like(data)}, expected a Linux program (ELF)")
    if len(data) < MIN_BYTES:
        raise ModelError(f"{who} is {len(data)} bytes, expected a program of at least {MIN_BYTES}")
    if data[4] not in (1, 2) or data[5] != 1:
        raise ModelError(f"{who} has an ELF header that no Raspberry Pi reads (class {data[4]}, {data[5]})")
    bits = 32 * data[4]
    (machine,) = struct.unpack_from("<H", data, 18)
    needs = _needs(data, bits)
    if needs > len(data):
        raise ModelError(f"{who} is cut off: {len(data)} bytes came, its headers speak of {needs}")
    return Program(bits, _MACHINES.get(machine, hex(machine)))


def check(data: bytes, machine: str, *, who: str, max_bytes: int = MAX_BYTES) -> Program:
    """As `read`, and for this machine (aarch64, armv7, x86_64). Raises ModelError."""
    program = read(data, who=who, max_bytes=max_bytes)
    if program != Program(_BITS[machine], machine):
        raise ModelError(
            f"{who} is a {program.bits} bit program for {program.machine}, "
            f"expected {_BITS[machine]} bit for {machine}: build it for the right target"
        )
    return program


def _needs(data: bytes, bits: int) -> int:
    """How long the file must be for its segments and its table of sections to lie in it."""
    word, at, sizes_at, least, skipped = ("Q", 32, 54, 56, 8) if bits == 64 else ("I", 28, 42, 32, 4)
    phoff, shoff = struct.unpack_from(f"<2{word}", data, at)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", data, sizes_at)
    table = phoff + phentsize * phnum
    needs = int(max(table, shoff + shentsize * shnum))
    if phentsize < least or table > len(data):
        return needs
    for i in range(phnum):
        fields = struct.unpack_from(f"<4{word}", data, phoff + i * phentsize + skipped)
        # 64 bit: offset, vaddr, paddr, filesz after type and flags; 32 bit the same after the type.
        needs = max(needs, int(fields[0] + fields[3]))
    return needs


def _looks_like(data: bytes) -> str:
    start = data[:64].lstrip().lower()
    if not data:
        return "empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (HTML)"
    if start.startswith(b"{"):
        return f"JSON: {data[:120].decode(errors='replace')}"
    if start.startswith(b"pk\x03\x04"):
        return "a zip archive"
    return f"neither ({len(data)} bytes beginning {data[:8].hex(' ')})"
