"""`apiary pki serve`: a small HTTPS service where devices join with a one-time token, and renew later.

    GET  /v1/ca     the authority's certificate and its list of revoked ones (no secret)
    GET  /v1/trust  both, of the former authority too where it is being replaced, and its word for the new one
    POST /v1/join   {"name", "token", "request": PEM} -> the answer, PEM
    POST /v1/crl    {"crl": PEM} over TLS with a valid certificate: a list of this authority that it forgot
    POST /v1/renew  {"request": PEM} over TLS with the certificate in use -> the answer, PEM
                    {"request": PEM, "certificate": PEM, "proof": base64} where the certificate opens no
                    connection (a server's, or one that is over): its key signs the request instead

Everything is bounded: connections, bytes and seconds by the server, requests of one address and tokens here.
"""

import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from apiary.addresses import url
from apiary.errors import ApiaryError, NotReady
from apiary.files import stamp
from apiary.http.connection import BodyAllowance, Environ
from apiary.http.server import HttpServer
from apiary.identity.authority import KeyUse
from apiary.identity.roles import Identity, Role
from apiary.notify import Notifier
from apiary.settings import Settings
from apiary_cli.pki.device import Device, only_former
from apiary_cli.pki.enrolment import MAX_BODY, MAX_LIST_BODY, PER_ADDRESS_S, Enrolment, Refusal, limiter
from apiary_cli.pki.folder import ENROLMENT, CaFolder, always, make_here
from apiary_cli.terminal.stopping import stop_on_signals

LOOK_S: Final = 600.0
"""How often the service asks whether its own certificate is due: it may run for years."""
_ROUTES: Final = {
    "/v1/ca": ("GET", "HEAD"),
    "/v1/trust": ("GET", "HEAD"),
    "/v1/join": ("POST",),
    "/v1/renew": ("POST",),
    "/v1/crl": ("POST",),
}
log = logging.getLogger(__name__)


class EnrolmentApp:
    """The service as a WSGI application; the server in front of it bounds connections, bytes and seconds."""

    def __init__(self, enrolment: Enrolment):
        self._enrolment = enrolment
        self._limiter = limiter()

    def allowance(self, environ: Environ) -> BodyAllowance:
        """A body is read where a request is expected, and its address need not wait."""
        wanted = environ["REQUEST_METHOD"] in _ROUTES.get(environ["PATH_INFO"], ())
        waits = self._limiter.wait_s(environ["REMOTE_ADDR"]) > 0
        if not wanted or waits:
            return BodyAllowance()
        most = self._most(environ)
        return BodyAllowance(most, known=most > MAX_BODY)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        address, path = environ["REMOTE_ADDR"], environ["PATH_INFO"]
        try:
            status, content = HTTPStatus.OK, self._answer(environ)
        except (Refusal, ApiaryError) as e:
            status = e.status if isinstance(e, Refusal) else HTTPStatus.BAD_REQUEST
            content, level = str(e).encode(errors="replace"), logging.DEBUG
            if status != HTTPStatus.TOO_MANY_REQUESTS:
                self._limiter.failed(address)
                level = logging.WARNING
            log.log(level, "pki: %s: %s refused: %s", address, path[:100], e)
        except Exception:
            # A bug of ours, which a stranger may call for again and again: it counts as what is refused.
            log.exception("pki: %s: %s failed", address, path[:100])
            self._limiter.failed(address)
            status, content = (
                HTTPStatus.INTERNAL_SERVER_ERROR,
                b"the service failed at it; its log says where",
            )
        kind = "application/x-pem-file" if status == HTTPStatus.OK else "text/plain; charset=utf-8"
        headers = [("Content-Type", kind), ("Content-Length", str(len(content)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else content]

    def _answer(self, environ: Environ) -> bytes:
        if self._limiter.wait_s(environ["REMOTE_ADDR"]) > 0:
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"refused too often: wait {PER_ADDRESS_S:.0f} s")
        path = environ["PATH_INFO"]
        if path not in _ROUTES:
            raise Refusal(HTTPStatus.NOT_FOUND, "GET /v1/ca, POST /v1/join, POST /v1/renew")
        if environ["REQUEST_METHOD"] not in _ROUTES[path]:
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"expected {_ROUTES[path][0]} {path}")
        if path == "/v1/trust":
            return self._enrolment.ca.trust().encode()
        if path == "/v1/ca":
            return only_former(self._enrolment.ca.trust()).encode()
        body, serial = _body(environ, self._most(environ)), _serial(environ.get("apiary.certificate"))
        if path == "/v1/crl":
            return f"{self._enrolment.absorb(body, serial)} certificates are revoked again\n".encode()
        made = self._enrolment.join(body) if path == "/v1/join" else self._enrolment.renew(body, serial)
        subject = made.certificates[0].subject.rfc4514_string()
        log.info("pki: %s: certificates for %r", environ["REMOTE_ADDR"], subject)
        return made.encode()

    def _most(self, environ: Environ) -> int:
        """Bytes that a request's body may have: a list is long, and comes from those only who belong here."""
        known = environ["PATH_INFO"] == "/v1/crl" and self._enrolment.knows(
            _serial(environ.get("apiary.certificate"))
        )
        return MAX_LIST_BODY if known else MAX_BODY


def _body(environ: Environ, most: int) -> dict[str, Any]:
    length = int(environ.get("CONTENT_LENGTH", "0"))
    if not 0 < length <= most:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of 1 to {most} bytes")
    try:
        body = json.loads(environ["wsgi.input"].read(length))
    except (ValueError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is no JSON object")
    return body


def _serial(certificate: Mapping[str, Any] | None) -> str | None:
    """Of the certificate that the peer showed; as the index has it."""
    if not certificate or "serialNumber" not in certificate:
        return None
    return str(certificate["serialNumber"]).lower().lstrip("0")


def serve(ca: CaFolder, settings: Settings, *, as_json: bool = False) -> int:
    """Run until a signal. Raises SettingsError where the address cannot be had."""
    notifier = Notifier.from_environment(os.environ, time.monotonic)
    context = make_context(ca, settings)
    service = make_service(ca, settings, context)
    port = service.port
    host = settings.pki.listen or socket.gethostname()
    line = f"devices join at {url('https', host, port)} with --ca-sha256 {ca.trusted_sha256}"
    print(json.dumps({"port": port, "ca_sha256": ca.trusted_sha256}) if as_json else line, flush=True)
    with stop_on_signals() as stop:
        thread = threading.Thread(target=service.run, daemon=True)
        thread.start()
        notifier.ready(f"devices join and renew on port {port}")
        looked_at = time.monotonic()
        seen = _stamps(ca)
        while not stop() and thread.is_alive() and _stamps(ca) == seen:
            thread.join(0.2)
            if time.monotonic() - looked_at > LOOK_S:
                looked_at = time.monotonic()
                _look_after(ca, settings, context)
    notifier.stopping()
    notifier.close()
    service.close()
    thread.join(1.0)
    if _stamps(ca) != seen:
        raise NotReady("the authority was replaced: this service has to start again, with the new one")
    return stop.exit_code


def _stamps(ca: CaFolder) -> tuple[object, ...]:
    return tuple(stamp(ca.folder / name) for name in ("ca.key", "ca.pem", "phase"))


def make_context(ca: CaFolder, settings: Settings) -> ssl.SSLContext:
    """How the service shows itself; its own certificate is renewed where it is due. Unlocks the key."""
    _ = ca.authority  # read now, so that a wrong passphrase is an error at the start
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    show_certificate(ca, settings, context, at_start=True)
    # Shown to renew; whether it still holds is in the index.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=_all_authorities(ca))
    return context


def _all_authorities(ca: CaFolder) -> str:
    """The former one too, even if it is not trusted any more: a party that was off shows its certificate."""
    known = [ca.certificate, *([ca.former.certificate] if ca.former is not None else [])]
    return "".join(c.public_bytes(Encoding.PEM).decode() for c in known)


def make_service(ca: CaFolder, settings: Settings, context: ssl.SSLContext | None = None) -> HttpServer:
    """The service, listening. Raises SettingsError."""
    context = context or make_context(ca, settings)
    app = EnrolmentApp(Enrolment(ca, settings))
    listen = settings.pki.listen
    try:
        return HttpServer(app, listen, settings.pki.port, allowance=app.allowance, context=context)
    except OSError as e:
        raise NotReady(
            f"cannot listen on {listen or '*'}:{settings.pki.port}: {e.strerror}; set pki.listen and pki.port"
        ) from None


def _look_after(ca: CaFolder, settings: Settings, context: ssl.SSLContext) -> None:
    """What a service that runs for years does by itself. A clock that jumped is logged, and ends nothing."""
    try:
        ca.keep_time()
        show_certificate(ca, settings, context)
    except ApiaryError as e:
        log.error("pki: %s", e)


def show_certificate(
    ca: CaFolder, settings: Settings, context: ssl.SSLContext, *, at_start: bool = False
) -> None:
    """Have `context` show the service's own certificate to who connects next, a new one where it is due."""
    own = ca.folder / ENROLMENT
    Device(own, (KeyUse.SERVER,)).settle()
    index = ca.index()
    due = all(i.due(time.time()) for i in index.standing(ENROLMENT, ca.wall()))
    if index.phase != "devices" and ENROLMENT in index.still_former(ca.wall(), servers=True):
        due = True
    if due:
        _make_certificate(ca, settings, own)
    if due or at_start:
        pair = own / "tls" / "cert.pem", own / "tls" / "key.pem"
        try:
            context.load_cert_chain(*pair)
        except OSError as e:  # also ssl.SSLError: the two do not fit, or one is not whole
            log.warning("pki: %s: %s: it is made anew", pair[0], e)
            _make_certificate(ca, settings, own)
            context.load_cert_chain(*pair)


def _make_certificate(ca: CaFolder, settings: Settings, own: Path) -> None:
    fresh = (own / "tls" / "cert.pem").exists()
    make_here(
        ca, Identity(ENROLMENT, Role.SERVER), (KeyUse.SERVER,), own, settings.pki.days,
        permit=always, names=[socket.gethostname()], new_keys=fresh,
    )  # fmt: skip
    log.info("pki: a new certificate for the service itself")
