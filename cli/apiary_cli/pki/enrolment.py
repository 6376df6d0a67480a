"""What the enrolment service grants and refuses; knows nothing of HTTP or TLS."""

import base64
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from apiary.attempt_limiter import AttemptLimiter
from apiary.identity.authority import KeyUse, PublicKey
from apiary.identity.roles import Identity, Role
from apiary.settings import Settings
from apiary_cli.pki import broker_files
from apiary_cli.pki.device import USES, IssuedFiles, only_former, read_request, to_sign
from apiary_cli.pki.folder import CaFolder, unless_taken
from apiary_cli.pki.index import Index, Issued
from apiary_cli.pki.tokens import Tokens

MAX_BODY: Final = 32_768
MAX_LIST_BODY: Final = 2**20
"""Of a list of revoked certificates, about 20,000; from a party with a valid certificate only."""
PER_ADDRESS: Final = 10
PER_ADDRESS_S: Final = 60.0
"""Refused requests of one address in this time; then it waits."""
MAX_ADDRESSES: Final = 10_000
MAX_RENEWALS: Final = 3
"""Certificates of one party that are not due yet: answers can be lost, but not more than these."""
log = logging.getLogger(__name__)


class Refusal(Exception):  # noqa: N818 - an answer to a peer, not an error of ours
    """A request that is refused: the HTTP status and the reason for the peer."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


def limiter(clock: Callable[[], float] = time.monotonic) -> AttemptLimiter:
    """Refuses an address that was refused `PER_ADDRESS` times within `PER_ADDRESS_S`."""
    return AttemptLimiter(
        lambda refused: refused[-PER_ADDRESS] + PER_ADDRESS_S if len(refused) >= PER_ADDRESS else 0.0,
        clock,
        MAX_ADDRESSES,
    )


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Decides about requests; knows nothing of HTTP."""

    ca: CaFolder
    settings: Settings

    def join(self, body: dict[str, Any]) -> IssuedFiles:
        """Certificates for a device that shows a token. Raises Refusal."""
        name, token = _text(body, "name", 64), _text(body, "token", 100)
        whom = Identity(name, _role(body))
        keys = _keys(body, whom)
        der = b"".join(k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for _, k in keys)
        tokens = Tokens(self.ca.folder)
        again = tokens.take(token, whom, hashlib.sha256(der).hexdigest())
        refused = Refusal(HTTPStatus.FORBIDDEN, f"no such token for {whom}, or it was used, or is over")
        if again is None:
            raise refused

        def permit(index: Index, at: float) -> None:
            # `revoke` takes the token back first: what it did not find yet, it shall not miss either.
            if not tokens.holds(token):
                raise refused
            unless_taken(whom, again=True)(index, at)

        plain = not body.get("bundle")
        days = self.settings.pki.days
        made = self.ca.issue(whom, keys, days, permit=permit, replace_old=again, plain=plain)
        if again or whom.role is not Role.NODE:
            for trouble in broker_files.apply(self.ca, self.settings):
                log.error("%s", trouble)
        return self._answer(made, plain)

    def renew(self, body: dict[str, Any], shown: str | None) -> IssuedFiles:
        """New certificates for who shows the one with the serial `shown`. Raises Refusal.

        What cannot be shown, because it is a server's or over, proves itself by a signature of its key.
        """
        serial = shown
        use = "client"
        if serial is None and "proof" in body:
            serial = self._proved(body)
            use = next(i.use for i in self.ca.issued() if i.serial == serial)
        force = bool(body.get("force"))
        proved = "proof" in body and shown is None
        old = _renewable(self.ca.index(), self.ca.wall(), serial, use, force=force, proved=proved)
        keys = _keys(body, old.identity)

        def permit(index: Index, now: float) -> None:
            # Once more, now that nobody can revoke it in between.
            _renewable(index, now, serial, use, force=force, proved=proved)
            unless_taken(old.identity, again=True)(index, now)

        plain, days = not body.get("bundle"), self.settings.pki.days
        made = self.ca.issue(old.identity, keys, days, permit=permit, names=old.names, plain=plain)
        return self._answer(made, plain)

    def _answer(self, made: list[x509.Certificate], plain: bool) -> IssuedFiles:
        answer = self.ca.answer(made)
        # The version before takes one authority from an answer: the one that signed.
        return only_former(answer) if plain else answer

    def absorb(self, body: dict[str, Any], serial: str | None) -> int:
        """Take back a list of this authority that names what the present one does not. Raises Refusal."""
        if not self.knows(serial):
            raise Refusal(HTTPStatus.FORBIDDEN, "a list is taken from who shows a valid certificate")
        try:
            found = self.ca.absorb(_text(body, "crl", MAX_LIST_BODY).encode())
        except ValueError as e:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"'crl': {str(e)[:100]}") from None
        if found:
            log.warning("pki: %d certificates were revoked by a list that was forgotten here", found)
            for trouble in broker_files.apply(self.ca, self.settings, revoked=self.ca.revoked_names()):
                log.error("%s", trouble)
        return found

    def knows(self, serial: str | None) -> bool:
        """Whether this is the serial number of a certificate that is valid now."""
        now = self.ca.wall()
        return any(i.serial == serial and i.state(now) == "valid" for i in self.ca.issued())

    def _proved(self, body: dict[str, Any]) -> str:
        """The serial of the certificate whose key signed this request. Raises Refusal."""
        try:
            shown = x509.load_pem_x509_certificate(_text(body, "certificate", MAX_BODY).encode())
            proof = base64.b64decode(_text(body, "proof", 1_000), validate=True)
            key = shown.public_key()
            if not isinstance(key, EllipticCurvePublicKey):
                raise InvalidSignature
            key.verify(proof, to_sign(_text(body, "request", MAX_BODY).encode()), ECDSA(SHA256()))
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise Refusal(
                HTTPStatus.FORBIDDEN, "the request is not signed by the key of that certificate"
            ) from None
        serial = f"{shown.serial_number:x}"
        # A serial alone is a number that anybody may put into a certificate of his own.
        known = {i.serial: i.sha256 for i in self.ca.issued()}
        if known.get(serial) != shown.fingerprint(SHA256()).hex():
            raise Refusal(HTTPStatus.FORBIDDEN, "no certificate of this authority")
        return serial


def _renewable(
    index: Index, now: float, serial: str | None, use: str, *, force: bool, proved: bool
) -> Issued:
    """The certificate with `serial`, which may be renewed at `now`. Raises Refusal."""
    old = next((i for i in index.issued if i.serial == serial and i.use == use), None)
    state = old.state(now) if old is not None else "unknown"
    if old is not None and state == "expired" and not index.readmits(old, now):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"the certificate of {old.identity} is over: `apiary pki readmit {old.name}` on the server lets "
            "it renew by itself",
        )
    if old is None or state == "revoked" or (state == "valid" and proved and use != "server"):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            "renewing needs the certificate in use, and a valid one: join with a new token otherwise",
        )
    newer = [i for i in index.standing(old.name, now) if i.use == use and not i.due(now)]
    if newer and not force and not old.due(now):
        raise Refusal(HTTPStatus.CONFLICT, "not due yet")
    if len(newer) > MAX_RENEWALS:
        raise Refusal(HTTPStatus.CONFLICT, "renewed several times lately: use what came, or join anew")
    return old


def _keys(body: dict[str, Any], whom: Identity) -> list[tuple[KeyUse, PublicKey]]:
    return read_request(_text(body, "request", MAX_BODY).encode(), whom.name, USES[whom.role])


def _text(body: dict[str, Any], key: str, most: int) -> str:
    value = body.get(key)
    # JSON can spell half a character (a lone surrogate), which no UTF-8 can carry on.
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isascii():
        raise Refusal(
            HTTPStatus.BAD_REQUEST, f"{key!r} is missing, or not an ASCII text of at most {most} characters"
        )
    return value


def _role(body: dict[str, Any]) -> Role:
    try:
        role = Role(body.get("role", "node"))
    except ValueError:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"'role' is {str(body.get('role'))[:40]!r}") from None
    if role is Role.SERVER:
        raise Refusal(HTTPStatus.FORBIDDEN, "a server is enrolled by hand")
    return role
