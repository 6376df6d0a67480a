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
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from apiary.attempt_limiter import AttemptLimiter
from apiary.identity.authority import KeyUse, PublicKey
from apiary.identity.roles import Identity, Role
from apiary.settings import Settings
from apiary_cli.pki import broker_files
from apiary_cli.pki.device import USES, IssuedFiles, read_request, to_sign
from apiary_cli.pki.folder import CaFolder
from apiary_cli.pki.tokens import Tokens

MAX_BODY: Final = 32_768
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
        again = Tokens(self.ca.folder).take(token, whom, hashlib.sha256(der).hexdigest())
        if again is None:
            raise Refusal(HTTPStatus.FORBIDDEN, f"no such token for {whom}, or it was used, or is over")
        self.ca.check_free(whom, again=True)
        made = self.ca.issue(whom, keys, self.settings.pki.days, replace_old=again)
        if again or whom.role is not Role.NODE:
            for trouble in broker_files.apply(self.ca, self.settings):
                log.error("%s", trouble)
        return self.ca.answer(made)

    def renew(self, body: dict[str, Any], serial: str | None) -> IssuedFiles:
        """New certificates for who shows the one with `serial`, or proves to be a server. Raises Refusal."""
        now = time.time()
        use = "client"
        if serial is None and "proof" in body:
            serial, use = self._proved(body), "server"
        old = next((i for i in self.ca.issued() if i.serial == serial and i.use == use), None)
        if old is None or old.state(now) != "valid":
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "renewing needs the certificate in use, and a valid one: join with a new token otherwise",
            )
        newer = [i for i in self.ca.standing(old.name) if i.use == use and not i.due(now)]
        if newer and not body.get("force") and not old.due(now):
            raise Refusal(HTTPStatus.CONFLICT, "not due yet")
        if len(newer) > MAX_RENEWALS:
            raise Refusal(HTTPStatus.CONFLICT, "renewed several times lately: use what came, or join anew")
        keys = _keys(body, old.identity)
        self.ca.check_free(old.identity, again=True)
        return self.ca.answer(self.ca.issue(old.identity, keys, self.settings.pki.days, names=old.names))

    def _proved(self, body: dict[str, Any]) -> str:
        """The serial of the certificate whose key signed this request. Raises Refusal."""
        try:
            shown = x509.load_pem_x509_certificate(_text(body, "certificate", MAX_BODY).encode())
            proof = base64.b64decode(_text(body, "proof", 1_000), validate=True)
            key = shown.public_key()
            if not isinstance(key, EllipticCurvePublicKey):
                raise InvalidSignature
            key.verify(proof, to_sign(_text(body, "request", MAX_BODY).encode()), ECDSA(SHA256()))
        except (ValueError, InvalidSignature):
            raise Refusal(
                HTTPStatus.FORBIDDEN, "the request is not signed by the key of that certificate"
            ) from None
        serial = f"{shown.serial_number:x}"
        # A serial alone is a number that anybody may put into a certificate of his own.
        known = {i.serial: i.sha256 for i in self.ca.issued()}
        if known.get(serial) != shown.fingerprint(SHA256()).hex():
            raise Refusal(HTTPStatus.FORBIDDEN, "no certificate of this authority")
        return serial


def _keys(body: dict[str, Any], whom: Identity) -> list[tuple[KeyUse, PublicKey]]:
    return read_request(_text(body, "request", MAX_BODY).encode(), whom.name, USES[whom.role])


def _text(body: dict[str, Any], key: str, most: int) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise Refusal(
            HTTPStatus.BAD_REQUEST, f"{key!r} is missing, or not a text of at most {most} characters"
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
