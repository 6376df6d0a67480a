"""`apiary image`: write a card so that a Pi joins the fleet by itself."""

import argparse
import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from apiary.errors import DataError, SettingsError
from apiary.identity.roles import Identity, Role
from apiary.settings import Settings, load_settings
from apiary.text_files import first_line
from apiary_cli.image import card, first_boot
from apiary_cli.image.plan import CardPlan, Package, Wifi
from apiary_cli.pki.device import plain_sha256
from apiary_cli.pki.folder import CaFolder
from apiary_cli.pki.tokens import Tokens, given_token, seconds
from apiary_cli.terminal import flags

EXAMPLES = """examples:
  apiary image /media/me/bootfs --name pi-07 --ssh-key ~/.ssh/id_ed25519.pub --broker broker.local \\
      --enrolment https://broker.local:8443 --wheel dist/apiary_fl-0.1.0-py3-none-any.whl
  apiary image card --os trixie ... --wifi-ssid Barn --wifi-password-file barn.txt --wifi-country DE
  apiary image /media/me/bootfs ... --settings node.toml            more of the node's settings

The card is one that Raspberry Pi OS was written to; the folder is its boot partition. With an authority on
this machine (pki.state_dir) the one-time token is made here, otherwise give --token-file and --ca-sha256,
which `apiary pki token` prints. At its first start the Pi waits for a network and the right time, installs
the wheel, joins, and starts the node. The token is on the card until then: whoever reads the card before that
can join in its place.
"""
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_KEY: Final = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/=]{40,}( [^\n]*)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Write a card so that a Pi joins the fleet by itself at its first start."
    parser.add_argument("folder", type=Path, help="the card's boot partition, or a folder to copy onto it")
    parser.add_argument("--name", required=True, help="the node's id, which is its host name too")
    parser.add_argument("--os", choices=["trixie", "bookworm"], help="of the card (found out from it)")
    parser.add_argument("--user", default="apiary-admin", help="who may log in by SSH (apiary-admin)")
    parser.add_argument(
        "--ssh-key", type=Path, required=True, metavar="FILE", help="public keys of that user"
    )
    parser.add_argument("--timezone", default="Etc/UTC", help="Etc/UTC")
    parser.add_argument("--wifi-ssid", metavar="NAME", help="a wireless network; none: the cable")
    parser.add_argument("--wifi-password-file", type=Path, metavar="FILE", help="its passphrase, first line")
    parser.add_argument("--wifi-country", default="", metavar="CC", help="where it is, e.g. DE")
    parser.add_argument("--broker", required=True, metavar="HOST", help="the broker, as the Pi reaches it")
    parser.add_argument("--broker-port", type=int, default=8883, metavar="PORT", help="8883")
    parser.add_argument(
        "--enrolment", required=True, metavar="URL", help="`apiary pki serve`, as it reaches it"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="one-time token (made here, with an authority)"
    )
    parser.add_argument("--token", metavar="T", help="the same, seen by every user of this machine")
    parser.add_argument("--ca-sha256", metavar="F", help="the authority's fingerprint (found here)")
    parser.add_argument("--ttl", default="7d", metavar="TIME", help="how long a token made here holds (7d)")
    parser.add_argument("--again", action="store_true", help="the name was enrolled before: replace it")
    parser.add_argument("--wheel", metavar="FILE|URL", required=True, help="Apiary's wheel")
    parser.add_argument("--wheel-sha256", metavar="H", help="needed with a URL")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="all it depends on, to install without a network"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="more settings of the node (TOML)")
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def run(args: argparse.Namespace) -> int:
    """Write the files. Raises ApiaryError, before the first one where something does not fit."""
    settings = load_settings(args.config, args.overrides).settings
    if not args.folder.is_dir():
        raise DataError(
            f"{args.folder} is no folder: mount the card's boot partition, or make one to copy from"
        )
    system = args.os or card.system_of(args.folder)
    package, wheels = _package(args)
    plan = _plan(args, settings, package)
    files = card.files_of(plan, system, args.folder)
    names = [*sorted(files), *(f"{first_boot.FOLDER}/{w.name}" for w in wheels)]
    for name, content in files.items():
        card.write(args.folder / name, content.encode())
    for wheel in wheels:
        card.write(args.folder / first_boot.FOLDER / wheel.name, flags.read(wheel))
    flags.print_result(
        args,
        {"folder": str(args.folder), "os": system, "name": plan.name, "files": names},
        f"{plan.name} ({system}): {len(names)} files in {args.folder}: unmount it, start the Pi",
        "it shows up in `apiary pki list` when it has joined, a few minutes after its first start",
    )
    return 0


def _plan(args: argparse.Namespace, settings: Settings, package: Package) -> CardPlan:
    name = flags.name(args.name, "--name")
    if not _HOST.fullmatch(name):
        raise SettingsError(f"--name {name!r} is no host name: letters, digits and '-', at most 63")
    if not _USER.fullmatch(args.user):
        raise SettingsError(f"--user {args.user!r} is no user name")
    lines = map(str.strip, flags.read(args.ssh_key).decode(errors="replace").splitlines())
    keys = tuple(filter(None, lines))
    if not keys or not all(_KEY.fullmatch(key) for key in keys):
        why = "not public SSH keys, one a line (the file ends in .pub)"
        raise SettingsError(f"--ssh-key {args.ssh_key}: {why}")
    enrolment = flags.https_url(args.enrolment, "--enrolment")
    wifi = None
    if args.wifi_ssid is not None:
        if args.wifi_password_file is None:
            raise SettingsError("--wifi-ssid needs --wifi-password-file and --wifi-country")
        passphrase = first_line(args.wifi_password_file, what="--wifi-password-file")
        wifi = Wifi.of(args.wifi_ssid, passphrase, args.wifi_country)
    node_settings = _node_settings(args, name)
    token, ca_sha256 = _token(args, settings, name)
    return CardPlan(
        name, args.user, keys, args.timezone, wifi, package, enrolment, ca_sha256, token, node_settings
    )  # fmt: skip


def _node_settings(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """`apiary.toml`: what the card decides, over those of --settings. Checked here, not on the Pi."""
    values: dict[str, Any] = {}
    if args.settings is not None:
        try:
            values = tomllib.loads(flags.read(args.settings).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise SettingsError(f"--settings {args.settings} is not TOML: {e}") from None
    tls, signing = "/etc/apiary/tls", "/etc/apiary/signing"
    fixed = {
        "broker": {
            "host": flags.host(args.broker, "--broker"), "port": args.broker_port, "tls": True,
            "tls_ca": f"{tls}/ca.pem", "tls_cert": f"{tls}/cert.pem", "tls_key": f"{tls}/key.pem",
        },
        "security": {
            "ca": f"{tls}/ca.pem", "crl": f"{tls}/crl.pem",
            "cert": f"{signing}/cert.pem", "key": f"{signing}/key.pem",
        },
        "edge": {"node_id": name},
    }  # fmt: skip
    # Where the play has it too, so that what the node keeps stays its own when the play takes the host over.
    values.setdefault("edge", {}).setdefault("state_dir", "/var/lib/apiary/edge")
    for section, entries in fixed.items():
        values.setdefault(section, {}).update(entries)
    try:
        Settings.model_validate(values)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise SettingsError(f"--settings {args.settings}: {where}: {first['msg']}") from None
    return values


def _token(args: argparse.Namespace, settings: Settings, name: str) -> tuple[str, str]:
    token = given_token(args)
    if (token is None) != (args.ca_sha256 is None):
        raise SettingsError("--token-file and --ca-sha256 belong together: `apiary pki token` prints both")
    if token is not None:
        return token, plain_sha256(args.ca_sha256)
    ca = CaFolder(settings.pki.state_dir)
    whom = Identity(name, Role.NODE)
    ca.check_free(whom, again=args.again)
    return Tokens(ca.folder).make(whom, seconds(args.ttl), again=args.again), ca.trusted_sha256


def _package(args: argparse.Namespace) -> tuple[Package, list[Path]]:
    """What to install, and the wheels that go onto the card."""
    more = sorted(args.wheels.glob("*.whl")) if args.wheels is not None else []
    if args.wheels is not None and not more:
        raise DataError(f"--wheels {args.wheels}: no *.whl in it (`pip download` gets them)")
    if args.wheel.startswith(("https://", "http://")):
        if args.wheel_sha256 is None:
            raise SettingsError("--wheel with a URL needs --wheel-sha256: what the Pi installs is pinned")
        name = args.wheel.rsplit("/", 1)[-1]
        return Package(_wheel_name(name), args.wheel, plain_sha256(args.wheel_sha256), bool(more)), more
    wheel = Path(args.wheel)
    data = flags.read(wheel)
    found = hashlib.sha256(data).hexdigest()
    if args.wheel_sha256 is not None and plain_sha256(args.wheel_sha256) != found:
        raise DataError(f"--wheel {wheel} has the SHA-256 {found}, expected {args.wheel_sha256}")
    return Package(_wheel_name(wheel.name), None, found, bool(more)), [wheel, *more]


def _wheel_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+\.whl", name):
        raise SettingsError(f"--wheel: {name!r} is not the name of a wheel, NAME-VERSION-...whl")
    return name
