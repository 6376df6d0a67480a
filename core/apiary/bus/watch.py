"""Waiting for one socket, and for a word from another thread."""

import contextlib
import selectors
import socket
from typing import Final

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE


class Watch:
    """A selector over at most one socket of the network, beside a pair that `wake` writes to."""

    __slots__ = ("_selector", "_sock", "_wake_r", "_wake_w", "_want")

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = socket.socketpair()
        for end in (self._wake_r, self._wake_w):
            end.setblocking(False)
        self._selector.register(self._wake_r, READ)
        self._sock: socket.socket | None = None
        self._want = 0

    def fileno(self) -> int:
        """A descriptor that is readable while `wait` would return at once."""
        return self._selector.fileno()

    def set(self, sock: socket.socket | None, want: int = 0) -> None:
        """Watch this socket alone, for READ, WRITE or both; None watches nothing but `wake`."""
        if sock is self._sock:
            if sock is not None and want != self._want:
                self._selector.modify(sock, want)
                self._want = want
            return
        if self._sock is not None:
            with contextlib.suppress(KeyError, ValueError):  # closed already: epoll has forgotten it
                self._selector.unregister(self._sock)
        self._sock, self._want = sock, want
        if sock is not None:
            self._selector.register(sock, want)

    def wait(self, timeout_s: float) -> tuple[int, bool]:
        """What the socket is ready for, and whether `wake` was called, within `timeout_s`."""
        ready, woken = 0, False
        for key, mask in self._selector.select(timeout_s):
            if key.fileobj is self._wake_r:
                woken = True
                with contextlib.suppress(BlockingIOError):
                    while self._wake_r.recv(4096):
                        pass
            else:
                ready |= mask
        return ready, woken

    def wake(self) -> None:
        """End a `wait`; for other threads and signal handlers."""
        with contextlib.suppress(BlockingIOError):  # full of wakes already
            self._wake_w.send(b"\0")

    def close(self) -> None:
        """Free the descriptors; the socket belongs to somebody else."""
        self._selector.close()
        self._wake_r.close()
        self._wake_w.close()
