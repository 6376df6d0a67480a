"""One accepted connection: TLS, head, body and answer, each within its time."""

import contextlib
import io
import logging
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
from apiary.http.places import HttpLimits

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
    """One connection, served by one thread with `serve`; `hang_up` comes from another."""

    def __init__(self, number: int, peer: socket.socket, host: str, party: str):
        self.number = number
        self.party = party
        self.known = False
        self.working = False
        self.began = False
        self._hung_up = False
        self._socket = peer
        self._host = host
        self._left_over = False

    def _has_begun(self) -> None:
        self.began = True

    @property
    def waits(self) -> bool:
        """Whether it waits for a sender that is not known."""
        return not self.known and not self.working

    def hang_up(self) -> None:
        """End it, whatever it is at."""
        self._hung_up = True  # before the socket is looked at: `_secure` replaces it
        # Not the method of an SSLSocket, which would take the session away from the thread that reads it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def serve(self, shared: Shared, context: ssl.SSLContext | None) -> None:
        """Answer one request and close. Never raises for what the peer does."""
        try:
            until = time.monotonic() + shared.limits.head_s
            if context is not None:
                self._secure(context, shared.limits.head_s)
            data = self._answer(shared, until)
            self._send(data, time.monotonic() + shared.limits.answer_s)
            self._finish()
        except (OSError, ValueError) as e:
            log.debug("%s: the connection broke: %s", self._host, getattr(e, "reason", None) or e)
        finally:
            self._socket.close()

    def _secure(self, context: ssl.SSLContext, within_s: float) -> None:
        """The handshake, in which `hang_up` ends the connection, too."""
        # The handshake's timeout is one for all of it (CPython's _ssl.c).
        self._socket.settimeout(within_s)
        # `wrap_socket` takes the descriptor from the plain socket. With the handshake in it, `hang_up` would
        # shut down a socket that has none, and this thread would stay for all of its time.
        secured = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket = secured
        setattr(secured, HELLO, self._has_begun)
        if self._hung_up:
            raise ConnectionAbortedError("hung up on")
        secured.do_handshake()

    def _answer(self, shared: Shared, until: float) -> bytes:
        try:
            head, rest = self._head(shared.limits.max_head_bytes, until)
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
                return self._work(shared, environ)
            if not allowed.known:
                environ["wsgi.input"] = io.BytesIO(self._body(environ, rest, length, until))
                return self._work(shared, environ)
            if not shared.reserve(length):
                self._left_over = True
                raise BadHead(HTTPStatus.SERVICE_UNAVAILABLE, "too much is being sent: try again")
            try:
                until = time.monotonic() + shared.limits.body_s
                environ["wsgi.input"] = io.BytesIO(self._body(environ, rest, length, until))
                return self._work(shared, environ)
            finally:
                shared.release(length)
        except BadHead as e:
            self._left_over = True
            return refusal(e.status, str(e))

    def _work(self, shared: Shared, environ: Environ) -> bytes:
        self.working = True
        try:
            return shared.answer(environ)
        finally:
            self.working = False

    def _head(self, max_bytes: int, until: float) -> tuple[bytes, bytes]:
        got = bytearray()
        while (end := got.find(END)) < 0:
            if len(got) > max_bytes:
                raise BadHead(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"expected at most {max_bytes} bytes"
                )
            got += self._receive(until)
        if end > max_bytes:
            raise BadHead(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"expected at most {max_bytes} bytes")
        return bytes(got[:end]), bytes(got[end + len(END) :])

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
