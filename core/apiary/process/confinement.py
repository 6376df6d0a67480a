"""What a program that we did not write may do: Landlock for files, seccomp for the rest. Needs no rights.

    confinement = Confinement(readable=(program,), writable=(folder,))
    process = start([str(program)], confine=confinement.prepare())

A confined program reads system libraries, devices without content and what it is given; it has no network,
can connect to nothing, begins no process, leaves neither its session nor its parent's death signal, signals
nobody else and reads no other process's memory; of root it has the name, and no capability. Each half holds
by itself where the kernel has only one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_SYSTEM: Final = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/opt/vc", "/proc", "/sys/devices/system",
    "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload",
    "/etc/localtime", "/etc/nsswitch.conf", "/dev/random", "/dev/urandom", "/dev/zero",
)  # fmt: skip
"""Code and facts about the machine. Of /proc Landlock keeps the environments and memory of others closed."""
_SCRATCH: Final = ("/dev/null", "/dev/shm")  # noqa: S108 - shared memory is a part of the protocol

# landlock(7), linux/landlock.h; the numbers are the same on every machine.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_FIRST: Final = (1 << 13) - 1
"""Rights of the first version."""
_READING: Final = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_SCOPES_SINCE: Final = 6
_SCOPES: Final = 3  # abstract unix sockets, signals

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_GET_SECCOMP = 1, 36, 21
# capset(2), version 3. With no_new_privs set, exec gives root none of them back.
_CAP_HEADER: Final = struct.pack("Ii", 0x20080522, 0)
_NO_CAPS: Final = bytes(24)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of system calls (unistd.h) and the machine's own in a filter (linux/audit.h)."""

    audit: int
    refused: tuple[int, ...]
    socket: int
    clone: int
    clone3: int
    prctl: int
    capset: int
    signals: tuple[int, ...]
    """Whose first argument is a process."""
    highest: int = 0x40000000
    """Above are those of another interface, x32."""


# connect, setsid, setpgid, fork, vfork, ptrace, process_vm_*, io_uring_*, pidfd_*, rt_*sigqueueinfo, unshare,
# setns, mount, pivot_root, chroot, keyctl, add_key, request_key, bpf, userfaultfd, perf_event_open
_MACHINES: Final = {
    "x86_64": _Machine(
        0xC000003E,
        (42, 112, 109, 57, 58, 101, 310, 311, 425, 426, 427, 424, 434, 438, 129, 297, 272,
         308, 165, 155, 161, 250, 248, 249, 321, 323, 298),
        socket=41, clone=56, clone3=435, prctl=157, capset=126, signals=(62, 200, 234),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        (203, 157, 154, 117, 270, 271, 425, 426, 427, 424, 434, 438, 138, 240, 97,
         268, 40, 41, 51, 219, 217, 218, 280, 282, 241),
        socket=198, clone=220, clone3=435, prctl=167, capset=91, signals=(129, 130, 131),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """What it offers: the version of Landlock or 0; the machine whose calls seccomp filters, or nothing."""

    landlock: int
    seccomp: str


@cache
def this_kernel() -> Kernel:
    """The one that runs, as far as this process may use it."""
    if _LIBC is None:
        return Kernel(0, "")
    filters = int(_LIBC.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0)) >= 0
    return Kernel(max(0, _LIBC.syscall(_CREATE_RULESET, None, 0, 1)), platform.machine() if filters else "")


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a program may read and execute, and change, beside the system's libraries."""

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()

    def prepare(self, kernel: Kernel | None = None) -> Callable[[], None]:
        """What the child calls between fork and exec; open until it is dropped. Says once what is missing."""
        kernel = kernel or this_kernel()
        ruleset = _ruleset(self, kernel.landlock)
        machine = _MACHINES.get(kernel.seccomp)
        missing = [
            what
            for what, there in (("Landlock", ruleset is not None), ("seccomp", machine is not None))
            if not there
        ]
        if missing:
            _say_once(" and ".join(missing))
        return _Prepared(ruleset, machine)


class _Prepared:
    """Makes system calls only, as must be between fork and exec."""

    def __init__(self, ruleset: int | None, machine: _Machine | None):
        self._ruleset = ruleset
        self._machine = machine
        # The process does not exist yet whose signals to itself are allowed: its number is put in there.
        filters, self._own = _filters(machine) if machine is not None else (b"", [])
        self._filters = ctypes.create_string_buffer(filters, len(filters))
        self._program = ctypes.create_string_buffer(
            struct.pack("HxxxxxxP", len(filters) // 8, ctypes.addressof(self._filters))
        )
        self._at = ctypes.c_void_p(ctypes.addressof(self._program))

    def __call__(self) -> None:
        """Confine this process, and whatever it becomes."""
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if self._ruleset is not None:
            _LIBC.syscall(_RESTRICT_SELF, self._ruleset, 0)
        if self._machine is not None:
            _LIBC.syscall(self._machine.capset, _CAP_HEADER, _NO_CAPS)
            for at in self._own:
                struct.pack_into("I", self._filters, at, os.getpid())
            _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, self._at, 0, 0)

    def __del__(self) -> None:
        if self._ruleset is not None:
            with contextlib.suppress(OSError):
                os.close(self._ruleset)


def adopt_orphans() -> None:
    """Become the parent of what children leave behind, so that `children` finds it. Linux; else nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Processes whose parent this one is, those that it adopted included."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in task.read_text(encoding="ascii").split()}
    return found


def _ruleset(confinement: Confinement, version: int) -> int | None:
    if version <= 0 or _LIBC is None:
        return None
    rights = _FIRST | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rights |= _IOCTL if version >= 5 else 0
    attributes = struct.pack("QQQ", rights, 0, _SCOPES if version >= _SCOPES_SINCE else 0)
    size = 24 if version >= _SCOPES_SINCE else 8
    ruleset = int(_LIBC.syscall(_CREATE_RULESET, attributes, size, 0))
    if ruleset < 0:
        return None
    own = (sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent))
    _allow(ruleset, (*_SYSTEM, *own, *confinement.readable), _READING & rights)
    _allow(ruleset, (*_SCRATCH, *confinement.writable), rights)
    return ruleset


def _allow(ruleset: int, paths: Iterable[str | Path], rights: int) -> None:
    assert _LIBC is not None  # noqa: S101 - there is no ruleset without it
    for path in paths:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            of_this = rights if Path(path).is_dir() else rights & _OF_FILES
            _LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", of_this, fd), 0)
        finally:
            os.close(fd)


def _filters(machine: _Machine) -> tuple[bytes, list[int]]:
    """A program of classic BPF (linux/filter.h), and where in it the process's own number belongs."""
    made: list[tuple[int, int, int, int]] = []
    load, equal, at_least, has_bit, back = 0x20, 0x15, 0x35, 0x45, 0x06
    number, arch, first, second = 0, 4, 16, 24
    refuse, unknown, allow = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x7FFF0000

    def where(call: int, *then: tuple[int, int, int, int]) -> None:
        """For `call` do `then`, which ends; else go on."""
        made.append((equal, 0, len(then), call))
        made.extend(then)

    made += [(load, 0, 0, arch), (equal, 1, 0, machine.audit), (back, 0, 0, refuse)]
    made += [(load, 0, 0, number), (at_least, 0, 1, machine.highest), (back, 0, 0, refuse)]
    for call in machine.refused:
        where(call, (back, 0, 0, refuse))
    where(machine.clone3, (back, 0, 0, unknown))  # its flags are out of reach; libraries take clone instead
    where(
        machine.clone,
        (load, 0, 0, first),
        (has_bit, 1, 0, 0x10000),
        (back, 0, 0, refuse),
        (back, 0, 0, allow),
    )  # CLONE_THREAD
    where(machine.prctl, (load, 0, 0, first), (equal, 0, 1, _PR_SET_PDEATHSIG), (back, 0, 0, refuse),
          (back, 0, 0, allow))  # fmt: skip
    # AF_UNIX, SOCK_STREAM: others need no connection to send.
    where(machine.socket, (load, 0, 0, first), (equal, 0, 3, 1), (load, 0, 0, second), (0x54, 0, 0, 0xF),
          (equal, 1, 0, 1), (back, 0, 0, refuse), (back, 0, 0, allow))  # fmt: skip
    own = []
    for call in machine.signals:
        own.append(8 * (len(made) + 2) + 4)
        where(call, (load, 0, 0, first), (equal, 1, 0, 0), (back, 0, 0, refuse), (back, 0, 0, allow))
    made.append((back, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *one) for one in made), own


@cache
def _say_once(missing: str) -> None:
    log.warning("programs of releases run with more rights than they need: this kernel has no %s", missing)


def _find_libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        _ = libc.prctl, libc.syscall
    except (OSError, AttributeError):
        return None
    libc.syscall.restype = ctypes.c_long
    return libc


# Looked up at import: loading a library between fork and exec may deadlock.
_LIBC: Final = _find_libc()
