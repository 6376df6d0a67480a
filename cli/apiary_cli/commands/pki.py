"""`apiary pki`: who belongs to the fleet. Sub-commands of the authority, and of a device."""

import argparse
from collections.abc import Callable
from pathlib import Path

from apiary.identity.roles import Role
from apiary.settings import Settings, load_settings
from apiary_cli.pki import authority, device_side
from apiary_cli.pki.enrolment_server import serve

EXAMPLES = """examples, on the server:
  apiary pki init --fleet orchard                            found the authority (in ./pki, or pki.state_dir)
  apiary pki enrol broker --role server --san broker.local --san 10.0.0.5 --dir /etc/mosquitto/apiary
  apiary pki enrol coordinator --role coordinator --dir /etc/apiary
  apiary pki enrol alice --role operator --dir ~/apiary-alice
  apiary pki list --expiring 30
  apiary pki revoke pi-07                                    out of the fleet, within seconds
  apiary pki token pi-08 --ttl 24h                           a one-time token, for pi-08 to join by itself
  apiary pki serve                                           where it does that, and renews

on a device:
  apiary pki join https://broker.local:8443 --name pi-08 --ca-sha256 F --dir /etc/apiary
  apiary pki renew --url https://broker.local:8443 --dir /etc/apiary

without the service, by hand: request on the device, enrol on the server, install on the device:
  apiary pki request pi-07 --dir /etc/apiary --out pi-07.request.pem
  apiary pki enrol pi-07 --request pi-07.request.pem --out pi-07.answer.pem
  apiary pki install pi-07.answer.pem --dir /etc/apiary

A key never leaves the machine that made it. Each sub-command has a --help of its own.
"""
Handler = Callable[[argparse.Namespace, Settings], int]
Add = Callable[[str, Handler, str, str], argparse.ArgumentParser]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands and their flags."""
    parser.description = "The fleet's private authority: certificates for TLS and for signed messages."
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, handler: Handler, text: str, example: str) -> argparse.ArgumentParser:
        action = actions.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {example}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.set_defaults(handler=handler)
        action.add_argument("--json", action="store_true", help="print one JSON line")
        return action

    _on_the_server(add)
    _service(add)
    _on_a_device(add)


def run(args: argparse.Namespace) -> int:
    """Run the action. Raises ApiaryError."""
    settings = load_settings(args.config, args.overrides).settings
    code: int = args.handler(args, settings)
    return code


def _renew(args: argparse.Namespace, settings: Settings) -> int:
    return authority.renew(args, settings) if args.url is None else device_side.renew(args, settings)


def _serve(args: argparse.Namespace, settings: Settings) -> int:
    changes = {k: v for k, v in (("listen", args.host), ("port", args.port)) if v is not None}
    settings = settings.model_copy(update={"pki": settings.pki.model_copy(update=changes)})
    return serve(authority.open_folder(settings), settings, as_json=args.json)


def _on_the_server(add: Add) -> None:
    a = add("init", authority.init, "found the authority", "apiary pki init --fleet orchard --lock")
    a.add_argument("--fleet", default="apiary", metavar="NAME", help="what to call it (apiary)")
    a.add_argument("--lock", action="store_true", help="ask for a passphrase that locks its key")

    a = add(
        "enrol", authority.enrol, "certificates for a device, a server or a person",
        "apiary pki enrol pi-07 --request pi-07.request.pem --out pi-07.answer.pem",
    )  # fmt: skip
    a.add_argument("name", help="a node's id, an operator's name")
    _role(a)
    a.add_argument(
        "--san", action="append", default=[], metavar="NAME", help="a server's host name or address"
    )
    a.add_argument("--again", action="store_true", help="it was enrolled before: revoke what it had")
    _where_to(a)

    a = add(
        "renew", _renew, "new certificates before the old ones end",
        "apiary pki renew --url https://broker.local:8443 --dir /etc/apiary",
    )  # fmt: skip
    a.add_argument("name", nargs="?", help="on the server: whose")
    a.add_argument("--url", help="on the device: the enrolment service")
    a.add_argument("--force", action="store_true", help="even where they are not due yet")
    _where_to(a)

    a = add("revoke", authority.revoke, "shut a party out, within seconds", "apiary pki revoke pi-07")
    a.add_argument("name", help="whose certificates")
    a.add_argument("--serial", help="only this one")

    a = add("list", authority.list_issued, "every certificate and its state", "apiary pki list --expiring 30")
    a.add_argument("--expiring", type=float, metavar="DAYS", help="only valid ones that end within DAYS")
    a.add_argument("--name", help="only this party's")

    add("acl", authority.print_acl, "the broker's access list, as it is now", "apiary pki acl > acl.conf")
    a = add("apply", authority.apply_again, "write the broker's files and reload it", "apiary pki apply")
    a.add_argument(
        "--list", type=Path, action="append", default=[], metavar="FILE",
        help="first revoke what this crl.pem names, of a node or the broker: after a backup was restored",
    )  # fmt: skip

    a = add(
        "replace-authority", authority.replace_authority, "a new key and certificate for the authority",
        "apiary pki replace-authority; later --servers, then --finish",
    )  # fmt: skip
    a.add_argument("--fleet", metavar="NAME", help="what to call the new one (the former name and -2)")
    a.add_argument("--servers", action="store_true", help="second step: servers get new certificates, too")
    a.add_argument("--finish", action="store_true", help="third step: the former one is not trusted any more")
    a.add_argument("--anyway", action="store_true", help="though some still have certificates of the former")

    a = add(
        "readmit", authority.readmit, "let a party renew whose certificates ended while it was off",
        "apiary pki readmit pi-07 pi-09",
    )  # fmt: skip
    a.add_argument("name", nargs="+", help="who")
    a.add_argument("--ttl", default="7d", metavar="TIME", help="how long they may, e.g. 24h (7d)")

    a = add(
        "clock", authority.clock, "whether the authority believes this machine's clock",
        "apiary pki clock --confirm",
    )  # fmt: skip
    a.add_argument("--confirm", action="store_true", help="it is right, however long nothing was changed")


def _service(add: Add) -> None:
    a = add("token", authority.token, "a one-time token to join with", "apiary pki token pi-08 --ttl 24h")
    a.add_argument("name", help="who may join with it")
    _role(a, but=Role.SERVER)
    a.add_argument("--ttl", default="24h", metavar="TIME", help="how long it holds, e.g. 30m, 24h, 7d (24h)")
    a.add_argument("--again", action="store_true", help="it was enrolled before: revoke what it had then")
    a.add_argument("--cancel", action="store_true", help="take back every unused token for this name")

    a = add("serve", _serve, "run the enrolment service (HTTPS)", "apiary pki serve")
    a.add_argument("--host", help="listen on this address (pki.listen; all)")
    a.add_argument("--port", type=int, help="its port (pki.port; 8443)")


def _on_a_device(add: Add) -> None:
    a = add(
        "request", device_side.request, "keys on this device, and a request for certificates",
        "apiary pki request pi-07 --dir /etc/apiary --out pi-07.request.pem",
    )  # fmt: skip
    a.add_argument("name", help="this device's id")
    _role(a)
    a.add_argument("--new-keys", action="store_true", help="for a renewal: new keys beside those in use")
    a.add_argument("--out", type=Path, metavar="FILE", help="where to write it (the terminal)")
    _folder(a)

    a = add(
        "install", device_side.install, "take certificates that `enrol` wrote",
        "apiary pki install pi-07.answer.pem --dir /etc/apiary",
    )  # fmt: skip
    a.add_argument("file", type=Path, help="the answer")
    _role(a)
    a.add_argument("--ca-sha256", metavar="F", help="the authority's fingerprint, from `apiary pki init`")
    _folder(a)

    a = add(
        "join", device_side.join, "join the fleet with a one-time token",
        "apiary pki join https://broker.local:8443 --name pi-08 --ca-sha256 F --dir /etc/apiary",
    )  # fmt: skip
    a.add_argument("url", help="the enrolment service")
    a.add_argument("--name", help="this device's id (edge.node_id)")
    _role(a, but=Role.SERVER)
    a.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help="a file that holds the token, removed once used (without it: standard input)",
    )  # fmt: skip
    a.add_argument("--token", metavar="T", help="the token itself, which every user of this machine can see")
    a.add_argument("--ca-sha256", required=True, metavar="F", help="the authority's fingerprint")
    a.add_argument("--wait", type=float, default=0, metavar="S", help="keep trying to reach it for S seconds")
    _folder(a)


def _role(action: argparse.ArgumentParser, but: Role | None = None) -> None:
    roles = [str(role) for role in Role if role is not but]
    action.add_argument("--role", choices=roles, default="node", help="node")


def _where_to(action: argparse.ArgumentParser) -> None:
    action.add_argument("--request", type=Path, metavar="FILE", help="the device's request")
    action.add_argument("--out", type=Path, metavar="FILE", help="the answer goes here (the terminal)")
    _folder(action, None, "or for this very machine: keys and certificates go here")


def _folder(
    action: argparse.ArgumentParser,
    default: Path | None = Path("/etc/apiary"),
    text: str = "tls/ and signing/ (/etc/apiary)",
) -> None:
    action.add_argument("--dir", type=Path, default=default, metavar="DIR", help=text)
    action.add_argument("--owner", metavar="USER", help="the service's user, who must read the keys")
