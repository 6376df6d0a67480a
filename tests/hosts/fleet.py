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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from attacks import Attacker
from machines import Machine, bootstrap, in_namespaces, join_network

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "hosts"
WORK: Final = BUILD / "run"
PIS: Final = ("pi-1", "pi-2", "pi-3")
RECAP: Final = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.M)
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

    def __init__(self, suite: str) -> None:
        self.base, self.key = BUILD / suite, BUILD / "key"
        self.server = self._machine("server", 10)
        self.pis = {name: self._machine(name, 11 + n) for n, name in enumerate(PIS)}
        self.members = list(PIS)
        self._plays = 0

    def _machine(self, name: str, number: int) -> Machine:
        wheels = [f"--bind-ro={BUILD / 'wheelhouse'}:/srv/wheelhouse"]
        return Machine(name, number, base=self.base, work=WORK, key=self.key, binds=wheels)

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
        """The run's closed rounds."""
        results: list[dict[str, Any]] = self.run(name).get("results", [])
        return results

    def finished(self, name: str) -> dict[str, Any]:
        until(f"run {name} is finished", lambda: self.run(name).get("state") == "finished", SECONDS_A_RUN)
        return self.run(name)


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
        shutil.copytree(BUILD / "shares" / f"node-{number}", pictures, dirs_exist_ok=True)
    for machine in (fleet.server, *fleet.pis.values()):
        machine.boot()
    return f"{1 + len(PIS)} hosts let SSH in"


def install(fleet: Fleet) -> str:
    played = fleet.play("site.yml")
    assert all(fleet.node(name)["state"] == "ready" for name in PIS)
    return f"{sum(played.changed.values())} changes; all nodes are ready"


def first_run(fleet: Fleet) -> str:
    fleet.operator("run start --name first --rounds 3 --min-nodes 3")
    told = fleet.finished("first")
    assert [sorted(r["contributors"]) for r in told["results"]] == [list(PIS)] * 3
    assert told["results"][-1]["accuracy"] > 0.3
    # Mutual TLS and nothing else: there is no other listener.
    listening = fleet.server.ssh("ss -Hltn").stdout
    assert ":8883" in listening and ":1883" not in listening, listening
    return f"3 rounds, 3 nodes each, accuracy {told['results'][-1]['accuracy']:.1%}"


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
    fleet.operator("run start --name upgraded --rounds 6 --min-nodes 3")
    until("the run has begun", lambda: fleet.rounds("upgraded"), 300)
    fleet.play("site.yml", "-e", f"common_wheel={wheel('9.0.1')}")
    since = {
        name: float(pi.ssh("stat -c %Y /run/apiary-edge/started-with").stdout)
        for name, pi in fleet.pis.items()
    }
    assert since["pi-1"] < since["pi-2"] <= since["pi-3"], since
    assert {fleet.node(name)["version"] for name in PIS} == {"9.0.1"}
    told = fleet.finished("upgraded")
    assert len(told["results"]) == 6
    return "one node, then the others; the run under way was finished by the new version"


def bad_upgrade(fleet: Fleet) -> str:
    bad = wheel("9.0.2", breaks=True)
    played = fleet.play("site.yml", "-e", f"common_wheel={bad}", "-e", "edge_back_within_s=20", code=2)
    assert "No further wave begins" in played.text()
    versions = {
        name: pi.ssh("/opt/apiary/venv/bin/apiary --version").stdout.split()[-1]
        for name, pi in fleet.pis.items()
    }
    assert versions == {"pi-1": "9.0.2", "pi-2": "9.0.1", "pi-3": "9.0.1"}, versions
    assert fleet.node("pi-2")["state"] == fleet.node("pi-3")["state"] == "ready"
    return "the first node did not come back: the others kept their version"


def downgrade(fleet: Fleet) -> str:
    fleet.play("site.yml", "-e", f"common_wheel={wheel('9.0.1')}")
    assert {fleet.node(name)["version"] for name in PIS} == {"9.0.1"}
    return "back to 9.0.1 everywhere"


def power_cut(fleet: Fleet) -> str:
    fleet.operator("run start --name cut --rounds 5 --min-nodes 3")
    until("pi-2 trains", lambda: fleet.node("pi-2").get("state") == "training", 300, 0.2)
    fleet.pis["pi-2"].kill()
    closed = len(fleet.rounds("cut"))
    until("two more rounds are closed", lambda: len(fleet.rounds("cut")) >= closed + 2, 300)
    without = [r for r in fleet.rounds("cut") if "pi-2" not in r["contributors"]]
    assert without, "no round was closed without pi-2"
    fleet.pis["pi-2"].boot()
    until("pi-2 is back", lambda: fleet.node("pi-2").get("state") not in (None, "lost"), 120)
    told = fleet.finished("cut")
    assert len(told["results"]) == 5
    return f"round {without[0]['round']} was closed without it; it came back by itself"


def revoke(fleet: Fleet) -> str:
    fleet.operator("run start --name revoked --rounds 4 --min-nodes 3")
    until("pi-3 trains", lambda: fleet.node("pi-3").get("state") == "training", 300, 0.2)
    connected = "ss -Htn state established '( sport = :8883 )'"
    address = fleet.pis["pi-3"].address
    assert address in fleet.server.ssh(connected).stdout
    began = time.monotonic()
    fleet.play("revoke.yml", "-e", "party=pi-3")
    played_s = time.monotonic() - began
    until("pi-3 is off the broker", lambda: address not in fleet.server.ssh(connected).stdout, 5, 0.2)
    told = fleet.finished("revoked")
    assert all("pi-3" not in r["contributors"] for r in told["results"]), told
    said = fleet.pis["pi-3"].ssh("journalctl -u apiary-edge -n 30 --no-pager").stdout
    assert "revoked" in said or "certificate" in said, said
    return f"out {played_s:.0f} s after the command began; no update of it was counted"


def decommission(fleet: Fleet) -> str:
    fleet.play("decommission.yml", "--limit", "pi-3")
    left = fleet.pis["pi-3"].ssh("ls /opt /etc /etc/systemd/system; ls /var/lib/apiary").stdout
    assert "apiary" not in left.replace("/var/lib/apiary", "") and "pictures" in left, left
    fleet.members.remove("pi-3")
    return "service, program and keys are gone, its pictures are not"


def attack(fleet: Fleet) -> str:
    attacker = Attacker(fleet.server, fleet.pis, WORK / "attacks")
    rows = attacker.all()
    for what, answer, logged in rows:
        print(f"    {what:44} {answer:44} {logged}", flush=True)
    assert fleet.status()["coordinator"]["state"] == "online"
    return f"{len(rows)} attacks, all refused"


def restore(fleet: Fleet) -> str:
    fleet.operator("run start --name restored --rounds 5 --min-nodes 2")
    until("two rounds are closed", lambda: len(fleet.rounds("restored")) >= 2, 300)
    fleet.play("backup.yml", "-e", f"backup={WORK / 'backup'}")
    kept = fleet.rounds("restored")
    fleet.server.destroy()
    fleet.server.boot()
    fleet.play("restore.yml", "-e", f"backup={WORK / 'backup'}")
    fleet.play("site.yml")
    told = fleet.finished("restored")
    assert len(told["results"]) == 5
    assert [r["accuracy"] for r in told["results"][:2]] == [r["accuracy"] for r in kept[:2]]
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


def prepare(suite: str, *, keep: bool) -> None:
    """What is made once and kept in build/: the system, the wheels that it needs, pictures for each host."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not keep:
        shutil.rmtree(WORK, ignore_errors=True)
        shutil.rmtree(BUILD / "wheels", ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    python = bootstrap(BUILD, suite)
    stamp = BUILD / "wheelhouse" / f"complete-{python}"
    needs = (ROOT / "pyproject.toml").read_bytes()
    if not stamp.exists() or stamp.read_bytes() != needs:
        print("downloading what the hosts install (600 MB, once)", flush=True)
        shutil.rmtree(BUILD / "wheels", ignore_errors=True)
        pip(["download", "--only-binary=:all:", "--python-version", python, "--dest",
             str(BUILD / "wheelhouse"), f"{wheel('9.0.0')}[coordinator,edge]"])  # fmt: skip
        (BUILD / "wheelhouse" / "apiary-9.0.0-py3-none-any.whl").unlink()
        stamp.write_bytes(needs)
    if not (BUILD / "shares").exists():
        share = ["data", "partition", "digits", "--nodes", "3", "--by", "dirichlet", "--alpha", "0.5"]
        subprocess.run(
            [sys.executable, "-m", "apiary_cli", *share, "--out", BUILD / "shares"], check=True, cwd=ROOT
        )


def tell(suite: str, wanted: list[str]) -> int:
    """Inside: take the steps in order; 0 where all held."""
    join_network()
    fleet, rows, failed = Fleet(suite), [], False
    for title, step in STEPS:
        if wanted and step.__name__ not in wanted:
            continue
        print(f"... {title}", flush=True)
        began = time.monotonic()
        try:
            outcome = step(fleet)
        except (AssertionError, RuntimeError, subprocess.SubprocessError, KeyError, OSError) as e:
            outcome, failed = f"FAILED: {type(e).__name__}: {e}", True
        rows.append((title, time.monotonic() - began, outcome))
        print(f"    {rows[-1][1]:6.1f} s  {outcome}", flush=True)
        if failed:
            look(fleet)
            break
    print(f"\n{'step':38} {'seconds':>8}  outcome")
    for title, seconds, outcome in rows:
        print(f"{title:38} {seconds:8.1f}  {outcome.splitlines()[0]}")
    print("not taken: " + ", ".join(t for t, s in STEPS[len(rows) :]) if failed else "all held")
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
    parser.add_argument("--suite", default="bookworm", help="Debian of the hosts: bookworm, trixie")
    parser.add_argument("--keep", action="store_true", help="go on with the disks that the last hosts left")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "steps", nargs="*", help="only these, on new hosts: " + " ".join(s.__name__ for _, s in STEPS)
    )
    args = parser.parse_args()
    missing = [
        p for p in ("debootstrap", "systemd-nspawn", "nft", "ssh", "ansible-playbook") if not shutil.which(p)
    ]
    if os.geteuid() != 0 or missing:
        sys.exit(f"needs root and {', '.join(missing) or 'nothing else'}: "
                 "sudo apt-get install debootstrap systemd-container nftables openssh-client")  # fmt: skip
    if args.inside:
        return tell(args.suite, args.steps)
    prepare(args.suite, keep=args.keep)
    return in_namespaces(Path(__file__).resolve(), ["--suite", args.suite, *args.steps])


if __name__ == "__main__":
    sys.exit(main())
