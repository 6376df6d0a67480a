"""The authority's folder: its key, an index of every certificate it issued, and the list of revoked ones.

Every change is made under a lock, is whole or not there, and is in the index before the certificate leaves
the folder: what was issued can be revoked. Whether something may be issued is decided under the same lock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from apiary import __version__
from apiary.errors import NotReady, SettingsError, StoreError
from apiary.files import write_atomic, write_json
from apiary.folder_lock import LOCK_S, hold
from apiary.identity.authority import BACKDATED, Authority, KeyUse, PublicKey, Term, found
from apiary.identity.certificates import private_pem
from apiary.identity.revocations import Crl, list_number, load_lists, signed_by
from apiary.identity.roles import Identity, Role
from apiary_cli.pki.device import Device, IssuedFiles, encode_lists, read_request
from apiary_cli.pki.index import MAX_PAUSE_S, Index, Issued
from apiary_cli.terminal import flags

WARDEN: Final = "pki"
"""The name under which `apiary pki` itself connects to the broker, to end connections."""
ENROLMENT: Final = "enrolment"
"""The name in the certificate of the enrolment service; no other server passes for it."""
AUTHORITY_DAYS: Final = 20 * 365.0
_FOUNDED_BY: Final = "founded-by"
FORMER: Final = "former"
"""The folder of the authority before this one."""
_EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""A clock that shows less was never set: this program is younger."""
_NOTED_S: Final = 7 * 86_400.0
Permit = Callable[[Index, float], None]
"""Raises where the index does not allow, at that time, what is about to be issued."""


@dataclass
class CaFolder:
    """An authority on disk. `passphrase` is called only where the key is locked."""

    folder: Path
    passphrase: Callable[[], bytes] | None = None
    wall: Callable[[], float] = time.time

    @classmethod
    def create(
        cls, folder: Path, name: str, passphrase: bytes | None = None, wall: Callable[[], float] = time.time
    ) -> CaFolder:
        """Found an authority in `folder`. Raises SettingsError where there is one already, NotReady."""
        flags.name(name, "the fleet's name")
        if (folder / "ca.key").exists():
            raise SettingsError(f"{folder} holds an authority already: nothing was changed")
        now = datetime.fromtimestamp(wall(), UTC)
        if now < _EARLIEST:
            raise NotReady(
                f"this machine's clock says {now:%Y-%m-%d %H:%M}, which cannot be: no certificate made now "
                "would hold. Set it (`timedatectl` shows whether a time server answers), then try again"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise StoreError(f"cannot make {folder}: {e.strerror}") from None
        key = generate_private_key(SECP256R1())
        made = found(key, name, Term(now, AUTHORITY_DAYS), x509.random_serial_number())
        crl = made.revocations({}, 0, made.certificate.not_valid_before_utc)
        write_atomic(folder / _FOUNDED_BY, f"{__version__}\n".encode())
        # The key last: with it the authority exists, and all else is there.
        write_json(folder / "index.json", Index(changed=now.timestamp()).encode())
        write_atomic(folder / "ca.pem", made.certificate.public_bytes(Encoding.PEM))
        write_atomic(folder / "crl.pem", crl.public_bytes(Encoding.PEM))
        write_atomic(folder / "ca.key", private_pem(key, passphrase), mode=0o600)
        return cls(folder, (lambda: passphrase) if passphrase else None, wall)

    @property
    def knows_old_nodes(self) -> bool:
        """Whether a version that did not note it founded this authority: its nodes may be as old."""
        return not (self.folder / _FOUNDED_BY).exists()

    @cached_property
    def certificate(self) -> x509.Certificate:
        """The authority's own."""
        return x509.load_pem_x509_certificate(self.read("ca.pem"))

    @property
    def sha256(self) -> str:
        """Of the authority's certificate, in hexadecimal: what a device is given to trust."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def trusted_sha256(self) -> str:
        """What a device is given to trust: the former authority while it is; it vouches for this one."""
        return self.trust().authorities[-1].fingerprint(hashes.SHA256()).hex()

    @property
    def crl(self) -> bytes:
        """The lists of revoked certificates, PEM: that of the former authority too, while it is trusted."""
        return encode_lists(self.trust().crls)

    @property
    def ca_pem(self) -> bytes:
        """The certificates of the authorities that are trusted now, PEM, the new one first."""
        return b"".join(ca.public_bytes(Encoding.PEM) for ca in self.trust().authorities)

    @property
    def former(self) -> CaFolder | None:
        """The authority before this one, while it is trusted, or was last."""
        folder = self.folder / FORMER
        # The word for its successor is written last.
        whole = (folder / "ca.pem").exists() and (self.folder / "link.pem").exists()
        return CaFolder(folder, self.passphrase, self.wall) if whole else None

    def trust(self, index: Index | None = None) -> IssuedFiles:
        """The authorities, their lists, and the former one's word for the present one."""
        index = index or self.index()
        own = tuple(load_lists(self.read("crl.pem")))
        former = self.former
        if former is None:
            return IssuedFiles((), (self.certificate,), own)
        links = tuple(x509.load_pem_x509_certificates(self.read("link.pem")))
        if not index.phase:
            return IssuedFiles((), (self.certificate,), own, links)
        both = (self.certificate, former.certificate)
        return IssuedFiles((), both, (*own, *load_lists(former.read("crl.pem"))), links)

    @cached_property
    def authority(self) -> Authority:
        """Key and certificate. Raises SettingsError where the key stays locked."""
        file, pem = self.folder / "ca.key", self.read("ca.key")
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
        if key.public_key() != self.certificate.public_key():
            raise StoreError(
                f"{file} and ca.pem do not belong together: a replacement was cut short, "
                "`apiary pki replace-authority` finishes it"
            )
        return Authority(key, self.certificate)

    def index(self) -> Index:
        """The index as it is on disk. Raises SettingsError without an authority, StoreError."""
        file = self.folder / "index.json"
        try:
            return Index.decode(json.loads(self.read("index.json")))
        except (ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{file} is torn: restore it from a backup ({e})") from None

    def issued(self) -> list[Issued]:
        """Every certificate, oldest first."""
        return self.index().issued

    def standing(self, name: str) -> list[Issued]:
        """The certificates of `name` that are valid now."""
        return self.index().standing(name, self.wall())

    def answer(self, made: Iterable[x509.Certificate]) -> IssuedFiles:
        """What a device receives: its certificates, the authority's own, and the lists of revoked ones."""
        return replace(self.trust(), certificates=tuple(made))

    def check_free(self, whom: Identity, *, again: bool) -> None:
        """Raises SettingsError where `whom` cannot be enrolled: the name is another's, or in use."""
        unless_taken(whom, again=again)(self.index(), self.wall())

    def issue(
        self,
        whom: Identity,
        keys: Sequence[tuple[KeyUse, PublicKey]],
        days: float,
        *,
        permit: Permit | None = None,
        names: Sequence[str] = (),
        replace_old: bool = False,
        plain: bool = False,
    ) -> list[x509.Certificate]:
        """Certificates of `whom` for `keys`, in the index when this returns; `replace_old` revokes others.

        While the authority is being replaced, a server's come from the former one, as do `plain` ones, for a
        device of the version before. Raises what `permit` raises, which sees the index as it is while nobody
        else can change it; NotReady where the clock cannot be right.
        """
        authority = self.authority
        with self.changing() as index:
            now = self.believed(index)
            (permit or unless_taken(whom, again=True))(index, now.timestamp())
            if replace_old and index.revoke(lambda i: i.name == whom.name, now.timestamp()):
                self._write_list(index)
            former = self.former if index.phase and plain else None
            if index.phase == "devices" and whom.role is Role.SERVER:
                former = self.former
            signer = authority if former is None else former.authority
            made = []
            for use, key in keys:
                term, serial = Term(now, days), x509.random_serial_number()
                shown = tuple(names) if use is KeyUse.SERVER else ()
                certificate = signer.issue(key, whom, use, term=term, serial=serial, names=shown)
                made.append(certificate)
                index.issued.append(_entry(certificate, whom, use, shown))
                if former is not None:
                    index.by_former.append(index.issued[-1].serial)
        return made

    def revoke(self, name: str, serial: str | None = None) -> list[Issued]:
        """Revoke every certificate of `name`, or the one with `serial`; what was revoked now.

        Whatever the clock shows: who has to be out must not wait for a time server.
        """
        with self.changing() as index:
            gone = index.revoke(lambda i: i.name == name and serial in (None, i.serial), self.wall())
            if gone:
                self._write_list(index)
        return gone

    def absorb(self, pem: bytes) -> int:
        """Revoke what lists of this authority name that are newer than its index; how many that were not.

        An authority that was restored from a backup gets back so what was revoked since; its next list has a
        higher number than any of these. Raises ValueError where they are not this authority's.
        """
        crls = load_lists(pem)
        if not all(self._made(crl) for crl in crls):
            raise ValueError("not a list of this authority")
        with self.changing() as index:
            found = index.absorb(crls)
            if found or any(list_number(crl) > index.crl_number for crl in crls):
                self._write_list(index, crls)
        return found

    def readmit(self, name: str, ttl_s: float) -> Issued:
        """Let `name` renew for `ttl_s`, though it is over; its newest certificate. Raises SettingsError."""
        with self.changing() as index:
            now = self.believed(index).timestamp()
            known = [i for i in index.issued if i.name == name]
            left = [i for i in known if i.revoked is None]
            if not left:
                why = "was revoked" if known else "has no certificate here, or one that ended over a year ago"
                raise SettingsError(f"{name!r} {why}: `apiary pki token {name} --again` lets it join anew")
            index.readmitted[name] = now + ttl_s
        return left[-1]

    def keep_time(self) -> None:
        """Note, about once a week, that the clock is where it should be. Raises NotReady where it jumped."""
        index = self.index()
        if self.believed(index).timestamp() > index.changed + _NOTED_S:
            with self.changing():
                pass

    def confirm_clock(self) -> None:
        """Believe this machine's clock, however long nothing was changed. Raises NotReady."""
        with self.changing() as index:
            index.changed = self._within_term().timestamp()

    def revoked_names(self) -> list[str]:
        """Names that have a revoked certificate and no valid one left: the broker shall not hear them."""
        index = self.index()
        return index.shut_out(index.best_time(self.wall()))

    def _within_term(self) -> datetime:
        """Now. Raises NotReady where that is outside the authority's own term."""
        now = datetime.fromtimestamp(self.wall(), UTC)
        begin, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if not begin <= now <= end:
            raise NotReady(
                f"this machine's clock says {now:%Y-%m-%d %H:%M}, and the authority holds from "
                f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d}: set the clock; nothing was issued"
            )
        return now

    def believed(self, index: Index) -> datetime:
        """Now. Raises NotReady where the clock cannot be right, or jumped."""
        now = self._within_term()
        if not index.believes(now.timestamp()):
            last = datetime.fromtimestamp(index.changed, UTC)
            raise NotReady(
                f"this machine's clock says {now:%Y-%m-%d %H:%M}, and the authority was last used at "
                f"{last:%Y-%m-%d}, more than {MAX_PAUSE_S / 86_400:.0f} days before: set the clock, or if it "
                "is right, `apiary pki clock --confirm`; nothing was issued"
            )
        return now

    def _write_list(self, index: Index, seen: Iterable[Crl] = ()) -> None:
        """A new list of all that is revoked, newer than the one in the folder and those `seen`."""
        before = [*self._own_lists(), *seen]
        index.crl_number = max([index.crl_number, *map(list_number, before)]) + 1
        now, begin = datetime.fromtimestamp(self.wall(), UTC), self.certificate.not_valid_before_utc
        # Not by the clock: OpenSSL lets nobody in by a list that is not valid yet (tried), and of two it
        # prefers the later one.
        since = max([begin, *(crl.last_update_utc for crl in before)]) + timedelta(seconds=1)
        if since > now > begin:
            since = max(begin, now - BACKDATED)
        revoked = {serial: datetime.fromtimestamp(at, UTC) for serial, at in index.revoked().items()}
        # Before the index: a list that is ahead of it shuts out, one that is behind lets in.
        for ca in (self.former if index.phase else None, self):
            if ca is not None:  # each names all: OpenSSL looks for a certificate on its own issuer's list
                crl = ca.authority.revocations(revoked, index.crl_number, since)
                write_atomic(ca.folder / "crl.pem", crl.public_bytes(Encoding.PEM))

    def _own_lists(self) -> list[Crl]:
        own: list[Crl] = []
        for ca in (self, self.former):
            with suppress(ValueError):  # torn: the index has what was in it
                own += load_lists(ca.read("crl.pem")) if ca is not None else []
        return [crl for crl in own if self._made(crl)]

    def _made(self, crl: Crl) -> bool:
        former = self.former
        return signed_by(crl, self.certificate) or (former is not None and signed_by(crl, former.certificate))

    @contextmanager
    def changing(self) -> Iterator[Index]:
        """The index, to be changed under the folder's lock. Raises StoreError where it is held too long."""
        self.read("ca.pem")  # without an authority, say so
        refused = StoreError(f"another `apiary pki` holds {self.folder}: try again when it is done")
        with hold(self.folder / "lock", refused, wait_s=LOCK_S):
            index = self.index()
            # A power cut between the two files leaves a list that is ahead of the index.
            index.absorb(self._own_lists())
            yield index
            now = self.wall()
            if index.believes(now) and now <= self.certificate.not_valid_after_utc.timestamp():
                index.changed = max(index.changed, now)
                index.forget(now)
            write_json(self.folder / "index.json", index.encode())

    def read(self, name: str) -> bytes:
        """A file of the folder. Raises SettingsError where there is no authority, StoreError."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise SettingsError(
                f"no authority in {self.folder}: `apiary pki init` founds one, pki.state_dir says where it is"
            ) from None
        except OSError as e:
            raise StoreError(f"cannot read {self.folder / name}: {e.strerror}") from None


def unless_taken(whom: Identity, *, again: bool) -> Permit:
    """A permit that is refused (SettingsError) where the name is another's, or in use and not `again`."""

    def permit(index: Index, now: float) -> None:
        flags.name(whom.name, "the name")
        if whom.name in (WARDEN, ENROLMENT):
            raise SettingsError(f"the name {whom.name!r} is that of `apiary pki` itself: choose another")
        standing = index.standing(whom.name, now)
        for other in standing:
            if other.role is not whom.role:
                raise SettingsError(
                    f"{whom.name!r} is a {other.role} already: choose another name, or revoke it"
                )
        if not again and standing:
            raise SettingsError(
                f"{whom} is enrolled already: renew it, or enrol it --again, which revokes what it has now"
            )

    return permit


def always(index: Index, now: float) -> None:
    """A permit for the authority's own parties."""


def make_here(
    ca: CaFolder, whom: Identity, uses: Iterable[KeyUse], folder: Path, days: float, *, permit: Permit,
    names: Iterable[str] = (), new_keys: bool = False, replace_old: bool = False, owner: str | None = None,
) -> None:  # fmt: skip
    """Keys and certificates for a party of this very machine."""
    device = Device(folder, tuple(uses), owner)
    keys = read_request(device.request(whom.name, renew=new_keys), whom.name, device.uses)
    made = ca.issue(whom, keys, days, permit=permit, names=tuple(names), replace_old=replace_old)
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
