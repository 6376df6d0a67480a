"""Messages sealed by who sent them (Ed25519, RFC 8032). Pure: time, counters and certificates come in.

A sealed message is its JSON object with three last keys, in this order and spelling:
`,"issued":MS,"cert":"BASE64 DER","sig":"BASE64"}`. The signature covers `apiary-1`, a line feed, the topic,
a line feed, and the message's bytes up to before `,"sig"`: bytes as they are, so nothing is made canonical.
The certificate travels along; who verifies needs the fleet's authority and its list of revoked ones only.
`issued` is in milliseconds since 1970 and grows with every message that its signer seals. One that is more
than a day ahead of the receiver's clock is refused: whoever signs once with a number from the next century
would otherwise shut its name out until then.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from apiary.errors import (
    MessageAhead,
    MessageAltered,
    MessageRepeated,
    MessageUnsigned,
    SignatureRefused,
)
from apiary.identity.certificates import SIGNING_USE, Trust, identity_of
from apiary.identity.roles import Identity, Role

MAX_SEAL_BYTES: Final = 4_096 + 160
"""What sealing adds to a message at most; a certificate has at most 3,072 bytes of it, ours about 450."""
MAX_AHEAD: Final = timedelta(days=1)
"""How far a signer's clock may be ahead of a receiver's."""
_CONTEXT: Final = b"apiary-1\n"
_SIG_BYTES: Final = len(',"sig":""}') + 88
_TAIL: Final = re.compile(
    rb',"issued":(0|[1-9][0-9]{0,15}),"cert":"([A-Za-z0-9+/]{4,4096}={0,2})","sig":"([A-Za-z0-9+/]{86}==)"\}\Z'
)
_SHORTEST: Final = len(b'{"":0}')
"""Of an object with a key."""
_CACHED: Final = 256
"""Certificates that are kept read."""


class Marks(Protocol):
    """The newest `issued` heard of each signer on each topic; survives a restart."""

    def admit(self, signer: str, topic: str, issued: int, *, key: str = "", since: int = 0) -> int:
        """Remember `issued` if it is the newest; returns the number that counts so far (0: none).

        `key` names the signer's key, certified from `since` on (seconds since 1970). A key that was certified
        later begins anew: what was signed with a stolen one binds nobody who has a new certificate.
        """


class Signer:
    """Seals messages with a key and its certificate. `issue` gives larger numbers, over restarts too."""

    def __init__(self, key: Ed25519PrivateKey, certificate: x509.Certificate, issue: Callable[[], int]):
        if key.public_key() != certificate.public_key():
            raise ValueError("the signing key and the signing certificate do not belong together")
        self.identity = identity_of(certificate)
        self.certificate = certificate
        self._key = key
        self._issue = issue
        self._encoded = base64.b64encode(certificate.public_bytes(Encoding.DER))

    def seal(self, topic: str, payload: bytes) -> bytes:
        """`payload`, a JSON object with a key at least, with its signer, `topic`, time and signature."""
        if not payload.startswith(b"{") or not payload.endswith(b"}") or len(payload) < _SHORTEST:
            raise ValueError(f"{topic}: only a JSON object with a key can be sealed")
        body = b'%b,"issued":%d,"cert":"%b"' % (payload[:-1], self._issue(), self._encoded)
        signature = base64.b64encode(self._key.sign(_covered(topic, body)))
        return b'%b,"sig":"%b"}' % (body, signature)


class Verifier:
    """Opens sealed messages. `trust` may be replaced at any time, by a newer list of revoked certificates."""

    def __init__(
        self,
        trust: Trust,
        marks: Marks,
        now: Callable[[], datetime],
        *,
        max_ahead: timedelta | None = MAX_AHEAD,
    ):
        """`max_ahead` None: for a machine without a clock, whose messages have numbers of their own."""
        self.trust = trust
        self._marks = marks
        self._now = now
        self._max_ahead = max_ahead

    def open(self, topic: str, payload: bytes, *, role: Role, name: str | None = None) -> bytes:
        """The message as it was before it was sealed. Raises SignatureRefused saying who and why.

        It must come from a `role`, from `name` where one is given, and not be older than what its signer
        signed for `topic` before; the same message once more is no offence.
        """
        expected = str(Identity(name, role)) if name else f"a certificate of the role {role}"
        found = _TAIL.search(payload, len(payload) - MAX_SEAL_BYTES)
        if found is None or found.start() < _SHORTEST - 1:
            raise MessageUnsigned(
                f"{topic}: not signed, expected the signature of {expected}; does its sender "
                "have security.cert and security.key set?"
            )
        issued, encoded, signature = int(found[1]), found[2], found[3]
        try:
            certificate, signer, key, key_id = _signing_certificate(encoded)
        except ValueError as e:
            raise SignatureRefused(f"{topic}: {e}") from None
        if signer.role != role or (name is not None and signer.name != name):
            raise SignatureRefused(f"{topic}: signed by {signer}, expected {expected}")
        now = self._now()
        if (why := self.trust.refusal(certificate, now)) is not None:
            raise SignatureRefused(f"{topic}: signed by {signer}, whose certificate is {why}")
        try:
            key.verify(_exact(signature), _covered(topic, payload[:-_SIG_BYTES]))
        except (InvalidSignature, ValueError):
            raise MessageAltered(
                f"{topic}: the signature of {signer} does not fit the message: it was changed on its way, "
                "or sent on another topic"
            ) from None
        if self._max_ahead is not None and issued > (now + self._max_ahead).timestamp() * 1000:
            raise MessageAhead(
                f"{topic}: {signer} issued it at {_date(issued)}, more than {self._max_ahead.days} day ahead "
                f"of the clock here ({now:%Y-%m-%d %H:%M}): one of the two is wrong; what it issues counts "
                "again once they agree"
            )
        since = int(certificate.not_valid_before_utc.timestamp())
        newest = self._marks.admit(signer.name, topic, issued, key=key_id, since=since)
        if issued < newest:
            raise MessageRepeated(
                f"{topic}: a repetition: {signer} issued it at {issued}, and at {newest} something newer"
            )
        return payload[: found.start()] + b"}"


@lru_cache(_CACHED)
def _signing_certificate(encoded: bytes) -> tuple[x509.Certificate, Identity, Ed25519PublicKey, str]:
    """A certificate in base64, whom and what it names, its key's id. Raises ValueError, which is not kept."""
    try:
        certificate = x509.load_der_x509_certificate(_exact(encoded))
        signer = identity_of(certificate)
        key = certificate.public_key()
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension) as e:
        raise ValueError(f"its certificate cannot be used: {str(e)[:200]}") from None
    if not isinstance(key, Ed25519PublicKey) or SIGNING_USE not in uses:
        raise ValueError(
            f"the certificate of {signer} is not one for signing messages "
            "(security.cert names the signing certificate, broker.tls_cert the one for TLS)"
        )
    return certificate, signer, key, hashlib.sha256(key.public_bytes_raw()).hexdigest()[:32]


def _date(issued_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(issued_ms / 1000, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):  # sixteen digits reach beyond the year 9999
        return f"{issued_ms} ms"


def _covered(topic: str, body: bytes) -> bytes:
    return b"%b%b\n%b" % (_CONTEXT, topic.encode(), body)


def _exact(encoded: bytes) -> bytes:
    """Decode base64 that is spelled in the one right way. Raises ValueError."""
    decoded = base64.b64decode(encoded)
    if base64.b64encode(decoded) != encoded:
        raise ValueError("base64 spelled in an unusual way")
    return decoded
