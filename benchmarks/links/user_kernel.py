"""Run a command under another Linux kernel, one that is an ordinary process: Debian's `user-mode-linux`.

It brings along what this machine's own kernel may lack, as `tc netem`, and needs no root. Inside, the command
is root; it sees this machine's files and cannot write to them, and has a network that leads nowhere. What it
makes goes to memory (`TMPDIR`), and is gone with it.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

from apiary.process.child import die_with_parent

PROGRAM: Final = "linux.uml"
MEMORY: Final = "1G"
STOP_S: Final = 5.0
MODULES: Final = ("drivers/net/veth.ko", "net/sched/sch_netem.ko")
TEMPORARY: Final = Path("/dev/shm")  # noqa: S108 - of that kernel alone
OUT, ERR, CODE = "/dev/ttyS0", "/dev/ttyS1", "/dev/ttyS2"
"""Serial lines of that kernel: where the command's output, its errors and its exit code go."""
_POWER_OFF: Final = 0x4321FEDC  # reboot(2)


class KernelError(Exception):
    """The kernel did not come as far as the command's end."""


def usable() -> bool:
    """Whether there is such a kernel, and this is not it."""
    return shutil.which(PROGRAM) is not None and "User Mode Linux" not in Path("/proc/cpuinfo").read_text()


def run(command: Sequence[str]) -> int:
    """Run a command there, its output going where ours goes; its exit code. Raises KernelError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apiary-kernel-")))
        first = folder / "init"
        environment = (f"{name}={value}" for name, value in os.environ.items())
        first_words = ["env", *environment, sys.executable, __file__, str(Path.cwd()), *command]
        first.write_text(f"#!/bin/sh\nexec {shlex.join(first_words)}\n")
        first.chmod(0o755)
        code_r, code_w = os.pipe()
        code = stack.enter_context(os.fdopen(code_r))
        lines = (*(stack.enter_context(handed_on(to)) for to in (sys.stdout, sys.stderr)), code_w)
        log = folder / "kernel.log"
        with log.open("wb") as said:
            kernel = subprocess.Popen(
                [
                    PROGRAM, f"mem={MEMORY}", f"uml_dir={folder}", "rootfstype=hostfs", "ro", f"init={first}",
                    "con=null", "con0=null,fd:1", *(f"ssl{i}=null,fd:{fd}" for i, fd in enumerate(lines)),
                ],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=lines, start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, looked up before the fork
            )  # fmt: skip
        os.close(code_w)
        try:
            kernel.wait()
        finally:
            end(kernel)
        told = code.read().strip()
        if not told:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise KernelError(
                f"{PROGRAM} ended with code {kernel.returncode} before the command did:\n{last}"
            )
        return int(told)


def end(kernel: subprocess.Popen[bytes]) -> None:
    """Stop it in order where it still runs, and what it left behind where something killed it."""
    kernel.terminate()
    with suppress(subprocess.TimeoutExpired):
        kernel.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()


@contextmanager
def handed_on(to: TextIO) -> Iterator[int]:
    """A pipe that `cat` empties there: a terminal itself would be set to what that kernel wants."""
    to.flush()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=to) as cat:
        assert cat.stdin is not None
        yield cat.stdin.fileno()


def first_process(folder: str, command: Sequence[str]) -> None:
    """What that kernel starts: mounts, modules, the command, and the power off."""
    os.environ.update(PATH=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", TMPDIR=str(TEMPORARY))
    try:
        for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", str(TEMPORARY))):
            Path(place).mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", kind, kind, place], check=True)
        for module in MODULES:
            path = Path("/usr/lib/uml/modules", os.uname().release, "kernel", module)
            subprocess.run(["insmod", str(path)], check=True)
        with open_line(OUT) as out, open_line(ERR) as err:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False
            )
        with open_line(CODE) as line:
            os.write(line, f"{done.returncode}\n".encode())
    except (OSError, subprocess.CalledProcessError):
        traceback.print_exc()
    finally:
        ctypes.CDLL(None).reboot(_POWER_OFF)


@contextmanager
def open_line(path: str) -> Iterator[int]:
    """A serial line for writing, its bytes unchanged, and all of them on their way when it closes."""
    line = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        attributes = termios.tcgetattr(line)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(line, termios.TCSANOW, attributes)
        yield line
        termios.tcdrain(line)
    finally:
        os.close(line)


if __name__ == "__main__":
    first_process(sys.argv[1], sys.argv[2:])
