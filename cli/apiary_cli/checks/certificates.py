"""What `apiary doctor` looks at in certificates: ends, the clock, names, keys, modes, the authority."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.addresses import is_loopback
from apiary.errors import ApiaryError
from apiary.settings import SecuritySettings, Settings
from apiary_cli.checks.machine import Check

if TYPE_CHECKING:
    from cryptography import x509

    from apiary.identity.certificates import Trust

_RENEW: Final = "apiary pki renew --url https://HOST:8443 (daily, by a timer)"
_JOIN: Final = "apiary pki join with a new token"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def certificates(settings: Settings, name: str | None, now: datetime | None = None) -> Iterator[Check]:
    """Findings about TLS and signing; `name` is what the certificates must name, where that is known."""
    broker, security = settings.broker, settings.security
    if not broker.tls and not all(is_loopback(address.host) for address in broker.addresses):
        yield Check(
            "tls", "warn", f"broker.tls is off, and the broker is {broker.names}",
            "beyond one machine everything can be read and changed on the way: docs/security.md",
        )  # fmt: skip
    now = now or datetime.now(UTC)
    if broker.tls_cert is not None and broker.tls_key is not None:
        crl = security.crl if broker.tls_ca is not None and broker.tls_ca == security.ca else None
        trust = SecuritySettings(ca=broker.tls_ca, crl=crl)
        yield from _pair("certificate", broker.tls_cert, broker.tls_key, trust, name=name, now=now)
    if security.cert is not None and security.key is not None:
        yield from _pair("signing", security.cert, security.key, security, name=name, now=now)


def _pair(
    what: str, cert: Path, key: Path, trust: SecuritySettings, *, name: str | None, now: datetime
) -> Iterator[Check]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from apiary.identity.credentials import load_trust

    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
        fits = load_pem_private_key(key.read_bytes(), None).public_key() == certificate.public_key()
    except (OSError, ValueError, TypeError) as e:
        yield Check(what, "fail", f"{cert}, {key}: {e}", "apiary pki join, or install, writes both")
        return
    yield _mode(what, key)
    if not fits:
        yield Check(what, "fail", f"{cert} and {key} do not belong together", "apiary pki install ANSWER")
        return
    authority = None
    if trust.ca is not None:
        try:
            authority = load_trust(trust)
        except ApiaryError as e:
            yield Check(what, "fail", str(e), "correct the setting that names it")
            return
    yield _holds(what, certificate, authority, name, now)


def _holds(
    what: str, certificate: x509.Certificate, trust: Trust | None, name: str | None, now: datetime
) -> Check:
    from apiary.identity.certificates import identity_of

    try:
        whom = identity_of(certificate)
    except ValueError as e:
        # One that `apiary pki` did not make; the broker may take it all the same.
        subject = certificate.subject.rfc4514_string()[:100]
        return Check(what, "warn", f"{subject}: {e}", "apiary pki makes one")
    if name is not None and whom.name != name:
        return Check(
            what, "fail", f"it is that of {whom}, and edge.node_id is {name!r}",
            "the broker and the coordinator would refuse it: correct edge.node_id, or join under that name",
        )  # fmt: skip
    until = certificate.not_valid_after_utc
    if trust is not None and (why := trust.refusal(certificate, now)) is not None:
        early = "not valid before" in why
        return Check(what, "fail", f"{whom}: {why}", "set the clock (timedatectl)" if early else _JOIN)
    if now > until:
        return Check(what, "fail", f"{whom}: expired at {until:%Y-%m-%d}", _JOIN)
    left = (until - now).days
    validity = f"{whom}, until {until:%Y-%m-%d} ({left} days)"
    if now > until - (until - certificate.not_valid_before_utc) / 3:
        return Check(what, "warn", validity, f"it is due: {_RENEW}")
    return Check(what, "ok", validity)


def _mode(what: str, key: Path) -> Check:
    mode = key.stat().st_mode
    if mode & _OTHERS:
        found = f"{key} can be used by others ({stat.filemode(mode)})"
        return Check(f"{what} key", "fail", found, f"chmod 600 {key}")
    return Check(f"{what} key", "ok", f"{key} is this user's alone")
