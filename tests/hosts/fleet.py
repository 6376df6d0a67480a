"""`make hosts`: a server and three "Pis" on this machine, from nothing to a fleet that survives its operator.

Each step is what an operator does, by the commands of docs/operations.md, and asserts what must come of it.
Needs root, and debootstrap, systemd-container and nftables; leaves nothing running behind.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))
from attacks import Attacker
from machines import Machine, bootstrap, in_namespaces, join_network, quoted

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "hosts"
WORK: Final = BUILD / "run"
PIS: Final = ("pi-1", "pi-2", "pi-3")
RECAP: Final = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.M)
READ_ROUNDS: Final = """
import sqlite3, sys
journal = sqlite3.connect("file:/var/lib/apiary/coordinator/journal.sqlite?mode=ro", uri=True)
sql = "SELECT result FROM round WHERE run = ? AND result IS NOT NULL ORDER BY number"
print("[" + ",".join(result for result, in journal.execute(sql, sys.argv[1:])) + "]")
"""
SECONDS_A_RUN: Final = 900


@dataclass(frozen=True)
class Played:
    """How a play ended: its exit code, and for each host what changed."""

    code: int
    changed: dict[str, int]
    log: Path

    def text(self) -> str:
        return self.log.read_text()


class Fleet:
    """The hosts, the plays, and what the fleet says of itself."""

    def __init__(self, suites: dict[str, str]) -> None:
        self.suites, self.key = suites, BUILD / "key"
        self.server = self._machine("server", 10)
        self.pis = {name: self._machine(name, 11 + n) for n, name in enumerate(PIS)}
        self.members = [name for name in PIS if not (WORK / name / "gone").exists()]
        self._plays = 0

    def _machine(self, name: str, number: int) -> Machine:
        wheels = [f"--bind-ro={BUILD / 'wheelhouse'}:/srv/wheelhouse"]
        return Machine(
            name, number, base=BUILD / self.suites[name], work=WORK, key=self.key, binds=wheels
        )  # fmt: skip

    def inventory(self) -> Path:
        """The example's groups with these hosts' addresses."""
        hosts = {m.name: {"ansible_host": m.address} for m in (self.server, *self.pis.values())}
        server: dict[str, Any] = {"hosts": {"server": {}}}
        told = {
            "all": {
                "hosts": {name: hosts[name] for name in ("server", *self.members)},
                "children": {
                    "authority": server, "broker": server, "coordinator": server,
                    "edge": {"hosts": {name: {} for name in self.members}},
                },
                "vars": {
                    "ansible_user": "pi",
                    "ansible_ssh_private_key_file": str(self.key),
                    "ansible_ssh_common_args": " ".join(self.server.ssh_options()[2:]),
                    "common_broker_host": self.server.address,
                    "common_find_links": "/srv/wheelhouse",
                    "common_firewall": True,
                    "common_sd_card_care": True,
                    "coordinator_test_data": str(BUILD / "shares" / "server"),
                    "coordinator_settings": {"run": {
                        "recipe_options": {"size": 16, "channels": 1, "widths": [16, 32, 48]},
                        "plan": {"epochs": 8, "batch_size": 16, "learning_rate": 0.003, "shift": 0.07},
                        "lost_grace_s": 5, "min_nodes": 2, "quorum": 0.3,
                    }},
                    "edge_data_dir": "/var/lib/apiary/pictures",
                    "edge_waves": [1, "100%"],
                },
            }
        }  # fmt: skip
        path = WORK / "fleet.yml"
        path.write_text(json.dumps(told, indent=1))
        return path

    def play(self, book: str, *more: str, code: int = 0) -> Played:
        """Run a playbook; its end must be `code`."""
        self._plays += 1
        log = WORK / f"play-{self._plays:02d}-{Path(book).stem}.log"
        command = ["ansible-playbook", "-i", str(self.inventory()), f"deploy/{book}", *more]
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(ROOT / "deploy/ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        }
        with log.open("w") as out:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=out, stderr=out, timeout=3600, check=False
            )
        told = {m[1]: int(m[2]) for m in RECAP.finditer(log.read_text())}
        assert done.returncode == code, (
            f"{' '.join(command)}: exit {done.returncode}, expected {code}; see {log}\n"
            + log.read_text()[-3000:]
        )
        return Played(done.returncode, told, log)

    def operator(self, command: str, *, check: bool = True) -> str:
        """`sudo apiary ...` on the server."""
        return self.server.ssh(f"apiary {command}", check=check).stdout

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.operator("status --json", check=False) or "{}")
        return told

    def node(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.status().get("nodes", {}).get(name, {})
        return found

    def run(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.operator(f"run show {name} --json", check=False) or "{}")
        return told

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """The run's finished rounds, from the coordinator's journal: who took part, the model's digest."""
        said = self.server.ssh(f"python3 -c {quoted(READ_ROUNDS)} {name}", check=False).stdout
        told: list[dict[str, Any]] = json.loads(said or "[]")
        return told

    def finished(self, name: str) -> list[dict[str, Any]]:
        """Wait for the end of a run; its rounds."""
        until(f"run {name} is finished", lambda: self.run(name).get("state") == "finished", SECONDS_A_RUN, 3)
        return self.rounds(name)

    def start(self, name: str, rounds: int, nodes: int) -> str:
        """Begin a run on a fleet whose nodes are all there and idle; its name."""
        until(
            "all nodes are ready",
            lambda: all(self.node(name).get("state") == "ready" for name in self.members),
            180,
            2,
        )
        # Another name each time, for hosts whose disks were kept.
        name = f"{name}-{int(time.time())}"
        self.operator(f"run start --name {name} --rounds {rounds} --min-nodes {nodes}")
        return name


def until(what: str, done: Callable[[], object], within_s: float, pause_s: float = 0.5) -> float:
    """Ask again and again; the seconds that it took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < within_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(pause_s)
    return time.monotonic() - began


# --- the steps ------------------------------------------------------------------------------------------


def boot(fleet: Fleet) -> str:
    for number, name in enumerate(PIS, 1):
        # A card that was flashed with pictures on it; nothing else is there.
        pictures = WORK / name / "upper/var/lib/apiary/pictures"
        if not pictures.exists():
            shutil.copytree(BUILD / "shares" / f"node-{number}", pictures)
    for machine in (fleet.server, *(fleet.pis[name] for name in fleet.members)):
        machine.boot()
    return f"{1 + len(PIS)} hosts let SSH in"


def install(fleet: Fleet) -> str:
    played = fleet.play("site.yml")
    assert all(fleet.node(name)["state"] == "ready" for name in fleet.members)
    return f"{sum(played.changed.values())} changes; all nodes are ready"


def first_run(fleet: Fleet) -> str:
    run = fleet.start("first", rounds=3, nodes=3)
    rounds = fleet.finished(run)
    assert [sorted(r["contributors"]) for r in rounds] == [list(PIS)] * 3
    assert rounds[-1]["accuracy"] > 0.3
    # Mutual TLS and nothing else: there is no other listener.
    listening = fleet.server.ssh("ss -Hltn").stdout
    assert ":8883" in listening and ":1883" not in listening, listening
    return f"3 rounds, 3 nodes each, accuracy {rounds[-1]['accuracy']:.1%}"


def nothing_to_do(fleet: Fleet) -> str:
    played = fleet.play("site.yml")
    assert set(played.changed.values()) == {0}, played.changed
    return "changed=0 on every host"


def verify(fleet: Fleet) -> str:
    fleet.play("verify.yml")
    for machine, unit in ((fleet.server, "apiary-coordinator"), (fleet.pis["pi-1"], "apiary-edge")):
        said = machine.ssh(f"systemd-analyze security --no-pager {unit} | tail -1").stdout
        assert "OK" in said, said
    return said.strip()


def upgrade(fleet: Fleet) -> str:
    run = fleet.start("upgraded", rounds=6, nodes=2)
    until("the run has begun", lambda: fleet.rounds(run), 300)
    fleet.play("site.yml", "-e", f"common_wheel={wheel('9.0.1')}")
    since = {
        name: float(pi.ssh("stat -c %Y /run/apiary-edge/started-with").stdout)
        for name, pi in fleet.pis.items()
        if name in fleet.members
    }
    assert all(since["pi-1"] < since[name] for name in fleet.members[1:]), since
    assert {fleet.node(name)["version"] for name in fleet.members} == {"9.0.1"}
    assert len(fleet.finished(run)) == 6
    return "one node, then the others; the run under way was finished by the new version"


def bad_upgrade(fleet: Fleet) -> str:
    bad = wheel("9.0.2", breaks=True)
    played = fleet.play("site.yml", "-e", f"common_wheel={bad}", "-e", "edge_back_within_s=20", code=2)
    assert "No further wave begins" in played.text()
    versions = {
        name: pi.ssh("/opt/apiary/venv/bin/apiary --version").stdout.split()[-1]
        for name, pi in fleet.pis.items()
        if name in fleet.members
    }
    assert versions == {name: "9.0.2" if name == "pi-1" else "9.0.1" for name in fleet.members}, versions
    assert all(fleet.node(name)["state"] == "ready" for name in fleet.members[1:])
    return "the first node did not come back: the others kept their version"


def downgrade(fleet: Fleet) -> str:
    fleet.play("site.yml", "-e", f"common_wheel={wheel('9.0.1')}")
    assert {fleet.node(name)["version"] for name in fleet.members} == {"9.0.1"}
    return "back to 9.0.1 everywhere"


def power_cut(fleet: Fleet) -> str:
    run = fleet.start("cut", rounds=5, nodes=2)
    until("pi-2 trains", lambda: fleet.node("pi-2").get("state") == "training", 300, 0.2)
    fleet.pis["pi-2"].kill()
    closed = len(fleet.rounds(run))
    until("two more rounds are closed", lambda: len(fleet.rounds(run)) >= closed + 2, 300)
    without = [r for r in fleet.rounds(run) if "pi-2" not in r["contributors"]]
    assert without, "no round was closed without pi-2"
    fleet.pis["pi-2"].boot()
    until("pi-2 is back", lambda: fleet.node("pi-2").get("state") not in (None, "lost"), 120)
    assert len(fleet.finished(run)) == 5
    return f"round {without[0]['round']} was closed without it; it came back by itself"


def revoke(fleet: Fleet) -> str:
    run = fleet.start("revoked", rounds=5, nodes=2)
    until("pi-3 trains", lambda: fleet.node("pi-3").get("state") == "training", 300, 0.2)
    connected = "ss -Htn state established '( sport = :8883 )'"
    address = fleet.pis["pi-3"].address
    assert address in fleet.server.ssh(connected).stdout
    began = time.monotonic()
    fleet.operator("pki revoke pi-3")
    until("pi-3 is off the broker", lambda: address not in fleet.server.ssh(connected).stdout, 5, 0.1)
    took_s = time.monotonic() - began
    assert took_s < 5, f"{took_s:.1f} s"
    closed = len(fleet.rounds(run))
    # The play says the same, and finds it done.
    assert fleet.play("revoke.yml", "-e", "party=pi-3").changed == {"server": 0}
    after = fleet.finished(run)[closed:]
    assert len(after) > 1 and all("pi-3" not in r["contributors"] for r in after), after
    said = fleet.pis["pi-3"].ssh("journalctl -u apiary-edge -n 30 --no-pager").stdout
    assert "revoked" in said or "certificate" in said, said
    return f"off the broker {took_s:.1f} s after the command began; none of its updates counted from there on"


def decommission(fleet: Fleet) -> str:
    fleet.play("decommission.yml", "--limit", "pi-3")
    gone = "/opt/apiary /etc/apiary /usr/local/bin/apiary /etc/systemd/system/apiary-edge.service"
    assert not fleet.pis["pi-3"].ssh(f"ls -d {gone} 2>/dev/null", check=False).stdout
    fleet.pis["pi-3"].ssh("test -d /var/lib/apiary/pictures")
    fleet.members.remove("pi-3")
    (WORK / "pi-3" / "gone").touch()
    return "service, program and keys are gone, its pictures are not"


def attack(fleet: Fleet) -> str:
    attacker = Attacker(fleet.server, fleet.pis, WORK / "attacks")
    rows = attacker.all()
    for what, answer, logged in rows:
        print(f"    {what:44} {answer:44} {logged}", flush=True)
    assert fleet.status()["coordinator"]["state"] == "online"
    return f"{len(rows)} attacks, all refused"


def restore(fleet: Fleet) -> str:
    run = fleet.start("restored", rounds=5, nodes=2)
    until("two rounds are closed", lambda: len(fleet.rounds(run)) >= 2, 300)
    fleet.play("backup.yml", "-e", f"backup={WORK / 'backup'}")
    kept = fleet.rounds(run)
    fleet.server.destroy()
    fleet.server.boot()
    fleet.play("restore.yml", "-e", f"backup={WORK / 'backup'}")
    fleet.play("site.yml")
    rounds = fleet.finished(run)
    assert len(rounds) == 5
    assert [r["model"] for r in rounds[: len(kept)]] == [r["model"] for r in kept]
    return f"a fresh host took up the run after round {len(kept)} and finished it"


STEPS: Final[tuple[tuple[str, Callable[[Fleet], str]], ...]] = (
    ("boot four hosts", boot),
    ("site.yml, from nothing", install),
    ("a run over mutual TLS", first_run),
    ("site.yml again", nothing_to_do),
    ("verify.yml, and the units' exposure", verify),
    ("an upgrade in waves, in a run", upgrade),
    ("an upgrade that fails", bad_upgrade),
    ("the way back", downgrade),
    ("power cut of a node in a round", power_cut),
    ("revoke a node in a round", revoke),
    ("attacks on the broker", attack),
    ("decommission.yml", decommission),
    ("backup, another host, restore", restore),
)


# --- what the steps stand on ----------------------------------------------------------------------------


def wheel(version: str, *, breaks: bool = False) -> Path:
    """This checkout as another version; `breaks`: one whose node does not start."""
    out = BUILD / "wheels"
    made = out / f"apiary-{version}-py3-none-any.whl"
    if made.exists():
        return made
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("core", "coordinator", "edge", "cli", "broker", "datasets"):
        ignore = shutil.ignore_patterns("__pycache__", "*.npz", "images")
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    about = tree / "core/apiary/__init__.py"
    about.write_text(re.sub(r'__version__ = "[^"]+"', f'__version__ = "{version}"', about.read_text()))
    if breaks:
        edge = tree / "cli/apiary_cli/edge.py"
        edge.write_text(edge.read_text() + "\n\ndef run(args):  # type: ignore\n    raise SystemExit(7)\n")
    pip(["wheel", "--no-deps", "--wheel-dir", str(out), str(tree)])
    return made


def pip(words: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "-qq"], check=True, cwd=ROOT)


def prepare(suites: dict[str, str], *, keep: bool) -> None:
    """What is made once and kept in build/: the systems, the wheels that they need, pictures."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not keep:
        shutil.rmtree(WORK, ignore_errors=True)
        shutil.rmtree(BUILD / "wheels", ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    for suite in sorted(set(suites.values())):
        extras = ["coordinator", "edge"] if suites["server"] == suite else ["edge"]
        fill_wheelhouse(bootstrap(BUILD, suite), extras)
    if not (BUILD / "shares").exists():
        share = ["data", "partition", "digits", "--nodes", "3", "--by", "dirichlet", "--alpha", "0.5"]
        subprocess.run(
            [sys.executable, "-m", "apiary_cli", *share, "--out", BUILD / "shares"], check=True, cwd=ROOT
        )


def fill_wheelhouse(python: str, extras: list[str]) -> None:
    """Download what hosts with this Python install, once for each state of pyproject.toml."""
    house = BUILD / "wheelhouse"
    stamp = house / f"complete-{python}-{'-'.join(extras)}"
    needs = (ROOT / "pyproject.toml").read_bytes()
    if stamp.exists() and stamp.read_bytes() == needs:
        return
    print(f"downloading what Python {python} installs of {' and '.join(extras)} (once)", flush=True)
    told = tomllib.loads(needs.decode())["project"]
    wanted = [*told["dependencies"], *(r for e in extras for r in extra_requirements(told, e))]
    # pip's --python-version chooses wheels, but leaves markers to the Python that it runs on.
    target = {"python_version": python, "python_full_version": f"{python}.0"}
    plain = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(target):
            requirement.marker = None
            plain.append(str(requirement))
    pip(["download", "--only-binary=:all:", "--python-version", python, "--dest", str(house), *plain])
    stamp.write_bytes(needs)


def extra_requirements(project: dict[str, Any], extra: str) -> list[str]:
    """What an extra names, its own extras (`apiary[edge]`) followed."""
    found = []
    for text in project["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "apiary":
            found += [r for e in sorted(requirement.extras) for r in extra_requirements(project, e)]
        else:
            found.append(text)
    return found


def tell(suites: dict[str, str], wanted: list[str]) -> int:
    """Inside: take the steps in order; 0 where all held."""
    join_network()
    fleet, rows, failed = Fleet(suites), [], False
    named = {step.__name__: (title, step) for title, step in STEPS}
    taken = [named[name] for name in wanted or named]
    for title, step in taken:
        print(f"... {title}", flush=True)
        began = time.monotonic()
        try:
            outcome = step(fleet)
        except Exception as e:  # whatever it is: the table, the logs, and the end
            outcome, failed = f"FAILED: {type(e).__name__}: {e}", True
        rows.append((title, time.monotonic() - began, outcome))
        print(f"    {rows[-1][1]:6.1f} s  {outcome}", flush=True)
        if failed:
            look(fleet)
            break
    print(f"\n{'step':38} {'seconds':>8}  outcome")
    for title, seconds, outcome in rows:
        print(f"{title:38} {seconds:8.1f}  {outcome.splitlines()[0]}")
    print("not taken: " + ", ".join(t for t, _ in taken[len(rows) :]) if failed else "all held")
    return int(failed)


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
    suites = {"server": args.server} | {pi: debians[pi in args.trixie.split(",")] for pi in PIS}
    if args.inside:
        return tell(suites, args.steps)
    prepare(suites, keep=args.keep)
    told = ["--server", args.server, "--trixie", args.trixie, *args.steps]
    code = in_namespaces(Path(__file__).resolve(), told)
    if code == 0 and not args.keep:
        # The logs of the plays stay, the disks (3 GB) only where something failed.
        for name in ("server", *PIS):
            shutil.rmtree(WORK / name, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
