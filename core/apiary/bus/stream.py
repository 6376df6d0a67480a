"""The socket under a link: small packets leave together, and TLS blocks as a plain socket does.

paho writes each acknowledgement by itself: 37 system calls a node and round of 0.84 MB (measured), each of
which woke the broker.
"""

import socket
import ssl
from typing import Final

_SMALL: Final = 1024
_HELD: Final = 16_384


class Stream:
    """What paho uses of a non-blocking socket. `flush` writes what was held back."""

    __slots__ = ("_held", "_sock")

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self._held = bytearray()

    @property
    def reads_ahead(self) -> bool:
        """Whether bytes are here that the kernel will not announce: those that TLS has decrypted."""
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    @property
    def holds_back(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._held)

    def recv(self, size: int) -> bytes:
        """At most `size` bytes. Raises BlockingIOError where none are here, OSError where the link broke."""
        try:
            return self._sock.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def send(self, data: bytes | bytearray) -> int:
        """How much was taken. Raises what the socket raises, BlockingIOError while others are still ahead."""
        if len(data) <= _SMALL:
            if len(self._held) >= _HELD:
                self.flush()
            if len(self._held) < _HELD:
                self._held += data
                return len(data)
        self.flush()
        if self._held:
            raise BlockingIOError
        return self._sock.send(data)

    def flush(self) -> None:
        """Write what was held back, as far as the socket takes it. Raises OSError where the link broke."""
        while self._held:
            try:
                del self._held[: self._sock.send(self._held)]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def setblocking(self, blocking: bool) -> None:
        """As the socket's."""
        self._sock.setblocking(blocking)

    def close(self) -> None:
        """Close the socket; a DISCONNECT that was held back leaves first."""
        try:
            self.flush()
        except OSError:
            pass  # the other side has gone before
        finally:
            self._sock.close()
