"""The sub-commands of `apiary pki` for a device: request, install, join, renew."""

import argparse
import base64
import getpass
import http.client
import json
import logging
import ssl
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from apiary.addresses import read_https
from apiary.errors import ServiceUnreachable, SettingsError, WireError
from apiary.files import write_atomic
from apiary.identity.authority import KeyUse
from apiary.identity.certificates import identity_of
from apiary.identity.roles import Identity, Role
from apiary.identity.succession import vouched
from apiary.printable import printable
from apiary.settings import Settings
from apiary_cli.pki.device import MAX_PEM_BYTES, USES, Device, IssuedFiles, plain_sha256, read_answer
from apiary_cli.pki.folder import ENROLMENT
from apiary_cli.pki.index import RENEWABLE
from apiary_cli.pki.tokens import MAX_TOKEN, checked_token, given_token
from apiary_cli.terminal.flags import print_result, read

_TIMEOUT_S: Final = 20.0
_PAUSE_S: Final = 5.0
_MAX_TOKEN_FILE_BYTES: Final = 4096
log = logging.getLogger(__name__)


def request(args: argparse.Namespace, settings: Settings) -> int:
    """Keys here, and a request for their certificates."""
    del settings
    device = Device(args.dir, USES[Role(args.role)], args.owner)
    pem = device.request(args.name, renew=args.new_keys)
    if args.out is not None:
        write_atomic(args.out, pem)
    elif not args.json:
        sys.stdout.write(pem.decode())
    if args.json:
        out = {"out": str(args.out)} if args.out else {"request": pem.decode()}
        print(json.dumps({"name": args.name, "dir": str(args.dir), **out}))
    return 0


def install(args: argparse.Namespace, settings: Settings) -> int:
    """Certificates from a file."""
    del settings
    device = Device(args.dir, USES[Role(args.role)], args.owner)
    answer = read_answer(read(args.file), str(args.file))
    return _report(args, device, device.install(answer, ca_sha256=args.ca_sha256))


def join(args: argparse.Namespace, settings: Settings) -> int:
    """Keys here, certificates from the service, for a token."""
    name = args.name or settings.edge.node_id
    token = _token(args)
    device = Device(args.dir, USES[Role(args.role)], args.owner)
    body = {"name": name, "role": args.role, "token": token, "request": device.request(name).decode()}
    body["bundle"] = True
    end = time.monotonic() + args.wait
    while True:
        try:
            service = _Service(args.url, _pem(_pinned(args.url, args.ca_sha256)))
            answer = service.post("/v1/join", body)
            break
        except ServiceUnreachable as e:
            if time.monotonic() + _PAUSE_S > end:
                raise
            log.warning("%s; trying again", e)
            time.sleep(_PAUSE_S)
    device.install(answer)
    if args.token_file is not None:
        args.token_file.unlink(missing_ok=True)
    return _report(args, device, name)


def renew(args: argparse.Namespace, settings: Settings) -> int:
    """New keys here, certificates from the service, for the ones in use; nothing where they are not due."""
    del settings
    folder = args.dir or Path("/etc/apiary")
    whom = identity_of(Device(folder, (KeyUse.CLIENT,)).certificate(KeyUse.CLIENT))
    device = Device(folder, USES[whom.role], args.owner)
    device.settle()
    old = device.certificate(device.uses[0])
    tls = folder / "tls"
    over = old.not_valid_after_utc.timestamp() < time.time()
    # A server's certificate, and one that is over, open no connection: the key signs the request instead.
    pair = None if over or whom.role is Role.SERVER else (tls / "cert.pem", tls / "key.pem")
    service = _Service(args.url, _pem(_trusted(args.url, device.authorities())), pair)
    lists = _lists(device, service)
    # One of an authority that has a successor is exchanged at once; a server's when its operator says so.
    newest = lists.authorities[0]
    former = whom.role is not Role.SERVER and old.issuer != newest.subject
    if not args.force and not former and not _due(old):
        # The list of revoked certificates may be newer all the same.
        device.store_lists(lists)
        note = "the list of revoked certificates is new; its own are not due yet and hold"
        return _report(args, device, whom.name, note=note)
    pem = device.request(whom.name, renew=True)
    body: dict[str, Any] = {"request": pem.decode(), "force": args.force or former, "bundle": True}
    if pair is None:
        body["certificate"] = old.public_bytes(Encoding.PEM).decode()
        body["proof"] = base64.b64encode(device.proof(device.uses[0], pem)).decode()
    device.install(service.post("/v1/renew", body))
    return _report(args, device, whom.name)


def _lists(device: Device, service: "_Service") -> IssuedFiles:
    """What the authority has revoked, after it got back what it forgot and this device still knows."""
    answer = service.trust()
    if service.pair is None or (held := device.forgotten(answer)) is None:
        return answer
    try:
        service.give_back(held)
    except WireError as e:
        log.warning("the authority does not know of certificates that were revoked; they stay so here: %s", e)
        return answer
    return service.trust()


@dataclass(frozen=True, slots=True)
class _Service:
    """The enrolment service at `url`; its certificate identifies it, whatever name it is reached by."""

    url: str
    ca_pem: str
    pair: tuple[Path, Path] | None = None
    """Certificate and key that this device shows."""

    def trust(self) -> IssuedFiles:
        """The authorities and their lists."""
        return _bundle(self.url, self._verified())

    def give_back(self, lists: bytes) -> None:
        """A list of revoked certificates that the authority forgot. Raises WireError where it refuses."""
        body = json.dumps({"crl": lists.decode()}).encode()
        _ask(self.url, "POST", "/v1/crl", body, self._verified())

    def post(self, path: str, body: dict[str, Any]) -> IssuedFiles:
        """What the service gives for `body`. Raises WireError with its own words where it refuses."""
        return read_answer(
            _ask(self.url, "POST", path, json.dumps(body).encode(), self._verified()), self.url
        )

    def _verified(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca_pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Its name in the certificate is checked in `_ask`; by which address it is reached does not matter.
        context.check_hostname = False
        if self.pair is not None:
            context.load_cert_chain(*self.pair)
        return context


def _pinned(url: str, ca_sha256: str) -> list[x509.Certificate]:
    """The authorities, from somebody unknown: the one that they should be, and who comes after it."""
    expected = plain_sha256(ca_sha256)
    offered = _bundle(url)
    prints = {ca.fingerprint(hashes.SHA256()).hex(): ca for ca in offered.authorities}
    if expected not in prints:
        raise WireError(
            f"{url} has an authority with the fingerprint {next(iter(prints))}, expected {expected}: is it "
            "the right service, and nobody between? No token was sent"
        )
    return _with_successors([prints[expected]], offered)


def _trusted(url: str, known: list[x509.Certificate]) -> list[x509.Certificate]:
    """The authorities that this device knows, and who comes after them by their own word."""
    return _with_successors(known, _bundle(url))


def _with_successors(known: list[x509.Certificate], offered: IssuedFiles) -> list[x509.Certificate]:
    good = vouched(known, offered.authorities, offered.links, datetime.now(UTC))
    return [*known, *(ca for ca in good if ca not in known)]


def _bundle(url: str, context: ssl.SSLContext | None = None) -> IssuedFiles:
    """The authorities, their links and lists; without a context from somebody unknown, to be checked."""
    named = context is not None
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing but public certificates pass, and they are checked
    try:
        pem = _ask(url, "GET", "/v1/trust", None, context, named=named)
    except WireError:
        pem = _ask(url, "GET", "/v1/ca", None, context, named=named)  # the service is of the version before
    return read_answer(pem, url)


def _pem(authorities: list[x509.Certificate]) -> str:
    return "".join(ca.public_bytes(Encoding.PEM).decode() for ca in authorities)


def _ask(
    url: str, verb: str, path: str, body: bytes | None, context: ssl.SSLContext, *, named: bool = True
) -> bytes:
    try:
        where = read_https(url)
    except ValueError as e:
        raise SettingsError(f"{e} of `apiary pki serve`") from None
    connection = http.client.HTTPSConnection(where.host, where.port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.connect()
        if named:
            _check_name(url, connection.sock)
        connection.request(verb, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        received = response.read(MAX_PEM_BYTES)
    except ssl.SSLCertVerificationError as e:
        raise WireError(
            f"{url}: its certificate does not hold: {e.verify_message}; check this machine's "
            "clock, and that one's"
        ) from None
    except ssl.SSLError as e:
        raise WireError(f"{url}: no TLS session: {e.reason or e}; is this device's own expired?") from None
    except (OSError, http.client.HTTPException) as e:
        raise ServiceUnreachable(f"{url}: no answer: {e}; does `apiary pki serve` run there?") from None
    finally:
        connection.close()
    if response.status != 200:
        words = printable(received[:300].decode(errors="replace").strip())
        raise WireError(f"{url} refuses: {words}")
    return received


def _check_name(url: str, sock: Any) -> None:
    shown = x509.load_der_x509_certificate(sock.getpeercert(binary_form=True))
    try:
        who = identity_of(shown)
    except ValueError as e:
        raise WireError(f"{url}: {e}") from None
    if who != Identity(ENROLMENT, Role.SERVER):
        raise WireError(f"{url} is {who}, expected the enrolment service")


def _token(args: argparse.Namespace) -> str:
    """From a file, otherwise standard input: what is typed as a flag, every user of this machine can see."""
    if (token := given_token(args)) is not None:
        return token
    if sys.stdin.isatty():
        return checked_token(getpass.getpass("token: "))
    return checked_token(sys.stdin.readline(MAX_TOKEN + 1))


def _due(certificate: x509.Certificate) -> bool:
    term = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return time.time() > (certificate.not_valid_after_utc - term * RENEWABLE).timestamp()


def _report(args: argparse.Namespace, device: Device, name: str, note: str | None = None) -> int:
    certificate = device.certificate(device.uses[0])
    until, folder = certificate.not_valid_after_utc, str(device.folder)
    print_result(
        args,
        {"name": name, "dir": folder, "not_after": until.timestamp(), "renewed": note is None},
        f"{name}: {note or 'certificates'} until {until:%Y-%m-%d}, in {folder}",
    )
    return 0
