"""A real ELF file, made without a compiler, that replaces itself by `PYTHON SCRIPT its-own-arguments...`.

So a Python stand-in of an `.eim` program passes every check that a real one passes, and runs. The code is for
x86_64; with another machine in the header the file is as good for the checks, but does not run.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

MACHINES = {"aarch64": 0xB7, "x86_64": 0x3E, "armv7": 0x28}
_BASE = 0x400000


def launcher(
    script: Path | None = None,
    *,
    machine: str = "x86_64",
    python: str = sys.executable,
    size: int = 65536,
) -> bytes:
    """The file's bytes, padded to `size`. Without a script Python runs the zip archive behind them."""
    bits = 32 if machine == "armv7" else 64
    header, segment = (64, 56) if bits == 64 else (52, 32)
    start = header + segment
    body = _code(python.encode() + b"\0", str(script).encode() + b"\0" if script is not None else b"")
    data = start + len(body)
    assert data <= size
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    if bits == 64:
        head = struct.pack(
            "<HHIQQQIHHHHHH",
            2,
            MACHINES[machine],
            1,
            _BASE + start,
            header,
            0,
            0,
            header,
            segment,
            1,
            64,
            0,
            0,
        )
        load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    else:
        head = struct.pack(
            "<HHIIIIIHHHHHH",
            2,
            MACHINES[machine],
            1,
            _BASE + start,
            header,
            0,
            0,
            header,
            segment,
            1,
            40,
            0,
            0,
        )
        load = struct.pack("<IIIIIIII", 1, 0, _BASE, _BASE, size, size, 5, 0x1000)
    return (ident + head + load + body).ljust(size, b"\0")


def _code(python: bytes, script: bytes) -> bytes:
    # On the stack lie argc, argv[0], argv[1], ..., 0, environment. The slot of argc becomes the new argv[0],
    # that of argv[0] the script: what follows stays as it is.
    before = bytes.fromhex("488b0c24 488d54cc10")  # mov rcx,[rsp]; lea rdx,[rsp+rcx*8+16]
    take_python = bytes.fromhex("488d3d")  # lea rdi,[rip+..]
    put_python = bytes.fromhex("48893c24")  # mov [rsp],rdi
    take_script = bytes.fromhex("488d05")  # lea rax,[rip+..]
    after = bytes.fromhex(
        ("4889442408" if script else "9090909090")  # mov [rsp+8],rax
        + "4889e6"  # mov rsi,rsp
        "b83b000000 0f05"  # execve
        "bf7f000000 b83c000000 0f05"  # exit(127)
    )
    first = len(before) + len(take_python) + 4
    second = first + len(put_python) + len(take_script) + 4
    end = second + len(after)
    return (
        before
        + take_python
        + struct.pack("<i", end - first)
        + put_python
        + take_script
        + struct.pack("<i", end + len(python) - second)
        + after
        + python
        + script
    )
