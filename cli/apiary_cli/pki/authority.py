"""The sub-commands of `apiary pki` on the machine that holds the authority."""

import argparse
import codecs
import getpass
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from apiary.errors import NotReady, SettingsError
from apiary.files import write_atomic
from apiary.identity.authority import KeyUse
from apiary.identity.roles import Identity, Role
from apiary.settings import Settings
from apiary_cli.pki import broker_files, replacement
from apiary_cli.pki.device import USES, read_request
from apiary_cli.pki.folder import (
    AUTHORITY_DAYS,
    WARDEN,
    CaFolder,
    Permit,
    always,
    make_here,
    unless_taken,
)
from apiary_cli.pki.index import Index, Issued
from apiary_cli.pki.tokens import Tokens, seconds
from apiary_cli.terminal import flags
from apiary_cli.terminal.flags import print_result, read
from apiary_cli.terminal.table import table

_BROKER_TROUBLE: Final = 4


def open_folder(settings: Settings) -> CaFolder:
    """The authority that the settings name; its passphrase from a file or from the terminal."""
    file = settings.pki.passphrase_file
    if file is not None:
        return CaFolder(settings.pki.state_dir, lambda: _first_line(file))
    if sys.stdin.isatty():
        return CaFolder(settings.pki.state_dir, lambda: getpass.getpass("passphrase: ").encode())
    return CaFolder(settings.pki.state_dir)


def init(args: argparse.Namespace, settings: Settings) -> int:
    """Found an authority."""
    passphrase = None
    if settings.pki.passphrase_file is not None:
        passphrase = _first_line(settings.pki.passphrase_file)
    elif args.lock:
        passphrase = getpass.getpass("passphrase for the authority's key: ").encode()
        if not passphrase or passphrase != getpass.getpass("once more: ").encode():
            raise SettingsError("the two differ, or are empty: nothing was made")
    ca = CaFolder.create(settings.pki.state_dir, args.fleet, passphrase)
    warden = Identity(WARDEN, Role.OPERATOR)
    make_here(ca, warden, (KeyUse.CLIENT,), ca.folder / "warden", AUTHORITY_DAYS, permit=always)
    return _finish(
        args,
        broker_files.apply(ca, settings),
        {"folder": str(ca.folder), "sha256": ca.sha256},
        f"the authority {args.fleet!r} is in {ca.folder}: back it up, keep {ca.folder / 'ca.key'} secret",
        f"its fingerprint, for devices that join: {ca.sha256}",
        "next: apiary pki enrol broker --role server --san HOST --dir DIR",
    )


def enrol(args: argparse.Namespace, settings: Settings) -> int:
    """Certificates for somebody new."""
    whom = Identity(args.name, Role(args.role))
    args.san = [flags.host(name, "--san") for name in args.san]
    if whom.role is Role.SERVER and not args.san:
        raise SettingsError("a server needs --san: each host name and address by which others reach it")
    if whom.role is not Role.SERVER and args.san:
        raise SettingsError("--san is for --role server: nobody connects to a device")
    _one_way(args)
    ca = open_folder(settings)
    ca.check_free(whom, again=args.again)
    permit = unless_taken(whom, again=args.again)
    return _give(args, settings, ca, whom, permit, replace_old=args.again)


def renew(args: argparse.Namespace, settings: Settings) -> int:
    """New certificates for somebody who has some, issued here."""
    if args.name is None:
        raise SettingsError("renew: --url URL on a device, or the NAME of whom to renew on the server")
    _one_way(args)
    ca = open_folder(settings)
    newest = _renewable(args, ca.index(), ca.wall())
    args.san = list(newest.names)

    def permit(index: Index, now: float) -> None:
        # Once more, now that nobody can revoke it in between.
        _renewable(args, index, now)

    return _give(args, settings, ca, newest.identity, permit, replace_old=False, new_keys=True)


def revoke(args: argparse.Namespace, settings: Settings) -> int:
    """Revoke somebody's certificates, and update the broker."""
    ca = open_folder(settings)
    _ = ca.certificate  # without an authority, say so
    # First: who is about to join with one does so before what follows, or not at all.
    Tokens(ca.folder).cancel(args.name)
    gone = ca.revoke(args.name, args.serial)
    known = [i for i in ca.issued() if i.name == args.name and args.serial in (None, i.serial)]
    if not known:
        which = f" with the serial {args.serial}" if args.serial is not None else ""
        raise SettingsError(f"{args.name!r} has no certificate{which}: `apiary pki list` shows who has")
    trouble = broker_files.apply(ca, settings, revoked=[args.name])
    if gone:
        done = f"revoked: {len(gone)} certificates of {gone[0].identity}"
    elif args.serial is not None:
        state = known[0].state(time.time())
        done = f"certificate {args.serial} of {args.name!r} is {state} already; the broker is notified again"
    else:
        done = f"{args.name!r} had no valid certificate left; the broker is notified again"
    lines = [done]
    if settings.pki.broker_dir is None:
        lines += [
            f"give {ca.folder / 'crl.pem'} to the broker and the coordinator (pki.broker_dir does that)"
        ]
    return _finish(args, trouble, {"revoked": [i.serial for i in gone]}, *lines)


def list_issued(args: argparse.Namespace, settings: Settings) -> int:
    """The index."""
    ca, now = CaFolder(settings.pki.state_dir), time.time()
    shown = [i for i in ca.issued() if args.name in (None, i.name)]
    if args.expiring is not None:
        soon = now + args.expiring * 86_400
        # One that was renewed is no matter: the newest of its kind counts.
        newest = {(i.name, i.use): i for i in shown if i.state(now) == "valid"}
        shown = [i for i in newest.values() if i.not_after < soon]
    listed = [{**asdict(i), "state": i.state(now)} for i in shown]
    rows = [[i.name, i.role, i.use, i.state(now), f"until {_day(i.not_after)}", i.serial] for i in shown]
    lines = [table((), rows)] if rows else []
    lines += [f"{len(shown)} certificates; the authority's fingerprint is {ca.trusted_sha256}"]
    print_result(args, {"sha256": ca.trusted_sha256, "certificates": listed}, *lines)
    return 0


def print_acl(args: argparse.Namespace, settings: Settings) -> int:
    """The access list as `pki.broker_dir` would get it."""
    text = broker_files.acl(CaFolder(settings.pki.state_dir), settings)
    print_result(args, {"acl": text}, text.removesuffix("\n"))
    return 0


def apply_again(args: argparse.Namespace, settings: Settings) -> int:
    """The broker's files once more, and a reload."""
    ca = open_folder(settings)
    for file in args.list:
        try:
            found = ca.absorb(read(file))
        except ValueError as e:
            raise SettingsError(f"--list {file}: {e}") from None
        print(f"{file}: {found} certificates that were not revoked here", file=sys.stderr)
    trouble = broker_files.apply(ca, settings, revoked=ca.revoked_names())
    pki = settings.pki
    done = [f"ca.pem, crl.pem and acl.conf are in {pki.broker_dir}"] if pki.broker_dir is not None else []
    done += [f"ran: {shlex.join(pki.reload)}"] if pki.reload else []
    line = "; ".join(done) or "nothing was done: neither pki.broker_dir nor pki.reload is set"
    return _finish(args, trouble, {}, *([] if trouble else [line]))


def replace_authority(args: argparse.Namespace, settings: Settings) -> int:
    """One step of the authority's own replacement."""
    ca, done = replacement.replace_authority(args, open_folder(settings))
    trouble = broker_files.apply(ca, settings)
    return _finish(args, trouble, {"phase": ca.index().phase, "sha256": ca.sha256}, done)


def readmit(args: argparse.Namespace, settings: Settings) -> int:
    """Let parties renew whose certificates ended while they were off."""
    ca, ttl_s = CaFolder(settings.pki.state_dir), seconds(args.ttl)
    newest = [ca.readmit(name, ttl_s) for name in args.name]
    ended = ", ".join(f"{i.name} (until {_day(i.not_after)})" for i in newest)
    print_result(
        args,
        {"readmitted": [i.name for i in newest], "ttl_s": ttl_s},
        f"within {args.ttl} these renew by themselves, though their certificates are over: {ended}",
        "each does so at its start and daily; at once by `sudo systemctl start apiary-renew` there",
    )
    return 0


def clock(args: argparse.Namespace, settings: Settings) -> int:
    """This machine's clock beside the authority's last change; `--confirm` believes it."""
    ca = CaFolder(settings.pki.state_dir)
    if args.confirm:
        ca.confirm_clock()
    index, now = ca.index(), time.time()
    believed = index.believes(now)
    state = "is believed" if believed else "is not believed: set it, or --confirm it where it is right"
    print_result(
        args,
        {"now": now, "last_change": index.changed, "believed": believed},
        f"this machine's clock says {_day(now)}, the authority was last used at {_day(index.changed)}: "
        f"it {state}",
    )
    return 0 if believed else NotReady.exit_code


def token(args: argparse.Namespace, settings: Settings) -> int:
    """A token for somebody who joins by the service."""
    ca = CaFolder(settings.pki.state_dir)
    sha256 = ca.trusted_sha256
    tokens = Tokens(ca.folder)
    if args.cancel:
        count = tokens.cancel(args.name)
        print_result(args, {"cancelled": count}, f"cancelled: {count} tokens")
        return 0
    whom, ttl_s = Identity(args.name, Role(args.role)), seconds(args.ttl)
    ca.check_free(whom, again=args.again)
    made = tokens.make(whom, ttl_s, again=args.again)
    role = "" if whom.role is Role.NODE else f" --role {whom.role}"
    print_result(
        args,
        {"name": whom.name, "token": made, "ca_sha256": sha256, "ttl_s": ttl_s},
        f"token for {whom}, once, within {args.ttl}; the next command asks for it, or reads it from a pipe:",
        made,
        f"apiary pki join https://HOST:{settings.pki.port} --name {whom.name}{role} --ca-sha256 {sha256}",
    )
    return 0


def _give(
    args: argparse.Namespace, settings: Settings, ca: CaFolder, whom: Identity, permit: Permit, *,
    replace_old: bool, new_keys: bool = False,
) -> int:  # fmt: skip
    days, uses = settings.pki.days, USES[whom.role]
    if args.dir is not None:
        make_here(
            ca, whom, uses, args.dir, days, permit=permit,
            names=args.san, new_keys=new_keys, replace_old=replace_old, owner=args.owner,
        )  # fmt: skip
        where = str(args.dir)
    else:
        keys = read_request(read(args.request), whom.name, uses)
        made = ca.issue(whom, keys, days, permit=permit, names=args.san, replace_old=replace_old)
        given = ca.answer(made).encode()
        where = str(args.out or "-")
        if args.out is not None:
            write_atomic(args.out, given)
        elif not args.json:
            sys.stdout.write(given.decode())
    trouble = broker_files.apply(ca, settings, revoked=[whom.name] if replace_old else [])
    latest = [i for i in ca.issued() if i.name == whom.name][-len(uses) :]
    if not args.json:  # standard output may hold the certificates
        until = _day(min(i.not_after for i in latest))
        print(f"{whom}: {len(latest)} certificates until {until}, in {where}", file=sys.stderr)
    certificates = [asdict(i) for i in latest]
    result = {"name": whom.name, "role": whom.role, "where": where, "certificates": certificates}
    return _finish(args, trouble, result)


def _renewable(args: argparse.Namespace, index: Index, now: float) -> Issued:
    """The newest certificate of the name, which may be renewed at `now`. Raises SettingsError."""
    standing = index.standing(args.name, now)
    if not standing:
        raise SettingsError(f"{args.name!r} has no valid certificate: enrol it")
    if not args.force and not any(i.due(now) for i in standing):
        until = _day(min(i.not_after for i in standing))
        raise SettingsError(f"{args.name!r} has certificates until {until}, not due yet: --force does it now")
    return standing[-1]


def _one_way(args: argparse.Namespace) -> None:
    if (args.dir is None) == (args.request is None):
        raise SettingsError(
            "say where the keys are: --request FILE for another machine's (`apiary pki request` makes it), "
            "or --dir DIR to make them on this one"
        )


def _finish(args: argparse.Namespace, trouble: list[str], result: dict[str, Any], *lines: str) -> int:
    """Print the result and the broker's trouble; the exit code."""
    print_result(args, {**result, "trouble": trouble}, *lines)
    for line in trouble:
        print(f"apiary: {line}", file=sys.stderr)
    return _BROKER_TROUBLE if trouble else 0


def _first_line(file: Path) -> bytes:
    try:
        line = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")[0].removesuffix(b"\r")
    except OSError as e:
        raise NotReady(f"pki.passphrase_file {file}: {e.strerror}") from None
    if not line:
        raise SettingsError(f"pki.passphrase_file {file}: its first line is empty")
    return line


def _day(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d")
