"""An HTTP server that a slow or a greedy peer cannot keep from its owner.

Every connection has a total time, an address and the server have places, and the oldest connection without
a whole request gives way to a new one. The application judges a head before its body is read, and runs in
few threads of its own, which never wait for a peer: those that read and write do.

    server = HttpServer(app, "127.0.0.1", 8080)
    threading.Thread(target=server.run, daemon=True).start()
    ...
    server.close()
"""

import contextlib
import logging
import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from apiary.addresses import Address
from apiary.complaints import Complaints
from apiary.http.connection import (
    Application,
    BodyAllowance,
    Connection,
    Environ,
    no_body,
    note_hellos,
    refusal,
    response,
)
from apiary.http.places import HttpLimits, Place, party_of, room_for

_BACKLOG: Final = 128
_GIVE_WAY_S: Final = 0.05
"""A connection that was hung up on ends in less; where threads pile up the next one waits for that."""
_FULL_S: Final = 0.1
"""Before the next connection is taken where this process has no file descriptor left."""
log = logging.getLogger(__name__)
_NO_LIMITS_GIVEN: Final = HttpLimits()


class HttpServer:
    """Listens from the start; `run` serves until `close`, which any thread may call.

    `allowance` judges a head before its body is read; with `context` connections are TLS.
    """

    def __init__(
        self,
        app: Application,
        host: str,
        port: int,
        *,
        allowance: Callable[[Environ], BodyAllowance] = no_body,
        limits: HttpLimits = _NO_LIMITS_GIVEN,
        context: ssl.SSLContext | None = None,
    ):
        """Raises OSError where the address cannot be had."""
        self.limits = limits
        self.allowance = allowance
        self.context = context
        if context is not None:
            note_hellos(context)
        self._app = app
        self._listener = _listen(host, port)
        self.host, self.port = self._listener.getsockname()[:2]
        self._wake_out, self._wake_in = socket.socketpair()
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._number = 0
        self._held = 0
        self._complaints = Complaints(log)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._workers = 0
        self._closing = False

    @property
    def address(self) -> str:
        """`host:port` as in an URL."""
        return str(Address(self.host, self.port))

    def run(self) -> None:
        """Serve until `close`."""
        self._start_workers()
        while True:
            ready, _, _ = select.select([self._listener, self._wake_out], [], [])
            if self._wake_out in ready:
                break
            try:
                peer, address = self._listener.accept()
            except OSError as e:
                # A peer that left again, or no descriptor left: `close` still ends the loop.
                log.debug("no connection taken: %s", e)
                select.select([self._wake_out], [], [], _FULL_S)
                continue
            self._take(peer, address[0])
        self._end()

    def close(self) -> None:
        """Stop listening, and hang up on everybody."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake_in.send(b"x")
        if self._workers == 0:  # `run` was never called
            self._end()

    def reserve(self, size: int) -> bool:
        """Take room for a body; False where there is none."""
        with self._lock:
            if self._held + size > self.limits.max_held_bytes:
                return False
            self._held += size
            return True

    def release(self, size: int) -> None:
        """Give it back."""
        with self._lock:
            self._held -= size

    def answer(self, environ: Environ) -> bytes:
        """The application's whole answer, made by a worker."""
        if self._closing:
            raise ConnectionAbortedError("the server is closing")
        done = threading.Event()
        made: list[bytes] = []

        def job() -> None:
            try:
                made.append(self._ask(environ))
            except Exception:
                log.exception("%s %r failed", environ["REQUEST_METHOD"], environ["PATH_INFO"])
                made.append(refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "this is an error of the server"))
            finally:
                done.set()

        self._jobs.put(job)
        done.wait()
        return made[0]

    def _ask(self, environ: Environ) -> bytes:
        head: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], error: object = None) -> None:
            head[:] = [status, headers]

        body = b"".join(self._app(environ, start_response))
        return response(head[0], head[1], body)

    def _take(self, peer: socket.socket, host: str) -> None:
        party = party_of(host)
        with self._lock:
            taken = [Place(c.number, c.party, c.waits, c.began) for c in self._connections.values()]
            room = room_for(party, taken, self.limits)
            given_up = self._connections.pop(room.hang_up) if room.hang_up is not None else None
            thread = self._threads.get(room.hang_up) if room.hang_up is not None else None
        if given_up is not None:
            self._complaints.once(
                "hung up", given_up.party, f"{given_up.party}: hung up on it: all its places are taken"
            )
            given_up.hang_up()
            if thread is not None and len(self._threads) > self.limits.max_connections:
                thread.join(_GIVE_WAY_S)
        # Those that gave way and have not ended yet count, too.
        if not room.free or len(self._threads) >= 2 * self.limits.max_connections:
            self._complaints.once("no room", party, f"{party}: hung up on it: every place is at work")
            peer.close()
            return
        self._start(peer, host, party)

    def _start(self, peer: socket.socket, host: str, party: str) -> None:
        with self._lock:
            self._number += 1
            connection = Connection(self._number, peer, host, party)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=f"http-{self._number}", daemon=True
            )
            self._connections[connection.number] = connection
            self._threads[connection.number] = thread
        try:
            thread.start()
        except RuntimeError:  # this machine starts no more threads
            self._gone(connection)
            peer.close()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve(self, self.context)
        finally:
            self._gone(connection)

    def _gone(self, connection: Connection) -> None:
        with self._lock:
            self._connections.pop(connection.number, None)
            self._threads.pop(connection.number, None)

    def _start_workers(self) -> None:
        self._workers = self.limits.workers
        for number in range(self._workers):
            threading.Thread(target=self._work, name=f"http-worker-{number}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _end(self) -> None:
        self._listener.close()
        with self._lock:
            left = list(self._connections.values())
        for connection in left:
            connection.hang_up()
        for _ in range(self._workers):
            self._jobs.put(None)


def _listen(host: str, port: int) -> socket.socket:
    """One listening socket; an empty host is every address, of both families where this machine has both."""
    if not host:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
