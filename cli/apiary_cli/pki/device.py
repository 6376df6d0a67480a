"""A device's own folder: keys that never leave it, requests for certificates, and what came back.

    tls/ca.pem  cert.pem  key.pem  crl.pem      signing/cert.pem  key.pem

A request is two certificate signing requests in one PEM file, the answer the certificates, the authority's
own and its list of revoked ones in another. New keys for a renewal wait as `key.new.pem` beside the old ones
until their certificates are there, so that a device is never without a pair that fits.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from apiary.errors import NotReady, SettingsError, StoreError, WireError
from apiary.files import sync_folder, write_atomic
from apiary.identity.authority import KeyUse, PublicKey, requested_key
from apiary.identity.certificates import PrivateKey, Trust, identity_of, private_pem
from apiary.identity.key_files import candidates, waiting_key
from apiary.identity.revocations import Crl, load_lists, revoked_serials, signed_by, without_loss
from apiary.identity.roles import Role
from apiary.identity.succession import is_authority
from apiary_cli.terminal import flags

MAX_PEM_BYTES: Final = 8 * 2**20
"""Of a request or an answer; a list of 100,000 revoked certificates has about 5 MB, and none is ever shorter
than the one before."""
_FOLDERS: Final = {KeyUse.CLIENT: "tls", KeyUse.SERVER: "tls", KeyUse.SIGNING: "signing"}
USES: Final = {
    Role.NODE: (KeyUse.CLIENT, KeyUse.SIGNING),
    Role.COORDINATOR: (KeyUse.CLIENT, KeyUse.SIGNING),
    Role.OPERATOR: (KeyUse.CLIENT, KeyUse.SIGNING),
    Role.VIEWER: (KeyUse.CLIENT,),
    Role.SERVER: (KeyUse.SERVER,),
}
"""The keys that a party of each role has."""


@dataclass(frozen=True, slots=True)
class IssuedFiles:
    """What an authority gave: a device's certificates, its own, and its lists of revoked ones.

    While it is being replaced there are two `authorities`, the new one first, and the old one's `links`.
    """

    certificates: tuple[x509.Certificate, ...]
    authorities: tuple[x509.Certificate, ...]
    crls: tuple[Crl, ...]
    links: tuple[x509.Certificate, ...] = ()

    def encode(self) -> bytes:
        """One PEM file."""
        certificates = b"".join(
            c.public_bytes(Encoding.PEM) for c in (*self.certificates, *self.links, *self.authorities)
        )
        return certificates + encode_lists(self.crls)


def only_former(answer: IssuedFiles) -> IssuedFiles:
    """The answer for a device of the version before, which knows of one authority: the one that it trusts."""
    former = answer.authorities[-1]
    crls = tuple(crl for crl in answer.crls if signed_by(crl, former))
    return IssuedFiles(answer.certificates, (former,), crls)


def read_answer(pem: bytes, who: str) -> IssuedFiles:
    """Read what an authority gave back. Raises WireError."""
    try:
        read = x509.load_pem_x509_certificates(pem[:MAX_PEM_BYTES])
        crls = load_lists(pem)
        mine = [c for c in read if not is_authority(c)]
        authorities = [c for c in read if is_authority(c) and c.issuer == c.subject]
        links = [c for c in read if is_authority(c) and c.issuer != c.subject]
        if not authorities:
            raise ValueError("no authority's certificate in it")
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise WireError(
            f"{who}: not certificates as `apiary pki enrol` writes them: {str(e)[:100]}"
        ) from None
    return IssuedFiles(tuple(mine), tuple(authorities), tuple(crls), tuple(links))


def read_request(pem: bytes, who: str, uses: Sequence[KeyUse]) -> list[tuple[KeyUse, PublicKey]]:
    """The keys that a request asks certificates for, one for each of `uses`. Raises WireError."""
    mark = b"-----BEGIN CERTIFICATE REQUEST-----"
    parts = [mark + p for p in pem[:MAX_PEM_BYTES].split(mark)[1:]]
    if len(parts) != len(uses):
        raise WireError(
            f"{who}: {len(parts)} certificate requests, expected {len(uses)}: make it by `apiary pki request`"
        )
    try:
        requests = [x509.load_pem_x509_csr(p) for p in parts]
        return [(use, requested_key(csr, use, who)) for use, csr in zip(uses, requests, strict=True)]
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise WireError(f"{who}: not a certificate request: {str(e)[:100]}") from None


@dataclass(frozen=True, slots=True)
class Device:
    """A folder such as /etc/apiary. `owner`: the user who shall be able to read the keys."""

    folder: Path
    uses: tuple[KeyUse, ...]
    owner: str | None = None
    wall: Callable[[], float] = time.time

    def request(self, name: str, *, renew: bool = False) -> bytes:
        """Keys, where there are none yet, and a request for their certificates; `renew`: new keys."""
        flags.name(name, "the name")
        self.settle()
        return b"".join(self._csr(name, use, renew=renew) for use in self.uses)

    def install(self, answer: IssuedFiles, *, ca_sha256: str | None = None) -> str:
        """Take certificates that fit this device's keys; the name in them.

        Raises SettingsError, and changes nothing, where one does not fit; NotReady where it does not hold by
        the clock here: what is in use may still.
        """
        if ca_sha256 is not None:
            expected = plain_sha256(ca_sha256)
            found = [ca.fingerprint(hashes.SHA256()).hex() for ca in answer.authorities]
            if expected not in found:
                raise SettingsError(f"the authority has the fingerprint {found[0]}, expected {expected}")
        Trust(answer.authorities, answer.crls)
        self.settle()
        fitting = [self._fitting(use, answer) for use in self.uses]
        now = datetime.fromtimestamp(self.wall(), UTC)
        for certificate in fitting:
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            if not begin <= now <= end:
                raise NotReady(
                    f"these certificates hold from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}, and the "
                    f"clock here says {now:%Y-%m-%d %H:%M}: this one, or the authority's, is wrong; "
                    "nothing was changed"
                )
        for use, certificate in zip(self.uses, fitting, strict=True):
            self._write(self.folder / _FOLDERS[use] / "cert.pem", certificate.public_bytes(Encoding.PEM))
            self._settle(use)
        self.store_lists(answer)
        return identity_of(fitting[0]).name

    def store_lists(self, answer: IssuedFiles) -> None:
        """The authority's certificate and its lists of revoked ones, where they changed.

        What a list here names stays revoked, even if the authority forgot it.
        """
        Trust(answer.authorities, answer.crls)
        lists = encode_lists(without_loss([*answer.crls, *self._held(answer)]))
        authorities = b"".join(ca.public_bytes(Encoding.PEM) for ca in answer.authorities)
        for name, data in (("ca.pem", authorities), ("crl.pem", lists)):
            path = self.folder / "tls" / name
            # Fetched daily: an SD card need not write, and a service not read, the same again.
            if not path.exists() or path.read_bytes() != data:
                self._write(path, data)

    def lists(self) -> list[Crl]:
        """The lists of revoked certificates here; none where there is no file, or a torn one."""
        try:
            return load_lists((self.folder / "tls" / "crl.pem").read_bytes())
        except (OSError, ValueError):
            return []

    def forgotten(self, answer: IssuedFiles) -> bytes | None:
        """The lists here, PEM, where they name what those in `answer` do not: its authority forgot it."""
        held = self._held(answer)
        return encode_lists(held) if revoked_serials(held) - revoked_serials(answer.crls) else None

    def _held(self, answer: IssuedFiles) -> list[Crl]:
        return [crl for crl in self.lists() if any(signed_by(crl, ca) for ca in answer.authorities)]

    def authorities(self) -> list[x509.Certificate]:
        """The authorities that this device trusts. Raises SettingsError."""
        path = self.folder / "tls" / "ca.pem"
        try:
            return x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as e:
            raise SettingsError(f"{path} cannot be read: {e}; `apiary pki join` writes it") from None

    def certificate(self, use: KeyUse) -> x509.Certificate:
        """The one in use. Raises SettingsError."""
        path = self.folder / _FOLDERS[use] / "cert.pem"
        try:
            return x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as e:
            raise SettingsError(
                f"{path} cannot be read: {e}; `apiary pki join` or `install` writes it"
            ) from None

    def proof(self, use: KeyUse, request: bytes) -> bytes:
        """A signature of the key in use under a request for another; ECDSA with SHA-256."""
        key = _load_key(self._key(use))
        assert isinstance(key, EllipticCurvePrivateKey)  # noqa: S101 - no signing certificate asks for this
        return key.sign(to_sign(request), ECDSA(hashes.SHA256()))

    def _csr(self, name: str, use: KeyUse, *, renew: bool) -> bytes:
        path = self._key(use)
        path = waiting_key(path) if renew else path
        if path.exists():
            key = _load_key(path)
            self._give(path)  # where power went after it was written
        else:
            key = Ed25519PrivateKey.generate() if use is KeyUse.SIGNING else generate_private_key(SECP256R1())
            self._write(path, private_pem(key), mode=0o600)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
        return csr.public_bytes(Encoding.PEM)

    def _fitting(self, use: KeyUse, answer: IssuedFiles) -> x509.Certificate:
        for path in reversed(candidates(self._key(use))):
            if path.exists():
                public = _load_key(path).public_key()
                for certificate in answer.certificates:
                    if certificate.public_key() == public:
                        return certificate
        raise SettingsError(
            f"no certificate for the key in {self.folder / _FOLDERS[use]}: these were made for another "
            "device, or for keys that were replaced; make a new request"
        )

    def _key(self, use: KeyUse) -> Path:
        return self.folder / _FOLDERS[use] / "key.pem"

    def settle(self) -> None:
        """Where power went between a new certificate and its key, finish what was begun."""
        for use in self.uses:
            self._settle(use)

    def _settle(self, use: KeyUse) -> None:
        """Take the new key in use where the certificate is for it."""
        folder, key = self.folder / _FOLDERS[use], self._key(use)
        new = waiting_key(key)
        if not new.exists() or not (folder / "cert.pem").exists():
            return
        try:
            fits = _load_key(new).public_key() == self.certificate(use).public_key()
        except SettingsError:
            return  # torn: what is installed next replaces it
        if not fits:
            return
        try:
            new.replace(key)
            sync_folder(folder)
        except FileNotFoundError:
            return  # a service that needed the pair was quicker
        except OSError as e:
            raise StoreError(f"cannot replace the key in {folder}: {e.strerror}") from None

    def _write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        write_atomic(path, data, mode=mode)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self.owner is not None:
            try:
                shutil.chown(path, self.owner)
            except (OSError, LookupError) as e:
                raise SettingsError(
                    f"--owner {self.owner}: {path} cannot be given to that user: {e}"
                ) from None


def encode_lists(crls: Sequence[Crl]) -> bytes:
    """Lists as one PEM file, in this order: the version before reads the first."""
    return b"".join(crl.public_bytes(Encoding.PEM) for crl in crls)


def to_sign(request: bytes) -> bytes:
    """What a server's key signs to renew: no signature that it makes for anything else begins so."""
    return b"apiary renew\n" + request


def plain_sha256(text: str) -> str:
    """A fingerprint in lower case without colons. Raises SettingsError where it is none."""
    plain = text.replace(":", "").strip().lower()
    if len(plain) != 64 or set(plain) - set("0123456789abcdef"):
        raise SettingsError(f"{text[:80]!r} is not a SHA-256 fingerprint: expected 64 hexadecimal digits")
    return plain


def _load_key(path: Path) -> PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as e:
        raise SettingsError(f"{path} cannot be read: {e}") from None
    if not isinstance(key, PrivateKey):
        raise SettingsError(f"{path} is a {type(key).__name__}, expected a P-256 or Ed25519 key")
    return key
