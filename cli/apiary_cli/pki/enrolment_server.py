"""`apiary pki serve`: a small HTTPS service where devices join with a one-time token, and renew later.

    GET  /v1/ca     the authority's certificate and its list of revoked ones (no secret)
    POST /v1/join   {"name", "token", "request": PEM} -> the answer, PEM
    POST /v1/renew  {"request": PEM} over TLS with the certificate in use -> the answer, PEM
                    {"request": PEM, "certificate": PEM, "proof": base64} for a server, whose certificate
                    opens no connection: its key signs the request instead

Everything is bounded: connections at once, bytes, seconds, requests of one address, tokens.
"""

import contextlib
import json
import logging
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final

from apiary import __version__
from apiary.errors import ApiaryError, SettingsError
from apiary.identity.authority import KeyUse
from apiary.identity.roles import Identity, Role
from apiary.notify import Notifier
from apiary.settings import Settings
from apiary_cli.pki.device import IssuedFiles
from apiary_cli.pki.enrolment import MAX_BODY, PER_ADDRESS_S, Enrolment, Refusal, limiter
from apiary_cli.pki.folder import ENROLMENT, CaFolder, make_here
from apiary_cli.terminal.stopping import stop_on_signals

MAX_AT_ONCE: Final = 16
SILENCE_S: Final = 10.0
"""Longest pause of a client; a whole connection has three times that."""
LOOK_S: Final = 600.0
"""How often the service asks whether its own certificate is due: it may run for years."""
log = logging.getLogger(__name__)


class EnrolmentServer(ThreadingMixIn, TCPServer):
    """The listening socket; one thread a connection, `MAX_AT_ONCE` of them."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], enrolment: Enrolment, context: ssl.SSLContext):
        self.enrolment = enrolment
        self.limiter = limiter()
        self.context = context
        self._room = threading.BoundedSemaphore(MAX_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, or hang up where all are busy."""
        if not self._room.acquire(blocking=False):
            log.warning("pki: %s: hung up, %d connections are open", client_address[0], MAX_AT_ONCE)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """TLS first, in this thread: a peer that is slow at it holds nobody else up."""
        try:
            request.settimeout(SILENCE_S)
            # A trickle of bytes keeps within the silence allowed; this ends it.
            end = threading.Timer(3 * SILENCE_S, _hang_up, (request,))
            end.daemon = True
            end.start()
            try:
                secured = self.context.wrap_socket(request, server_side=True)
            except (OSError, ValueError) as e:
                log.info("pki: %s: no TLS session: %s", client_address[0], getattr(e, "reason", None) or e)
                self.shutdown_request(request)
            else:
                super().process_request_thread(secured, client_address)
            finally:
                end.cancel()
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the peer's; anything else is a bug of ours and has a traceback."""
        error = sys.exception()
        if isinstance(error, OSError):
            log.info("pki: %s: the connection broke: %s", client_address[0], error)
        else:
            log.exception("pki: %s: this is a bug of ours", client_address[0])


class _Handler(BaseHTTPRequestHandler):
    server: EnrolmentServer
    server_version = f"apiary/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        ca = self.server.enrolment.ca
        self._answer({"/v1/ca": lambda: ca.ca_pem + ca.crl})

    def do_POST(self) -> None:
        self._answer({"/v1/join": self._join, "/v1/renew": self._renew})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        log.debug("pki: %s: %s", self.client_address[0], format % args)

    def _join(self) -> bytes:
        return self._hand_out(self.server.enrolment.join(self._body()))

    def _renew(self) -> bytes:
        return self._hand_out(self.server.enrolment.renew(self._body(), self._serial()))

    def _hand_out(self, made: IssuedFiles) -> bytes:
        subject = made.certificates[0].subject.rfc4514_string()
        log.info("pki: %s: certificates for %r", self.client_address[0], subject)
        return made.encode()

    def _answer(self, routes: dict[str, Callable[[], bytes]]) -> None:
        address = self.client_address[0]
        try:
            if self.server.limiter.wait_s(address) > 0:
                wait = f"refused too often: wait {PER_ADDRESS_S:.0f} s"
                raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, wait)
            if self.path not in routes:
                raise Refusal(HTTPStatus.NOT_FOUND, "GET /v1/ca, POST /v1/join, POST /v1/renew")
            status, content = HTTPStatus.OK, routes[self.path]()
        except (Refusal, ApiaryError) as e:
            status = e.status if isinstance(e, Refusal) else HTTPStatus.BAD_REQUEST
            content, level = str(e).encode(), logging.DEBUG
            if status != HTTPStatus.TOO_MANY_REQUESTS:
                self.server.limiter.failed(address)
                level = logging.WARNING
            log.log(level, "pki: %s: %s refused: %s", address, self.path[:100], e)
        self.send_response(status)
        self.send_header(
            "Content-Type", "application/x-pem-file" if status == HTTPStatus.OK else "text/plain"
        )
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9 or int(length) > MAX_BODY:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {MAX_BODY} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body is no JSON object")
        return body

    def _serial(self) -> str | None:
        assert isinstance(self.connection, ssl.SSLSocket)  # noqa: S101 - process_request_thread made it one
        shown = self.connection.getpeercert()
        return str(shown["serialNumber"]).lower().lstrip("0") if shown and "serialNumber" in shown else None


def serve(ca: CaFolder, settings: Settings, *, as_json: bool = False) -> int:
    """Run until a signal. Raises SettingsError where the address cannot be had."""
    notifier = Notifier.from_environment(os.environ, time.monotonic)
    service = make_service(ca, settings)
    port = service.server_address[1]
    host = settings.pki.listen or socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    line = f"devices join at https://{host}:{port} with --ca-sha256 {ca.sha256}"
    print(json.dumps({"port": port, "ca_sha256": ca.sha256}) if as_json else line, flush=True)
    with stop_on_signals() as stop:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        notifier.ready(f"devices join and renew on port {port}")
        looked_at = time.monotonic()
        while not stop() and thread.is_alive():
            thread.join(0.2)
            if time.monotonic() - looked_at > LOOK_S:
                looked_at = time.monotonic()
                show_certificate(ca, settings, service.context)
    notifier.stopping()
    notifier.close()
    service.shutdown()
    service.server_close()
    return stop.exit_code


def make_service(ca: CaFolder, settings: Settings) -> EnrolmentServer:
    """The service, listening. Unlocks the authority's key, and makes its own certificate where it is due."""
    _ = ca.authority  # read now, so that a wrong passphrase is an error at the start
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    show_certificate(ca, settings, context, at_start=True)
    # Shown to renew; whether it still holds is in the index.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(ca.folder / "ca.pem")
    try:
        return EnrolmentServer((settings.pki.listen, settings.pki.port), Enrolment(ca, settings), context)
    except OSError as e:
        raise SettingsError(
            f"cannot listen on {settings.pki.listen or '*'}:{settings.pki.port}: {e.strerror}; "
            "set pki.listen and pki.port"
        ) from None


def show_certificate(
    ca: CaFolder, settings: Settings, context: ssl.SSLContext, *, at_start: bool = False
) -> None:
    """Have `context` show the service's own certificate to who connects next, a new one where it is due."""
    own = ca.folder / ENROLMENT
    due = all(i.due(time.time()) for i in ca.standing(ENROLMENT))
    if due:
        fresh = (own / "tls" / "cert.pem").exists()
        make_here(
            ca, Identity(ENROLMENT, Role.SERVER), (KeyUse.SERVER,), own, settings.pki.days,
            names=[socket.gethostname()], new_keys=fresh,
        )  # fmt: skip
        log.info("pki: a new certificate for the service itself")
    if due or at_start:
        context.load_cert_chain(own / "tls" / "cert.pem", own / "tls" / "key.pem")


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
