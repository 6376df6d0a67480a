"""One accepted connection: TLS and head without waiting, then body and answer, each within its time."""

import contextlib
import io
import logging
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, Protocol

from apiary.http.head import END, BadHead, length_of, read_head
from apiary.http.places import HttpLimits, party_of

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
"""A WSGI application (PEP 3333)."""

HELLO: Final = "apiary_hello"
"""Attribute of a connection's SSLSocket: called once the peer's ClientHello is whole."""
_PART_BYTES: Final = 64 * 2**10
_DRAIN_S: Final = 2.0
"""Closing with unread bytes would reset the connection, and take the answer away from its reader."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BodyAllowance:
    """What a head may bring: bytes of a body that are read, and whether it shows a sender that is known.

    A head whose body is longer is answered without it. Who is known is not hung up on for others.
    """

    max_bytes: int = 0
    known: bool = False


def note_hellos(context: ssl.SSLContext) -> None:
    """Have each connection of `context` note when its peer's ClientHello is whole."""

    def hello(secured: object, _: str | None, __: ssl.SSLContext) -> None:
        # Called for every ClientHello, with a name in it or without.
        if (begun := getattr(secured, HELLO, None)) is not None:
            begun()

    context.sni_callback = hello


def no_body(environ: Environ) -> BodyAllowance:
    """For a server whose requests have no body, and whose senders are all strangers."""
    return BodyAllowance()


class Shared(Protocol):
    """What connections share: their server."""

    limits: HttpLimits

    def allowance(self, environ: Environ) -> BodyAllowance:
        """Judge a head, before its body is read."""

    def reserve(self, size: int) -> bool:
        """Take room for a known sender's body; False where there is none."""

    def release(self, size: int) -> None:
        """Give it back."""

    def answer(self, environ: Environ) -> bytes:
        """The whole answer of the application."""


class Connection:
    """One connection: `advance` until its head is whole, then `serve` in a thread of its own.

    `until`: by when (monotonic) its head and, of a sender who is not known, its body have to be whole.
    """

    def __init__(self, number: int, peer: socket.socket, host: str, until: float):
        self.number = number
        self.party = party_of(host)
        self.until = until
        self.known = False
        self.began = False
        self.wants = selectors.EVENT_READ
        """What `advance` goes on with."""
        self._at_work = False
        self._socket = peer
        self._host = host
        self._got = bytearray()
        self._left_over = False
        peer.setblocking(False)

    def _has_begun(self) -> None:
        self.began = True

    @property
    def waits(self) -> bool:
        """Whether it waits for a sender that is not known."""
        return not self.known and not self._at_work

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """End it before `serve`: nobody else reads from it."""
        self._socket.close()

    def hang_up(self) -> None:
        """End it while another thread is in `serve`."""
        # Not the method of an SSLSocket, which would take the session away from the thread that reads it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def advance(self, context: ssl.SSLContext | None, max_head_bytes: int) -> bool:
        """Take what has come, without waiting; True where `serve` is next. Raises OSError or ValueError."""
        try:
            if context is not None:
                self._secure(context)
            while not self._head_is_here(max_head_bytes):
                data = self._socket.recv(_PART_BYTES)
                if not data:
                    raise ConnectionResetError("it ended before its head was whole")
                self._got += data
        except (BlockingIOError, ssl.SSLWantReadError):
            self.wants = selectors.EVENT_READ
            return False
        except ssl.SSLWantWriteError:
            self.wants = selectors.EVENT_WRITE
            return False
        self._at_work = True
        return True

    def _secure(self, context: ssl.SSLContext) -> None:
        """The handshake, as far as it goes. A peer that says nothing costs no session."""
        if not isinstance(self._socket, ssl.SSLSocket):
            if not self._socket.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError("it ended before it said anything")
            self._socket = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
            setattr(self._socket, HELLO, self._has_begun)
        if self._socket.version() is None:
            self._socket.do_handshake()

    def _head_is_here(self, max_bytes: int) -> bool:
        return END in self._got or len(self._got) > max_bytes

    def serve(self, shared: Shared) -> None:
        """Answer the request and close. Never raises for what the peer does."""
        try:
            self._send(self._answer(shared), time.monotonic() + shared.limits.answer_s)
            self._at_work = False
            self._finish()
        except (OSError, ValueError) as e:
            self.note_end(e)
        finally:
            self._socket.close()

    def note_end(self, error: OSError | ValueError) -> None:
        """Log what ended it."""
        log.debug("%s: the connection broke: %s", self._host, getattr(error, "reason", None) or error)

    def _answer(self, shared: Shared) -> bytes:
        try:
            head, rest = self._head(shared.limits.max_head_bytes)
            environ = read_head(head)
            length = length_of(environ)
            environ |= {
                "REMOTE_ADDR": self._host,
                "wsgi.version": (1, 0),
                "wsgi.url_scheme": "https" if isinstance(self._socket, ssl.SSLSocket) else "http",
                "wsgi.input": io.BytesIO(),
                "wsgi.errors": sys.stderr,
                "wsgi.multithread": True,
                "wsgi.multiprocess": False,
                "wsgi.run_once": False,
            }
            if isinstance(self._socket, ssl.SSLSocket):
                environ["apiary.certificate"] = self._socket.getpeercert()
            allowed = shared.allowance(environ)
            self.known = allowed.known
            if length > allowed.max_bytes:
                self._left_over = True
                return shared.answer(environ)
            if not allowed.known:
                self._at_work = len(rest) >= length
                environ["wsgi.input"] = io.BytesIO(self._body(environ, rest, length, self.until))
                self._at_work = True
                return shared.answer(environ)
            if not shared.reserve(length):
                self._left_over = True
                raise BadHead(HTTPStatus.SERVICE_UNAVAILABLE, "too much is being sent: try again")
            try:
                until = time.monotonic() + shared.limits.body_s
                environ["wsgi.input"] = io.BytesIO(self._body(environ, rest, length, until))
                return shared.answer(environ)
            finally:
                shared.release(length)
        except BadHead as e:
            self._left_over = True
            return refusal(e.status, str(e))

    def _head(self, max_bytes: int) -> tuple[bytes, bytes]:
        end = self._got.find(END)
        if not 0 <= end <= max_bytes:
            raise BadHead(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"expected at most {max_bytes} bytes")
        return bytes(self._got[:end]), bytes(self._got[end + len(END) :])

    def _body(self, environ: Environ, rest: bytes, length: int, until: float) -> bytes:
        got = bytearray(rest[:length])
        if len(got) < length and environ.get("HTTP_EXPECT", "").lower() == "100-continue":
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n", until)
        while len(got) < length:
            got += self._receive(until, length - len(got))
        return bytes(got)

    def _receive(self, until: float, most: int = _PART_BYTES) -> bytes:
        self._socket.settimeout(_left(until))
        data = self._socket.recv(min(most, _PART_BYTES))
        if not data:
            raise ConnectionResetError("it ended before its request was whole")
        return data

    def _send(self, data: bytes, until: float) -> None:
        rest = memoryview(data)
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while rest:
                rest = rest[self._socket.send(rest[:_PART_BYTES]) :]
        if rest:
            # More than fits on the way: it waits for its reader.
            self._at_work = False
        while rest:
            self._socket.settimeout(_left(until))
            rest = rest[self._socket.send(rest[:_PART_BYTES]) :]

    def _finish(self) -> None:
        socket.socket.shutdown(self._socket, socket.SHUT_WR)
        if not self._left_over:
            return
        until = time.monotonic() + _DRAIN_S
        with contextlib.suppress(OSError, ValueError):
            while True:
                self._receive(until)


def refusal(status: HTTPStatus, why: str) -> bytes:
    """A whole answer of the server itself, in plain text."""
    return response(
        f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")], why.encode()
    )


def response(status: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """A whole answer as its bytes; the connection ends behind it."""
    own = [("Date", formatdate(usegmt=True)), ("Connection", "close")]
    given = list(headers)
    if not any(name.lower() == "content-length" for name, _ in given):
        own.append(("Content-Length", str(len(body))))
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in [*given, *own])]
    return "\r\n".join(lines).encode("latin-1") + END + body


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left
