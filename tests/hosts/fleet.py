"""The hosts, the plays, and what the fleet says of itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.hosts.ground import BUILD, LATER, PIS, ROOT, WORK
from tests.hosts.machines import NETWORK, Machine, quoted

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
        self.pis = {name: self._machine(name, 11 + n) for n, name in enumerate((*PIS, LATER))}
        self.members = [name for name in PIS if not (WORK / name / "gone").exists()]
        self.members += [LATER] * (WORK / LATER / "joined").exists()
        self.run_settings: dict[str, Any] = {"lost_grace_s": 5, "min_nodes": 2, "quorum": 0.3}
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
                    "common_ntp_servers": ["10.91.7.1"],
                    "common_sd_card_care": True,
                    "coordinator_test_data": str(BUILD / "shares" / "server"),
                    "coordinator_settings": {"run": {
                        "recipe_options": {"size": 16, "channels": 1, "widths": [16, 32, 48]},
                        "plan": {"epochs": 8, "batch_size": 16, "learning_rate": 0.003, "shift": 0.07},
                        **self.run_settings,
                    }},
                    "edge_data_dir": "/var/lib/apiary/pictures",
                    "edge_page": True,
                    "edge_page_networks": [f"{NETWORK}.1/32"],
                    "edge_waves": [1, "100%"],
                },
            }
        }  # fmt: skip
        path = WORK / "fleet.yml"
        path.write_text(json.dumps(told, indent=1))
        return path

    def play(self, book: str, *more: str, code: int = 0, tree: Path = ROOT) -> Played:
        """Run a playbook of the checkout `tree`; its end must be `code`."""
        playing = self.begin(book, *more, tree=tree)
        try:
            ended = playing.wait(3600)
        finally:
            playing.kill()
        log = self._log(book)
        told = {m[1]: int(m[2]) for m in RECAP.finditer(log.read_text())}
        assert ended == code, (
            f"{book} {' '.join(more)}: exit {ended}, expected {code}; see {log}\n{log.read_text()[-3000:]}"
        )
        return Played(ended, told, log)

    def begin(self, book: str, *more: str, tree: Path = ROOT) -> subprocess.Popen[bytes]:
        """Start a playbook; the caller waits for its end."""
        self._plays += 1
        command = ["ansible-playbook", "-i", str(self.inventory()), f"deploy/{book}", *more]
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(tree / "deploy/ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "PWD": str(tree),
        }
        with self._log(book).open("w") as out:
            return subprocess.Popen(command, cwd=tree, env=environment, stdout=out, stderr=out)

    def _log(self, book: str) -> Path:
        """Of the last play."""
        return WORK / f"play-{self._plays:02d}-{Path(book).stem}.log"

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

    def stop(self, name: str) -> None:
        """End a run that has more rounds than there is time for; it keeps its best model."""
        self.operator("run stop")
        until(f"run {name} has ended", lambda: self.run(name).get("state") not in (None, "active"), 600, 2)

    def ready(self) -> None:
        """Wait until all nodes are there and idle, but for those that were revoked."""

        def idle() -> bool:
            nodes = [self.node(name) for name in self.members]
            return all(n.get("state") == "ready" or n.get("why") == "revoked" for n in nodes)

        until("all nodes are ready", idle, 180, 2)

    def start(self, name: str, rounds: int, nodes: int) -> str:
        """Begin a run on a fleet whose nodes are all there and idle; its name."""
        self.operator("run stop", check=False)  # one that a step left, which did not hold
        self.ready()
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
