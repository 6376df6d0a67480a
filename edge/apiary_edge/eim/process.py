"""One run of an `.eim` program: started without a shell, spoken to over its socket, and surely ended."""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from apiary.eim.protocol import Answers, SharedMemory, accept
from apiary.errors import EimError
from apiary.process.child import ProcessLimits, end, start, wait
from apiary.process.confinement import Confinement, Kernel, adopt_orphans, children
from apiary_edge.eim.shared_memory import Mapped

_PRINTED_BYTES: Final = 2048
_RETRY_S: Final = 0.02
_LEAVE_S: Final = 0.3
"""A program that is well ends itself when its connection closes, and removes its shared memory."""
_LOOKS: Final = 100
_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
"""All of our environment that a downloaded program gets: no key, no password."""


class Process:
    """A program that is connected. All waits end; every error names how the program ended."""

    def __init__(
        self,
        program: Path,
        *,
        start_s: float,
        stop_s: float,
        writable: Sequence[Path] = (),
        kernel: Kernel | None = None,
    ):
        """Start it and connect; beside its own folder it may change `writable`. Raises EimError."""
        self._program = program
        self._stop_s = stop_s
        self._printed = b""
        self._answers = Answers()
        self._number = 0
        self._socket: socket.socket | None = None
        self._mapped: Mapped | None = None
        # 0700: nobody else may connect before us, and the program takes one connection only.
        self._folder = Path(tempfile.mkdtemp(prefix="apiary-eim-"))
        adopt_orphans()
        self._before = children()
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        try:
            self._child = start(
                [str(program.resolve()), str(self._folder / "socket")],
                # SIGKILL: the program is somebody else's, and may ignore SIGTERM.
                limits=ProcessLimits(death_signal=signal.SIGKILL),
                confine=Confinement((program.resolve(),), (self._folder, *writable)).prepare(kernel),
                cwd=self._folder,
                env={**environment, "TMPDIR": str(self._folder)},
            )
        except OSError as e:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise EimError(f"{program} cannot be started: {e.strerror}") from None
        assert self._child.stdout is not None  # noqa: S101 - stdout is a pipe
        os.set_blocking(self._child.stdout.fileno(), False)
        try:
            self._socket = self._connect(time.monotonic() + start_s, start_s)
        except BaseException:
            self.close()
            raise

    def ask(self, request: bytes, timeout_s: float) -> Mapping[str, Any]:
        """Send a request that was made for `next_number`; the successful answer. Raises EimError."""
        until = time.monotonic() + timeout_s
        number = self._number
        rest = memoryview(request)
        assert self._socket is not None  # noqa: S101 - connected by the constructor
        with selectors.DefaultSelector() as waits:
            waits.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            if self._child.stdout and not self._child.stdout.closed:
                waits.register(self._child.stdout, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0:
                for key, events in waits.select(left):
                    if key.fileobj is not self._socket:
                        if not self._listen():
                            waits.unregister(key.fileobj)
                        continue
                    if events & selectors.EVENT_WRITE:
                        rest = rest[self._send(rest) :]
                        if not rest:
                            waits.modify(self._socket, selectors.EVENT_READ)
                    if events & selectors.EVENT_READ and (answers := self._answers.feed(self._receive())):
                        return accept(answers[0], number)
        raise EimError(f"{self._program.name} gives no answer within {timeout_s:g} s")

    def next_number(self) -> int:
        """The id of the next request."""
        self._number += 1
        return self._number

    def share(self, offer: SharedMemory) -> Mapped:
        """Map the memory that the program offers. Raises EimError."""
        self._mapped = Mapped(offer)
        return self._mapped

    def close(self) -> None:
        """End it: its connection, SIGTERM, then SIGKILL; remove socket and shared memory."""
        if self._socket is not None:
            self._socket.close()
            wait(self._child, min(_LEAVE_S, self._stop_s))
        end(self._child, self._stop_s)
        self._end_orphans()
        if self._child.stdout:
            self._child.stdout.close()
        if self._mapped is not None:
            self._mapped.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_orphans(self) -> None:
        """End what it left in sessions of their own; a killed process may leave others, so look again."""
        for _ in range(_LOOKS):
            left = children() - self._before - {self._child.pid}
            if not left:
                return
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.waitpid(pid, 0)

    def _connect(self, until: float, start_s: float) -> socket.socket:
        while time.monotonic() < until:
            self._listen()
            if self._child.poll() is not None:
                raise self._ended("before it took a connection")
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            s.setblocking(False)
            try:
                s.connect(str(self._folder / "socket"))
            except OSError:  # not bound or not listening yet
                s.close()
                time.sleep(_RETRY_S)
                continue
            return s
        raise EimError(f"{self._program.name} takes no connection within {start_s:g} s{self._last_words()}")

    def _send(self, rest: memoryview) -> int:
        assert self._socket is not None  # noqa: S101
        try:
            return self._socket.send(rest)
        except BlockingIOError:
            return 0
        except OSError:
            raise self._ended("while a request was sent") from None

    def _receive(self) -> bytes:
        assert self._socket is not None  # noqa: S101
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            raise self._ended("instead of an answer")
        return data

    def _listen(self) -> bool:
        """Keep the end of what the program prints; unread, it would stand still at a full pipe."""
        assert self._child.stdout is not None  # noqa: S101
        try:
            data = os.read(self._child.stdout.fileno(), 65536)
        except BlockingIOError:
            return True
        self._printed = (self._printed + data)[-_PRINTED_BYTES:]
        return bool(data)

    def _ended(self, when: str) -> EimError:
        code = wait(self._child, self._stop_s)  # the socket closes a moment before the process is gone
        self._listen()
        how = (
            "closed its connection"
            if code is None
            else f"was ended by {_signal(-code)}"
            if code < 0
            else f"ended with code {code}"
        )
        return EimError(f"{self._program.name} {how} {when}{self._last_words()}")

    def _last_words(self) -> str:
        lines = self._printed.decode(errors="replace").split("\n")
        text = " | ".join(line.strip() for line in lines if line.strip())[-300:]
        return f": {text}" if text else ""


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
