"""The authority's folder: its key, an index of every certificate it issued, and the list of revoked ones.

Every change is made under a lock, is whole or not there, and is in the index before the certificate leaves
the folder: what was issued can be revoked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from apiary import __version__
from apiary.errors import SettingsError, StoreError
from apiary.files import write_atomic, write_json
from apiary.folder_lock import LOCK_S, hold
from apiary.identity.authority import Authority, KeyUse, PublicKey, Term, found
from apiary.identity.certificates import private_pem
from apiary.identity.roles import Identity, Role
from apiary_cli.pki.device import Device, IssuedFiles, read_request
from apiary_cli.terminal import flags

WARDEN: Final = "pki"
"""The name under which `apiary pki` itself connects to the broker, to end connections."""
ENROLMENT: Final = "enrolment"
"""The name in the certificate of the enrolment service; no other server passes for it."""
AUTHORITY_DAYS: Final = 20 * 365.0
RENEWABLE: Final = 1 / 3
"""A certificate may be renewed once this part of its term is left."""
_FOUNDED_BY: Final = "founded-by"
_KEPT_S: Final = 365 * 86_400.0
"""Certificates stay in the index for so long after their end."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in the index. Times in seconds since 1970."""

    serial: str
    name: str
    role: Role
    use: str
    not_before: float
    not_after: float
    sha256: str
    names: tuple[str, ...] = ()
    revoked: float | None = None

    @property
    def identity(self) -> Identity:
        """Whom it speaks of."""
        return Identity(self.name, self.role)

    def state(self, now: float) -> str:
        """`valid`, `expired` or `revoked`."""
        return "revoked" if self.revoked is not None else "expired" if now > self.not_after else "valid"

    def due(self, now: float) -> bool:
        """Whether so little of its term is left that it may be renewed."""
        return now > self.not_after - (self.not_after - self.not_before) * RENEWABLE


@dataclass
class CaFolder:
    """An authority on disk. `passphrase` is called only where the key is locked."""

    folder: Path
    passphrase: Callable[[], bytes] | None = None
    wall: Callable[[], float] = time.time

    @classmethod
    def create(cls, folder: Path, name: str, passphrase: bytes | None = None) -> CaFolder:
        """Found an authority in `folder`. Raises SettingsError where there is one already."""
        flags.name(name, "the fleet's name")
        if (folder / "ca.key").exists():
            raise SettingsError(f"{folder} holds an authority already: nothing was changed")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise StoreError(f"cannot make {folder}: {e.strerror}") from None
        key = generate_private_key(SECP256R1())
        made = found(key, name, Term(datetime.now(UTC), AUTHORITY_DAYS), x509.random_serial_number())
        crl = made.revocations({}, 0, datetime.now(UTC))
        write_atomic(folder / _FOUNDED_BY, f"{__version__}\n".encode())
        # The key last: with it the authority exists, and all else is there.
        write_json(folder / "index.json", {"version": 1, "issued": [], "crl_number": 0})
        write_atomic(folder / "ca.pem", made.certificate.public_bytes(Encoding.PEM))
        write_atomic(folder / "crl.pem", crl.public_bytes(Encoding.PEM))
        write_atomic(folder / "ca.key", private_pem(key, passphrase), mode=0o600)
        return cls(folder, (lambda: passphrase) if passphrase else None)

    @property
    def knows_old_nodes(self) -> bool:
        """Whether a version that did not note it founded this authority: its nodes may be as old."""
        return not (self.folder / _FOUNDED_BY).exists()

    @cached_property
    def certificate(self) -> x509.Certificate:
        """The authority's own."""
        return x509.load_pem_x509_certificate(self._read("ca.pem"))

    @property
    def sha256(self) -> str:
        """Of the authority's certificate, in hexadecimal: what a device is given to trust."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def crl(self) -> bytes:
        """The list of revoked certificates, PEM."""
        return self._read("crl.pem")

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate, PEM."""
        return self._read("ca.pem")

    @cached_property
    def authority(self) -> Authority:
        """Key and certificate. Raises SettingsError where the key stays locked."""
        file, pem = self.folder / "ca.key", self._read("ca.key")
        try:
            try:
                key = load_pem_private_key(pem, None)
            except TypeError:  # locked
                if self.passphrase is None:
                    why = "is locked: set pki.passphrase_file, or use a terminal"
                    raise SettingsError(f"{file} {why}") from None
                key = load_pem_private_key(pem, self.passphrase())
        except ValueError:
            raise SettingsError(f"{file} cannot be read: wrong passphrase, or not a PEM key") from None
        if not isinstance(key, EllipticCurvePrivateKey):
            raise SettingsError(f"{file} is a {type(key).__name__}, expected a P-256 key")
        return Authority(key, self.certificate)

    def issued(self) -> list[Issued]:
        """Every certificate, oldest first."""
        return [_issued(raw) for raw in self._index()["issued"]]

    def standing(self, name: str) -> list[Issued]:
        """The certificates of `name` that are valid now."""
        now = self.wall()
        return [i for i in self.issued() if i.name == name and i.state(now) == "valid"]

    def answer(self, made: Iterable[x509.Certificate]) -> IssuedFiles:
        """What a device receives: its certificates, the authority's own, and the list of revoked ones."""
        return IssuedFiles(tuple(made), self.certificate, x509.load_pem_x509_crl(self.crl))

    def check_free(self, whom: Identity, *, again: bool) -> None:
        """Raises SettingsError where `whom` cannot be enrolled: the name is another's, or in use."""
        flags.name(whom.name, "the name")
        if whom.name in (WARDEN, ENROLMENT):
            raise SettingsError(f"the name {whom.name!r} is that of `apiary pki` itself: choose another")
        now = self.wall()
        for other in self.issued():
            if other.name == whom.name and other.role is not whom.role and other.state(now) == "valid":
                raise SettingsError(
                    f"{whom.name!r} is a {other.role} already: choose another name, or revoke it"
                )
        if not again and self.standing(whom.name):
            raise SettingsError(
                f"{whom} is enrolled already: renew it, or enrol it --again, which revokes what it has now"
            )

    def issue(
        self,
        whom: Identity,
        keys: Sequence[tuple[KeyUse, PublicKey]],
        days: float,
        *,
        names: Sequence[str] = (),
        replace_old: bool = False,
    ) -> list[x509.Certificate]:
        """Certificates of `whom` for `keys`, in the index when this returns; `replace_old` revokes others."""
        authority = self.authority
        now = datetime.fromtimestamp(self.wall(), UTC)
        self._check_clock(now)
        with self._changing() as index:
            if replace_old:
                self._revoke(index, lambda i: i.name == whom.name, now)
            made = []
            for use, key in keys:
                term, serial = Term(now, days), x509.random_serial_number()
                shown = tuple(names) if use is KeyUse.SERVER else ()
                certificate = authority.issue(key, whom, use, term=term, serial=serial, names=shown)
                made.append(certificate)
                index["issued"].append(asdict(_entry(certificate, whom, use, shown)))
        return made

    def revoke(self, name: str, serial: str | None = None) -> list[Issued]:
        """Revoke every valid certificate of `name`, or the one with `serial`; what was revoked now."""
        now = datetime.fromtimestamp(self.wall(), UTC)

        def chosen(i: Issued) -> bool:
            return i.name == name and serial in (None, i.serial) and i.state(now.timestamp()) == "valid"

        with self._changing() as index:
            return self._revoke(index, chosen, now)

    def revoked_names(self) -> list[str]:
        """Names that have a revoked certificate and no valid one left: the broker shall not hear them."""
        now = self.wall()
        states = {(i.name, i.state(now)) for i in self.issued()}
        return sorted(name for name, state in states if state == "revoked" and (name, "valid") not in states)

    def _check_clock(self, now: datetime) -> None:
        """Raises SettingsError where the clock is outside the authority's own term."""
        begin, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if not begin <= now <= end:
            raise SettingsError(
                f"this machine's clock says {now:%Y-%m-%d %H:%M}, and the authority holds from "
                f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d}: set the clock; nothing was issued"
            )

    def _revoke(self, index: dict[str, Any], which: Callable[[Issued], bool], now: datetime) -> list[Issued]:
        gone = []
        for at, raw in enumerate(index["issued"]):
            entry = _issued(raw)
            if entry.revoked is None and which(entry):
                entry = replace(entry, revoked=now.timestamp())
                index["issued"][at] = asdict(entry)
                gone.append(entry)
        if gone:
            index["crl_number"] += 1
            revoked = {
                int(e.serial, 16): datetime.fromtimestamp(e.revoked, UTC)
                for e in map(_issued, index["issued"])
                if e.revoked is not None
            }
            crl = self.authority.revocations(revoked, index["crl_number"], now)
            # Before the index: a list that is ahead of it shuts out, one that is behind lets in.
            write_atomic(self.folder / "crl.pem", crl.public_bytes(Encoding.PEM))
        return gone

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The index, to be changed under the folder's lock. Raises StoreError where it is held too long."""
        self._read("ca.pem")  # without an authority, say so
        refused = StoreError(f"another `apiary pki` holds {self.folder}: try again when it is done")
        with hold(self.folder / "lock", refused, wait_s=LOCK_S):
            index = self._index()
            yield index
            # An expired certificate is refused without a list; what is long over need not be kept.
            over = self.wall() - _KEPT_S
            index["issued"] = [raw for raw in index["issued"] if raw["not_after"] > over]
            write_json(self.folder / "index.json", index)

    def _index(self) -> dict[str, Any]:
        file = self.folder / "index.json"
        try:
            index: dict[str, Any] = json.loads(self._read("index.json"))
        except ValueError as e:
            raise StoreError(f"{file} is torn: restore it from a backup ({e})") from None
        if index.get("version") != 1:
            raise StoreError(f"{file}: version {index.get('version')!r}, expected 1")
        return index

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise SettingsError(
                f"no authority in {self.folder}: `apiary pki init` founds one, pki.state_dir says where it is"
            ) from None
        except OSError as e:
            raise StoreError(f"cannot read {self.folder / name}: {e.strerror}") from None


def make_here(
    ca: CaFolder, whom: Identity, uses: Iterable[KeyUse], folder: Path, days: float, *,
    names: Iterable[str] = (), new_keys: bool = False, replace_old: bool = False, owner: str | None = None,
) -> None:  # fmt: skip
    """Keys and certificates for a party of this very machine."""
    device = Device(folder, tuple(uses), owner)
    keys = read_request(device.request(whom.name, renew=new_keys), whom.name, device.uses)
    made = ca.issue(whom, keys, days, names=tuple(names), replace_old=replace_old)
    device.install(ca.answer(made))


def _entry(certificate: x509.Certificate, whom: Identity, use: KeyUse, names: tuple[str, ...]) -> Issued:
    return Issued(
        serial=f"{certificate.serial_number:x}",
        name=whom.name,
        role=whom.role,
        use=use.name.lower(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        names=names,
    )


def _issued(raw: dict[str, Any]) -> Issued:
    return Issued(**{**raw, "role": Role(raw["role"]), "names": tuple(raw.get("names", ()))})
