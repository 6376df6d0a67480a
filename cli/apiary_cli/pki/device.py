"""A device's own folder: keys that never leave it, requests for certificates, and what came back.

    tls/ca.pem  cert.pem  key.pem  crl.pem      signing/cert.pem  key.pem

A request is two certificate signing requests in one PEM file, the answer the certificates, the authority's
own and its list of revoked ones in another. New keys for a renewal wait as `key.new.pem` beside the old ones
until their certificates are there, so that a device is never without a pair that fits.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
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

from apiary.errors import SettingsError, StoreError, WireError
from apiary.files import sync_folder, write_atomic
from apiary.identity.authority import KeyUse, PublicKey, requested_key
from apiary.identity.certificates import PrivateKey, Trust, identity_of, private_pem
from apiary.identity.roles import Role
from apiary_cli.terminal import flags

MAX_PEM_BYTES: Final = 2**20
"""Of a request or an answer; a list of 10,000 revoked certificates has about 500 kB."""
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
    """What an authority gave: a device's certificates, its own, and its list of revoked ones."""

    certificates: tuple[x509.Certificate, ...]
    authority: x509.Certificate
    crl: x509.CertificateRevocationList

    def encode(self) -> bytes:
        """One PEM file."""
        certificates = b"".join(c.public_bytes(Encoding.PEM) for c in (*self.certificates, self.authority))
        return certificates + self.crl.public_bytes(Encoding.PEM)


def read_answer(pem: bytes, who: str) -> IssuedFiles:
    """Read what an authority gave back. Raises WireError."""
    try:
        *mine, authority = x509.load_pem_x509_certificates(pem[:MAX_PEM_BYTES])
        crl = x509.load_pem_x509_crl(pem[pem.index(b"-----BEGIN X509 CRL") :])
    except ValueError as e:
        raise WireError(
            f"{who}: not certificates as `apiary pki enrol` writes them: {str(e)[:100]}"
        ) from None
    return IssuedFiles(tuple(mine), authority, crl)


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
    except ValueError as e:
        raise WireError(f"{who}: not a certificate request: {str(e)[:100]}") from None


@dataclass(frozen=True, slots=True)
class Device:
    """A folder such as /etc/apiary. `owner`: the user who shall be able to read the keys."""

    folder: Path
    uses: tuple[KeyUse, ...]
    owner: str | None = None

    def request(self, name: str, *, renew: bool = False) -> bytes:
        """Keys, where there are none yet, and a request for their certificates; `renew`: new keys."""
        flags.name(name, "the name")
        self.settle()
        return b"".join(self._csr(name, use, renew=renew) for use in self.uses)

    def install(self, answer: IssuedFiles, *, ca_sha256: str | None = None) -> str:
        """Take certificates that fit this device's keys; the name in them.

        Raises SettingsError, and changes nothing, where one does not fit.
        """
        fingerprint = answer.authority.fingerprint(hashes.SHA256()).hex()
        if ca_sha256 is not None and fingerprint != plain_sha256(ca_sha256):
            raise SettingsError(
                f"the authority has the fingerprint {fingerprint}, expected {plain_sha256(ca_sha256)}"
            )
        Trust([answer.authority], [answer.crl])
        self.settle()
        fitting = [self._fitting(use, answer) for use in self.uses]
        for use, certificate in zip(self.uses, fitting, strict=True):
            self._write(self.folder / _FOLDERS[use] / "cert.pem", certificate.public_bytes(Encoding.PEM))
            self._settle(use)
        self.store_lists(answer)
        return identity_of(fitting[0]).name

    def store_lists(self, answer: IssuedFiles) -> None:
        """The authority's certificate and its list of revoked ones, where they changed."""
        for name, made in (("ca.pem", answer.authority), ("crl.pem", answer.crl)):
            path, data = self.folder / "tls" / name, made.public_bytes(Encoding.PEM)
            # Fetched daily: an SD card need not write, and a service not read, the same again.
            if not path.exists() or path.read_bytes() != data:
                self._write(path, data)

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
        key = _load_key(self.folder / _FOLDERS[use] / "key.pem")
        assert isinstance(key, EllipticCurvePrivateKey)  # noqa: S101 - no signing certificate asks for this
        return key.sign(to_sign(request), ECDSA(hashes.SHA256()))

    def _csr(self, name: str, use: KeyUse, *, renew: bool) -> bytes:
        path = self.folder / _FOLDERS[use] / ("key.new.pem" if renew else "key.pem")
        if path.exists():
            key = _load_key(path)
        else:
            key = Ed25519PrivateKey.generate() if use is KeyUse.SIGNING else generate_private_key(SECP256R1())
            self._write(path, private_pem(key), mode=0o600)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
        return csr.public_bytes(Encoding.PEM)

    def _fitting(self, use: KeyUse, answer: IssuedFiles) -> x509.Certificate:
        for name in ("key.new.pem", "key.pem"):
            path = self.folder / _FOLDERS[use] / name
            if path.exists():
                public = _load_key(path).public_key()
                for certificate in answer.certificates:
                    if certificate.public_key() == public:
                        return certificate
        raise SettingsError(
            f"no certificate for the key in {self.folder / _FOLDERS[use]}: these were made for another "
            "device, or for keys that were replaced; make a new request"
        )

    def settle(self) -> None:
        """Where power went between a new certificate and its key, finish what was begun."""
        for use in self.uses:
            self._settle(use)

    def _settle(self, use: KeyUse) -> None:
        """Take the new key in use where the certificate is for it."""
        folder = self.folder / _FOLDERS[use]
        new = folder / "key.new.pem"
        if not new.exists() or not (folder / "cert.pem").exists():
            return
        if _load_key(new).public_key() != self.certificate(use).public_key():
            return
        try:
            new.replace(folder / "key.pem")
            sync_folder(folder)
        except OSError as e:
            raise StoreError(f"cannot replace the key in {folder}: {e.strerror}") from None

    def _write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        write_atomic(path, data, mode=mode)
        if self.owner is not None:
            try:
                shutil.chown(path, self.owner)
            except (OSError, LookupError) as e:
                raise SettingsError(
                    f"--owner {self.owner}: {path} cannot be given to that user: {e}"
                ) from None


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
