"""An HTTP server that a slow or a greedy peer cannot keep from its owner.

Every connection has a total time, an address and the server have places, and the oldest connection without
a whole request gives way to a new one. The application judges a head before its body is read, and runs in
few threads of its own, which never wait for a peer.

All connections that wait, for TLS or for a head, are in the one loop of `run`. It reads what has come before
it takes the next connection: nobody who has sent a whole request gives way to one who comes later. From its
whole head on a connection has a thread.

    server = HttpServer(app, "127.0.0.1", 8080)
    threading.Thread(target=server.run, daemon=True).start()
    ...
    server.close()
"""

import contextlib
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final

from apiary.addresses import Address
from apiary.complaints import Complaints
from apiary.http.connection import (
    Application,
    BodyAllowance,
    Connection,
    Environ,
    no_body,
    note_hellos,
)
from apiary.http.places import HttpLimits, Place, room_for
from apiary.http.workers import Workers

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
        self._listener = _listen(host, port)
        self.host, self.port = self._listener.getsockname()[:2]
        self._wake_out, self._wake_in = socket.socketpair()
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[int, Connection] = {}
        """Those of the loop, which alone reads and writes this; the oldest first."""
        self._connections: dict[int, Connection] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._number = 0
        self._held = 0
        self._complaints = Complaints(log)
        self._workers = Workers(app, self.limits.workers)
        self._runs = False
        self._closing = False

    @property
    def address(self) -> str:
        """`host:port` as in an URL."""
        return str(Address(self.host, self.port))

    def run(self) -> None:
        """Serve until `close`."""
        self._runs = True
        self._workers.start()
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        accept_at: float | None = None
        while not self._closing:
            ready = [key.fileobj for key, _ in self._selector.select(self._idle_s(accept_at))]
            for connection in ready:
                if isinstance(connection, Connection):
                    self._advance(connection)
            self._end_overdue()
            if self._listener in ready and not self._accept():
                self._selector.unregister(self._listener)
                accept_at = time.monotonic() + _FULL_S
            elif accept_at is not None and time.monotonic() >= accept_at:
                self._selector.register(self._listener, selectors.EVENT_READ)
                accept_at = None
        self._end()

    def _idle_s(self, accept_at: float | None) -> float | None:
        """Until something is due. All have the same time, so the oldest is over first."""
        oldest = next(iter(self._waiting.values()), None)
        due = [at for at in (accept_at, oldest.until if oldest else None) if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for connection in list(self._waiting.values()):
            if connection.until > now:
                break
            self._drop(connection)

    def _accept(self) -> bool:
        """Take one connection; False where there is none to be had for now."""
        try:
            peer, address = self._listener.accept()
        except OSError as e:
            # A peer that left again, or no descriptor left.
            log.debug("no connection taken: %s", e)
            return False
        self._take(Connection(self._next_number(), peer, address[0], time.monotonic() + self.limits.head_s))
        return True

    def close(self) -> None:
        """Stop listening, and hang up on everybody."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake_in.send(b"x")
        if not self._runs:
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
        return self._workers.answer(environ)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _take(self, connection: Connection) -> None:
        party = connection.party
        with self._lock:
            taken = [Place(c.number, c.party, c.waits, c.began) for c in self._connections.values()]
            room = room_for(party, taken, self.limits)
            given_up = self._connections.get(room.hang_up) if room.hang_up is not None else None
        if given_up is not None:
            self._complaints.once(
                "hung up", given_up.party, f"{given_up.party}: hung up on it: all its places are taken"
            )
            self._give_up(given_up)
        # Those that gave way and have not ended yet count, too.
        if not room.free or len(self._threads) >= 2 * self.limits.max_connections:
            self._complaints.once("no room", party, f"{party}: hung up on it: every place is at work")
            connection.close()
            return
        with self._lock:
            self._connections[connection.number] = connection
        self._waiting[connection.number] = connection
        self._selector.register(connection, connection.wants)
        self._advance(connection)

    def _give_up(self, connection: Connection) -> None:
        if connection.number in self._waiting:
            self._drop(connection)
            return
        with self._lock:
            self._connections.pop(connection.number, None)
            thread = self._threads.get(connection.number)
        connection.hang_up()
        if thread is not None and len(self._threads) > self.limits.max_connections:
            thread.join(_GIVE_WAY_S)

    def _advance(self, connection: Connection) -> None:
        """Take what a connection that waits has sent; a whole head goes to a thread."""
        wanted = connection.wants
        try:
            if connection.advance(self.context, self.limits.max_head_bytes):
                self._start(connection)
            elif connection.wants != wanted:
                self._selector.modify(connection, connection.wants)
        except (OSError, ValueError) as e:
            connection.note_end(e)
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._leave(connection)
        self._gone(connection)
        connection.close()

    def _leave(self, connection: Connection) -> None:
        """It is no more of the loop."""
        self._selector.unregister(connection)
        del self._waiting[connection.number]

    def _start(self, connection: Connection) -> None:
        self._leave(connection)
        thread = threading.Thread(
            target=self._serve, args=(connection,), name=f"http-{connection.number}", daemon=True
        )
        with self._lock:
            self._threads[connection.number] = thread
        try:
            thread.start()
        except RuntimeError:  # this machine starts no more threads
            self._gone(connection)
            connection.close()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve(self)
        finally:
            self._gone(connection)

    def _gone(self, connection: Connection) -> None:
        with self._lock:
            self._connections.pop(connection.number, None)
            self._threads.pop(connection.number, None)

    def _end(self) -> None:
        self._listener.close()
        for connection in list(self._waiting.values()):
            self._drop(connection)
        with self._lock:
            left = list(self._connections.values())
        for connection in left:
            connection.hang_up()
        self._workers.close()
        self._selector.close()


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
