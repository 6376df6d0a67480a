"""What is attacked: a mosquitto as the play deploys it, a coordinator and honest nodes, each a process.

All is real but the training.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.attacks.deployed import DeployedBroker
from tests.broker.secured import Secured

from apiary.identity.gate import MessageGate
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import SecuritySettings, to_toml
from apiary_cli.main import main

HONEST: Final = ("pi-01", "pi-02", "pi-03")
THIEF: Final = "pi-66"
"""An enrolled node with its own valid certificate; no process runs for it."""
OPERATORS: Final = ("alice", "bob")
OPERATOR: Final = OPERATORS[0]
PARTY: Final = Path(__file__).parents[1] / "stand_ins" / "fleet_party.py"
SITE: Final = Path(__file__).with_name("site")
PICTURES: Final = 30
"""Of an honest node."""
QUICK_LIMIT: Final = 80_000_000
_RUN_S: Final = 180.0
_UNMENDED_RUN_S: Final = 60.0


class Ground:
    """A context manager. `quick`: with little memory, a twentieth of everything, and one round a row.

    `mended` False: without a limit, with the access list for nodes of version 0.1, and with a unit that
    starts the broker with whatever it kept. The rows about floods do not hold then. The others do not hold
    where `take_out` takes their mends out of the processes that are started.
    """

    def __init__(self, folder: Path, *, quick: bool = False, mended: bool = True):
        self.folder = folder
        self.quick = quick
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs = 0
        self._mended = mended
        self.without: str | None = None
        """The mend that is taken out of the processes that are started, `unmended.MENDS`."""
        self.broker = DeployedBroker(folder, memory_limit=QUICK_LIMIT if quick else None, mended=mended)

    def __enter__(self) -> Ground:
        try:
            for name in (*HONEST, THIEF):
                assert self.broker.pki("enrol", name, "--dir", str(self.folder / name)) == 0
            for i in range(PICTURES):
                picture = self.folder / "pictures" / "a" / f"{i}.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                picture.touch()
            for name in ("coordinator", *HONEST):
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.stop(name)
        self.broker.close()

    def much(self, count: int) -> int:
        """How much of something a row takes."""
        return count // 20 if self.quick else count

    def few(self, count: int) -> int:
        """How often a row tries something that it tries `count` times."""
        return min(2, count) if self.quick else count

    @property
    def most_mb(self) -> float:
        """What the broker may take: its limit, and what the allocator and TLS add."""
        return (QUICK_LIMIT if self.quick else 512 * 2**20) / 1e6 + 100

    # -- parties

    def settings_file(self, name: str) -> Path:
        """Settings of a party, with its own certificate."""
        own = self.broker.broker_settings(name).model_dump(mode="json", exclude_defaults=True)
        sections = {
            "broker": {**own, "retry_max_s": 2.0},
            "security": self.security(name).model_dump(mode="json", exclude_none=True),
            "run": {"settle_s": 0.5, "seed": 5, "min_nodes": len(HONEST)},
            "coordinator": {
                "state_dir": self.folder / "coordinator-state",
                "runs_dir": self.folder / "runs",
                "sync": False,
                "upload_idle_s": 3.0,
            },
            "edge": {
                "data_dir": self.folder / "pictures",
                "refresh_s": 10,
                "upload_idle_s": 3.0,
                "want_idle_s": 2.0,
            },
            "operator": {"name": name if name in OPERATORS else OPERATOR},
            "release": {"canaries": list(HONEST[:2]), "waves": [0.5, 1.0], "soak_s": 1.0, "wave_s": 60.0},
        }
        file = self.folder / f"{name}.toml"
        file.write_text(to_toml(sections))
        return file

    def security(self, name: str) -> SecuritySettings:
        """With which files a party signs and verifies."""
        told = self.security_of(self.folder / name)
        shared = self.folder / "apiary" / "crl.pem"
        return told.model_copy(update={"crl": shared}) if name == "coordinator" else told

    def security_of(self, own: Path) -> SecuritySettings:
        """The same, of a folder that `apiary pki` filled."""
        tls, signing = own / "tls", own / "signing"
        return SecuritySettings(
            ca=tls / "ca.pem", crl=tls / "crl.pem", cert=signing / "cert.pem", key=signing / "key.pem"
        )

    def gate(self, name: str, *, role: Role = Role.NODE, ahead_s: float = 0.0) -> MessageGate:
        """What a party seals with, by a clock that is ahead; for the thread that calls this."""
        return load_gate(self.security(name), role, name, None, lambda: time.time() + ahead_s)

    def environment(self, *, ahead_s: float = 0.0) -> dict[str, str]:
        """Of a process that is started: without the row's mend, or by a clock that is ahead."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("APIARY_", "ATTACK_"))}
        own |= {"PYTHONPATH": str(SITE)}
        if self.without is not None:
            own["ATTACK_WITHOUT"] = self.without
        if ahead_s:
            own["ATTACK_AHEAD_S"] = str(ahead_s)
        return own

    def start(self, name: str) -> None:
        """Start the coordinator or a node; its log is NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, str(PARTY), str(self.settings_file(name)), name],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=self.environment(),
            )

    def command(self, *words: str, ahead_s: float = 0.0, text: str = "") -> subprocess.CompletedProcess[str]:
        """`apiary WORDS` as a process of its own, which reads `text`; exit code and what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "apiary_cli", *words],
            input=text, capture_output=True, text=True, timeout=120, check=False,
            env=self.environment(ahead_s=ahead_s), cwd=self.folder,
        )  # fmt: skip

    def pki(
        self, *words: str, broker: Secured | None = None, sets: Iterable[str] = (), ahead_s: float = 0.0
    ) -> subprocess.CompletedProcess[str]:
        """`apiary pki WORDS` as a process, for the authority of the fleet, or of another broker."""
        flags = [x for pair in (*(broker or self.broker).settings, *sets) for x in ("--set", pair)]
        return self.command("pki", *flags, *words, ahead_s=ahead_s)

    def enrol_again(self, name: str) -> None:
        """New certificates for a name whose old ones are revoked by that."""
        words = ("enrol", name, "--dir", str(self.folder / name), "--again")
        assert self.broker.pki(*words, sets=(self.broker.reload,)) == 0

    def take_out(self, mend: str | None) -> None:
        """Where mends are taken out: a new coordinator without this one, and with nothing that it kept.

        None: it is the broker's own; that begins anew, too.
        """
        if self._mended:
            return
        if mend is None:
            self.broker.begin_anew()
        rights = self.folder / "apiary" / "acl.conf"
        if mend == "rights":
            rights.write_text("topic readwrite #\npattern readwrite #\n")
            self.broker.process.send_signal(signal.SIGHUP)
        elif self.without == "rights":
            assert self.broker.pki("apply", sets=(self.broker.reload,)) == 0
        self.without = mend
        self.stop("coordinator")
        shutil.rmtree(self.folder / "coordinator-state", ignore_errors=True)
        self.start("coordinator")
        self.ready()

    def ended(self) -> list[str]:
        """Parties whose processes ended by themselves."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def stop(self, name: str) -> None:
        """`kill -9` a party."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A party that does nothing for the while: it is slow, or swaps."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    # -- what an operator sees

    def ask(self, *words: str, by: str = OPERATOR) -> tuple[int, Any]:
        """A command of `apiary` by an operator, with --json: exit code, and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*words, "--config", str(self.settings_file(by)), "--json"])
        return code, json.loads(out.getvalue()) if out.getvalue() else err.getvalue()

    def until(self, what: str, done: Callable[[], Any], within_s: float = 60.0) -> Any:
        """Wait for it; what it gave."""
        end = time.monotonic() + within_s
        while not (value := done()):
            assert time.monotonic() < end, f"not in {within_s:.0f} s: {what}"
            time.sleep(0.2)
        return value

    def ready(self) -> None:
        """Until every honest node is ready, and the coordinator answers."""

        def so() -> bool:
            code, told = self.ask("nodes")
            states = {n["id"]: n["state"] for n in told["nodes"]} if code == 0 else {}
            # What nodes say is retained by the broker; whether the coordinator is there only itself can say.
            return all(states.get(name) == "ready" for name in HONEST) and self.ask("run", "list")[0] == 0

        self.until("every honest node is ready", so, 180.0)

    def state_of(self, name: str) -> str | None:
        """As `apiary nodes` has it; None where the node is not known."""
        code, told = self.ask("nodes")
        nodes = told["nodes"] if code == 0 else []
        return next((str(n["state"]) for n in nodes if n["id"] == name), None)

    def history(self) -> list[dict[str, Any]]:
        """The rounds of the last run, as its record has them."""
        lines = (self.folder / "runs" / f"run-{self._runs}" / "history.jsonl").read_text().splitlines()
        return [told for told in map(json.loads, lines) if "contributors" in told and "rejected" in told]

    def _how_far(self, run: str) -> str:
        code, told = self.ask("run", "list")
        states = (
            {one["run"]: f"{one['state']}, {one['rounds']} rounds" for one in told["runs"]}
            if code == 0
            else {}
        )
        return states.get(run, "not known")

    def round_under(self, harm: Callable[[], object]) -> str:
        """Begin a run of three rounds, do `harm` meanwhile, and see every honest node counted in each."""
        self.ready()
        self._runs += 1
        rounds = 1 if self.quick else 3
        run, before = f"run-{self._runs}", self.broker.restarts
        self.until(
            "the run is taken",
            lambda: self.ask("run", "start", "--name", run, "--rounds", str(rounds))[0] == 0,
        )
        began = time.monotonic()
        harm()
        summary = self.folder / "runs" / run / "summary.json"
        end = time.monotonic() + (_RUN_S if self._mended else _UNMENDED_RUN_S)
        while not summary.exists():
            assert time.monotonic() < end, f"{run} is not finished: {self._how_far(run)}"
            assert not self.ended(), f"ended by itself: {', '.join(self.ended())}"
            time.sleep(0.2)
        told = json.loads(summary.read_text())
        assert told["rounds_closed"] == rounds, told
        counted = {r: set(names) & set(HONEST) for r, names in told["contributors"].items()}
        assert all(names == set(HONEST) for names in counted.values()), counted
        restarts = self.broker.restarts - before
        again = f", the broker started {restarts} times anew" if restarts else ""
        return f"{rounds} rounds of {len(HONEST)} nodes in {time.monotonic() - began:.0f} s{again}"
