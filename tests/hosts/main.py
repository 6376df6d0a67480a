"""`make hosts`: a server and three "Pis" on this machine, from nothing to a fleet that survives its operator.

Each step is what an operator does, by the commands of docs/operations.md, and asserts what must come of it.
Needs root, and debootstrap, systemd-container and nftables; leaves nothing running behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time

from tests.hosts.fleet import Fleet
from tests.hosts.ground import LATER, PIS, WORK, prepare
from tests.hosts.machines import in_namespaces, join_network
from tests.hosts.steps import STEPS


def tell(suites: dict[str, str], wanted: list[str]) -> int:
    """Inside: take the steps in order; 0 where all held."""
    join_network()
    fleet, rows = Fleet(suites), list[tuple[str, str, float, str]]()
    named = {step.__name__: (title, step) for title, step in STEPS}
    taken = [named[name] for name in wanted or named]
    for title, step in taken:
        print(f"... {title}", flush=True)
        began = time.monotonic()
        try:
            held, outcome = "yes", step(fleet)
        except Exception as e:  # whatever it is: the table, the logs, and the end
            held, outcome = "NO", f"{type(e).__name__}: {e}"
        rows.append((title, held, time.monotonic() - began, outcome))
        print(f"    {rows[-1][2]:6.1f} s  {outcome}", flush=True)
        if held != "yes":
            look(fleet)
            break
    rows += [(title, "not taken", 0.0, "") for title, _ in taken[len(rows) :]]
    print(table(rows))
    (WORK / "table.md").write_text(table(rows))
    return int(any(held != "yes" for _, held, _, _ in rows))


def table(rows: list[tuple[str, str, float, str]]) -> str:
    """Step, whether it held, seconds, outcome: Markdown."""
    lines = ["| step | held | seconds | outcome |", "|---|---|---:|---|"]
    for title, held, seconds, outcome in rows:
        first = outcome.splitlines()[0] if outcome else ""
        lines.append(f"| {title} | {held} | {seconds:.0f} | {first} |")
    total = sum(seconds for _, _, seconds, _ in rows)
    good = sum(held == "yes" for _, held, _, _ in rows)
    return "\n".join([*lines, f"| **all** | {good} of {len(rows)} | {total:.0f} | |\n"])


def look(fleet: Fleet) -> None:
    """What an operator would look at."""
    for machine, unit in ((fleet.server, "mosquitto"), (fleet.server, "apiary-coordinator"),
                          *((pi, "apiary-edge") for pi in fleet.pis.values())):  # fmt: skip
        try:
            said = machine.ssh(f"journalctl -u {unit} -n 25 --no-pager", check=False, timeout_s=20).stdout
        except subprocess.TimeoutExpired:
            said = "does not answer"
        print(f"--- {machine.name}, {unit}\n{said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    debians = ("bookworm", "trixie")
    parser.add_argument("--server", choices=debians, default="bookworm", help="its Debian (bookworm)")
    parser.add_argument("--trixie", default="pi-2", metavar="PI,PI", help="nodes with Debian 13 (pi-2)")
    parser.add_argument("--keep", action="store_true", help="go on with the disks that the last hosts left")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "steps", nargs="*", help="only these, in this order: " + " ".join(s.__name__ for _, s in STEPS)
    )
    args = parser.parse_args()
    missing = [
        p for p in ("debootstrap", "systemd-nspawn", "nft", "ssh", "ansible-playbook") if not shutil.which(p)
    ]
    if os.geteuid() != 0 or missing:
        sys.exit(f"needs root and {', '.join(missing) or 'nothing else'}: "
                 "sudo apt-get install debootstrap systemd-container nftables openssh-client")  # fmt: skip
    suites = (
        {"server": args.server}
        | {pi: debians[pi in args.trixie.split(",")] for pi in PIS}
        | {LATER: "trixie"}
    )
    if args.inside:
        return tell(suites, args.steps)
    prepare(suites, keep=args.keep)
    arguments = ["--server", args.server, "--trixie", args.trixie, *args.steps]
    code = in_namespaces("tests.hosts.main", arguments)
    if code == 0 and not args.keep:
        # The logs of the plays stay, the disks (3 GB) only where something failed.
        for name in ("server", *PIS, LATER):
            shutil.rmtree(WORK / name, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
