"""Reads from a downloaded program what model it holds, where this machine can run it.

The program gets none of our environment, no network and no file of ours.
"""

import os
import platform
import tempfile
from pathlib import Path
from typing import Final

from apiary.eim import elf, protocol
from apiary.eim.protocol import EimModel
from apiary.errors import EimError
from apiary.process.child import ProcessLimits, end, how_ended, start, wait
from apiary.process.confinement import Confinement

TIMEOUT_S: Final = 20.0
_PRINTED_BYTES: Final = 2**20


def can_run(machine: str) -> bool:
    """Whether this machine runs programs for `machine`."""
    return os.name == "posix" and elf.machine_of_host(platform.machine()) == machine


def print_info(program: Path, *, timeout_s: float = TIMEOUT_S) -> EimModel:
    """The model by `--print-info`: in an empty folder, without our environment, bounded. Raises EimError."""
    with tempfile.TemporaryDirectory(prefix="apiary-eim-") as folder, tempfile.TemporaryFile() as printed:
        try:
            process = start(
                [str(program.resolve()), "--print-info"],
                limits=ProcessLimits(max_file_bytes=_PRINTED_BYTES),
                confine=Confinement((program.resolve(),), (Path(folder),)).prepare(),
                stdout=printed,
                cwd=folder,
                env={"PATH": os.defpath},
            )
        except OSError as e:
            raise EimError(f"{program} cannot be started: {e.strerror}") from None
        try:
            code = wait(process, timeout_s)
        finally:
            end(process)
        if code is None:
            raise EimError(f"{program.name} --print-info did not end within {timeout_s:g} s")
        printed.seek(0)
        text = printed.read(_PRINTED_BYTES).decode(errors="replace")
    if code != 0:
        raise EimError(f"{program.name} --print-info {how_ended(code)}: {' '.join(text.split())[-300:]}")
    return protocol.read_info(text)
