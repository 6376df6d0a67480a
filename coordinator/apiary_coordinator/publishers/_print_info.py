"""Asks a downloaded program what model it holds, where this machine can run it. It gets nothing of ours."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from apiary.eim import elf, protocol
from apiary.eim.protocol import EimModel
from apiary.errors import EimError
from apiary.process.deathsig import die_with_parent

TIMEOUT_S: Final = 20.0
_PRINTED_BYTES: Final = 2**20


def can_run(machine: str) -> bool:
    """Whether this machine runs programs for `machine`."""
    return os.name == "posix" and elf.machine_of_host(platform.machine()) == machine


def print_info(program: Path, *, timeout_s: float = TIMEOUT_S) -> EimModel:
    """The model by `--print-info`: in an empty folder, without our environment, bounded. Raises EimError."""
    with tempfile.TemporaryDirectory(prefix="apiary-eim-") as folder, tempfile.TemporaryFile() as printed:
        try:
            child = subprocess.Popen(
                [str(program.resolve()), "--print-info"],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PATH": os.defpath},
                start_new_session=True,
                preexec_fn=_bounds,  # noqa: PLW1509 - system calls only
            )
        except OSError as e:
            raise EimError(f"{program} cannot be started: {e.strerror}") from None
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise EimError(f"{program.name} --print-info did not end within {timeout_s:g} s") from None
        finally:
            _kill(child)
        printed.seek(0)
        text = printed.read(_PRINTED_BYTES).decode(errors="replace")
    if code != 0:
        raise EimError(f"{program.name} --print-info ended with code {code}: {' '.join(text.split())[-300:]}")
    return protocol.read_info(text)


def _bounds() -> None:
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_FSIZE, (_PRINTED_BYTES, _PRINTED_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
