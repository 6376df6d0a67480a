"""The authority's own certificate, replaced while the fleet runs: begun, servers, finished.

Begun, the former authority vouches for the new one's key, both are trusted, and whoever renews gets
certificates of the new one; servers keep those of the former one, which every party still knows. Once nobody
else is left under it, servers get theirs of the new one; then the former one is not trusted any more. A party
that was off all the while still finds its way: the word of the former authority stays.
"""

import argparse
import shutil
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding

from apiary.errors import SettingsError
from apiary.files import sync_folder, write_atomic
from apiary.identity.authority import KeyUse, Term, found
from apiary.identity.certificates import private_pem
from apiary.identity.roles import Identity, Role
from apiary.identity.succession import link
from apiary_cli.pki.folder import AUTHORITY_DAYS, FORMER, WARDEN, CaFolder, always, make_here
from apiary_cli.pki.index import Index, Phase
from apiary_cli.terminal import flags

_NEXT: Final = "next"
_OWN: Final = ("ca.pem", "crl.pem", "ca.key")
"""In this order they are replaced: with another key than its certificate's an authority signs nothing."""


def begin(ca: CaFolder, name: str | None) -> None:
    """Found the successor, and put it in the authority's place; what power cut short is continued."""
    if not (ca.folder / _NEXT / "link.pem").exists():
        with ca.changing() as index:
            if index.phase:
                raise SettingsError("a replacement is under way: --servers or --finish is its next step")
            _found_successor(ca, index, name or f"{_name(ca.certificate)}-2")
    with ca.changing() as index:
        if index.phase != "devices":
            for file in _OWN:
                write_atomic(ca.folder / FORMER / file, ca.read(file), mode=0o600)
            write_atomic(ca.folder / "link.pem", (ca.folder / _NEXT / "link.pem").read_bytes())
            _set(ca, index, "devices")
            index.by_former = [i.serial for i in index.issued if i.state(ca.wall()) == "valid"]
    with ca.changing():
        for file in _OWN:
            made = ca.folder / _NEXT / file
            if made.exists():
                made.replace(ca.folder / file)
        sync_folder(ca.folder)
        shutil.rmtree(ca.folder / _NEXT)


def move_servers(ca: CaFolder, *, anyway: bool) -> None:
    """From now on servers get certificates of the new authority, too."""
    with ca.changing() as index:
        _expect(index, "devices")
        _refuse_for(index.still_former(ca.wall(), servers=False), anyway)
        _set(ca, index, "servers")


def finish(ca: CaFolder, *, anyway: bool) -> None:
    """The former authority is not trusted any more; its key goes."""
    with ca.changing() as index:
        _expect(index, "servers")
        left = [*index.still_former(ca.wall(), servers=False), *index.still_former(ca.wall(), servers=True)]
        _refuse_for(left, anyway)
        _set(ca, index, "")
    (ca.folder / FORMER / "ca.key").unlink(missing_ok=True)


def replace_authority(args: argparse.Namespace, ca: CaFolder) -> tuple[CaFolder, str]:
    """Take the step that the flags name; the authority as it is then, and what comes next, in words."""
    if args.finish:
        finish(ca, anyway=args.anyway)
        done = (
            "the former authority is not trusted any more; restart the broker: it reads ca.pem at its start"
        )
    elif args.servers:
        move_servers(ca, anyway=args.anyway)
        done = "servers get theirs of the new authority now: renew the broker's with --force, then --finish"
    else:
        begin(ca, args.fleet)
        ca = CaFolder(ca.folder, ca.passphrase, ca.wall)
        warden = Identity(WARDEN, Role.OPERATOR)
        folder = ca.folder / "warden"
        make_here(ca, warden, (KeyUse.CLIENT,), folder, AUTHORITY_DAYS, permit=always, new_keys=True)
        done = (
            "both authorities are trusted: restart the broker, which reads ca.pem at its start; parties get "
            "new certificates as they renew. Then --servers"
        )
    return CaFolder(ca.folder, ca.passphrase, ca.wall), done


def _found_successor(ca: CaFolder, index: Index, name: str) -> None:
    flags.name(name, "the fleet's name")
    if name == _name(ca.certificate):
        raise SettingsError(f"the authority is called {name!r} already: its successor needs another name")
    former, now = ca.authority, ca.believed(index)
    key = generate_private_key(SECP256R1())
    made = found(key, name, Term(now, AUTHORITY_DAYS), x509.random_serial_number())
    revoked = {serial: datetime.fromtimestamp(at, UTC) for serial, at in index.revoked().items()}
    crl = made.revocations(revoked, index.crl_number, made.certificate.not_valid_before_utc)
    folder, passphrase = ca.folder / _NEXT, ca.passphrase() if ca.passphrase and _locked(ca) else None
    write_atomic(folder / "ca.key", private_pem(key, passphrase), mode=0o600)
    write_atomic(folder / "ca.pem", made.certificate.public_bytes(Encoding.PEM))
    write_atomic(folder / "crl.pem", crl.public_bytes(Encoding.PEM))
    # Last: with it the successor is whole.
    word = link(former, made, x509.random_serial_number())
    write_atomic(folder / "link.pem", word.public_bytes(Encoding.PEM))


def _set(ca: CaFolder, index: Index, phase: Phase) -> None:
    index.phase = phase
    # A service that runs sees by this file that it has to start again.
    write_atomic(ca.folder / "phase", f"{phase}\n".encode())


def _expect(index: Index, phase: Phase) -> None:
    if index.phase != phase:
        steps = {"": "begin it", "devices": "--servers is next", "servers": "--finish is next"}
        raise SettingsError(f"the replacement is not there yet, or past it: {steps[index.phase]}")


def _refuse_for(names: list[str], anyway: bool) -> None:
    if names and not anyway:
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise SettingsError(
            f"still with certificates of the former authority: {shown}; wait until they have renewed "
            "(daily), or --anyway: who is off renews by itself when it is back"
        )


def _locked(ca: CaFolder) -> bool:
    return b"ENCRYPTED" in ca.read("ca.key")


def _name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
