"""Reaching one endpoint without blocking: TCP, then TLS, within one deadline. `route.py` chooses which."""

import contextlib
import errno
import logging
import os
import selectors
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apiary.addresses import LOOPBACK
from apiary.bus.route import HINT, Endpoint
from apiary.errors import BrokerRefused, BrokerUnreachable, BusError, NotReady, SettingsError
from apiary.files import Stamp, stamp
from apiary.identity.key_files import candidates, put_in_place
from apiary.settings import BrokerSettings

_IN_PROGRESS: Final = {0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, errno.EINTR}
_FAR_HINT: Final = (
    "does the broker run there, and listen on that address? `apiary broker` without --host, and mosquitto "
    "without a `listener` line, listen on 127.0.0.1 alone (`ss -ltn` on that machine shows it)"
)

log = logging.getLogger(__name__)


def tls_context(broker: BrokerSettings) -> ssl.SSLContext | None:
    """The TLS context that the settings ask for, None without TLS. Raises SettingsError naming the file."""
    if not broker.tls:
        return None
    for key in ("tls_ca", "tls_cert", "tls_key"):
        path: Path | None = getattr(broker, key)
        if path is not None and not os.access(path, os.R_OK):
            raise NotReady(f"broker.{key} {path}: no such file, or this user may not read it")
    if (broker.tls_cert is None) != (broker.tls_key is None):
        raise SettingsError("broker.tls_cert and broker.tls_key belong together: set both or neither")
    try:
        context = ssl.create_default_context(cafile=broker.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if broker.tls_cert is not None and broker.tls_key is not None:
            _load_pair(context, broker.tls_cert, broker.tls_key)
    except (OSError, ssl.SSLError) as e:
        files = ", ".join(str(p) for p in (broker.tls_ca, broker.tls_cert, broker.tls_key) if p)
        raise NotReady(f"broker.tls_*: {files}: not usable PEM files: {e}") from None
    return context


def _load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """The certificate with the key that fits it; raises ssl.SSLError where none does."""
    *others, last = candidates(key)
    for found in others:
        with contextlib.suppress(ssl.SSLError):
            context.load_cert_chain(cert, found)
            return
    context.load_cert_chain(cert, last)
    put_in_place(last, key)


class Tls:
    """The TLS context of a party that runs for years, while its certificates are renewed on disk.

    Made at once, and again for each connection attempt before which a file changed.
    """

    def __init__(self, broker: BrokerSettings):
        """Raises SettingsError naming a file that cannot be used."""
        self._broker = broker
        self._seen = self._stamps()
        self._context = tls_context(broker)

    def context(self) -> ssl.SSLContext | None:
        """For the next attempt, None without TLS; where a new file cannot be used, what worked before."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            try:
                self._context = tls_context(self._broker)
                log.info("broker %s: the TLS files were read again", self._broker.names)
            except SettingsError as e:
                # A certificate and its key change one after the other; the second change is seen too.
                log.warning("%s; what was read before stays in use", e)
        return self._context

    def _stamps(self) -> tuple[Stamp, ...]:
        b = self._broker
        return tuple(stamp(path) for path in (b.tls_ca, b.tls_cert, b.tls_key)) if b.tls else ()


@dataclass(slots=True, eq=False)
class Dial:
    """One attempt to reach one endpoint. Call `step` whenever `sock` is ready, until it gives a socket."""

    endpoint: Endpoint
    context: ssl.SSLContext | None
    deadline: float
    want: int = selectors.EVENT_WRITE
    _sock: socket.socket | None = None
    _tls: ssl.SSLSocket | None = None

    @property
    def sock(self) -> socket.socket | None:
        """The socket whose readiness `step` waits for, None before the first `step`."""
        return self._tls or self._sock

    def step(self, now: float) -> socket.socket | None:
        """Go on; the connected socket when there is one. Raises BrokerUnreachable or BrokerRefused."""
        if now >= self.deadline:
            self.close()
            raise self._unreachable("no answer within the time allowed (broker.connect_timeout_s)")
        if self._tls is None:
            if self._sock is None:
                self._sock = self._connecting()
            sock = self._sock
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.close()
                raise self._failed(error)
            if not _has_peer(sock):
                return None
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is None:
                return sock
            self._tls = self.context.wrap_socket(
                sock, server_hostname=self.endpoint.address.host, do_handshake_on_connect=False
            )
        return self._handshake(self._tls)

    def close(self) -> None:
        """Give the attempt up."""
        for sock in (self._tls, self._sock):
            if sock is not None:
                sock.close()
        self._sock = self._tls = None

    def _connecting(self) -> socket.socket:
        try:
            sock = socket.socket(self.endpoint.family, socket.SOCK_STREAM)
        except OSError as e:
            raise self._unreachable(e.strerror or str(e)) from None
        sock.setblocking(False)
        try:
            code = sock.connect_ex(self.endpoint.socket_address)
        except OSError as e:  # an address that is none, such as a zone that is not there
            sock.close()
            raise self._unreachable(e.strerror or str(e)) from None
        if code in _IN_PROGRESS:
            return sock
        sock.close()
        raise self._failed(code)

    def _handshake(self, tls: ssl.SSLSocket) -> socket.socket | None:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self.want = selectors.EVENT_READ
            return None
        except ssl.SSLWantWriteError:
            self.want = selectors.EVENT_WRITE
            return None
        except ssl.SSLCertVerificationError as e:
            self.close()
            raise self._refused(
                f"its certificate does not hold: {e.verify_message}",
                "check broker.host and broker.tls_ca, and this machine's clock",
            ) from None
        except (OSError, ValueError) as e:
            self.close()
            raise self._refused(
                f"no TLS session: {getattr(e, 'reason', None) or e}",
                "does this port speak TLS (8883 is usual), and does it want broker.tls_cert?",
            ) from None
        return tls

    def _failed(self, code: int) -> BusError:
        # Debian gives a host's own name the address 127.0.1.1, where such a broker does not listen either.
        if code == errno.ECONNREFUSED and self.endpoint.numeric != LOOPBACK:
            return BrokerUnreachable(f"broker {self.endpoint.address}: {os.strerror(code)}; {_FAR_HINT}")
        return self._unreachable(os.strerror(code))

    def _unreachable(self, why: str) -> BusError:
        return BrokerUnreachable(f"broker {self.endpoint.address}: {why}; {HINT}")

    def _refused(self, why: str, hint: str) -> BusError:
        return BrokerRefused(f"broker {self.endpoint.address}: {why}; {hint}")


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
