"""What is attacked: a mosquitto as the play deploys it, a coordinator and honest nodes, each a process.

All is real but the training. The broker has the project's configuration, access list, certificates, log
filter and the commands of its unit; where it ends, it is started again as systemd would.
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
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.broker.secured import Secured
from tests.broker.unit import after_end, before_start

from apiary.settings import to_toml
from apiary_cli.main import main

HONEST: Final = ("pi-01", "pi-02", "pi-03")
THIEF: Final = "pi-66"
"""An enrolled node with its own valid certificate; no process runs for it."""
OPERATOR: Final = "alice"
PARTY: Final = Path(__file__).parents[1] / "stand_ins" / "fleet_party.py"
UNMENDED: Final = Path(__file__).with_name("unmended.py")
PICTURES: Final = 30
"""Of an honest node."""
QUICK_LIMIT: Final = 80_000_000
_RESTART_S: Final = 2.0
"""RestartSec of the broker's unit."""
_RUN_S: Final = 180.0


class DeployedBroker(Secured):
    """Watched by a thread, which starts it again."""

    def __init__(self, folder: Path, *, memory_limit: int | None, mended: bool):
        self._memory_limit = memory_limit if mended else 0
        self._mended = mended
        self._over = threading.Event()
        self.restarts = 0
        self.peak_mb = 0.0
        super().__init__(folder, "certificates", extra="log_type debug", old=not mended)
        self._watcher = threading.Thread(target=self._watch, name="unit")
        self._watcher.start()

    def launch(self) -> subprocess.Popen[bytes]:
        if self._mended:
            before_start(self.folder)
        text = self.conf.read_text()
        if self._memory_limit is not None:
            lines = text.splitlines()
            lines = [
                f"memory_limit {self._memory_limit}" if x.startswith("memory_limit") else x for x in lines
            ]
            self.conf.write_text("\n".join(lines) + "\n")
        apiary, rights = Path(sys.executable).with_name("apiary"), self.folder / "apiary" / "acl.conf"
        shell = (
            f"exec mosquitto -c {self.conf} 2> >(exec {apiary} broker-log {rights} >> {self.journal_file})"
        )
        path = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
        return subprocess.Popen(["bash", "-c", shell], env={**os.environ, "PATH": path})

    def pki(self, *words: str, sets: tuple[str, ...] = ()) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return super().pki(*words, sets=sets)

    @property
    def journal_file(self) -> Path:
        """Where the filter's lines go."""
        return self.folder / "journal"

    def journal(self) -> str:
        """What its log says."""
        return self.journal_file.read_text(errors="replace") if self.journal_file.exists() else ""

    def log(self) -> str:
        return self.journal()

    @property
    def memory_mb(self) -> float:
        """What mosquitto has of the memory now."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            return int(next(x for x in lines if x.startswith("VmRSS")).split()[1]) / 1024
        return 0.0

    def close(self) -> None:
        self._over.set()
        self._watcher.join()
        super().close()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.peak_mb = max(self.peak_mb, self.memory_mb)
            if self.process.poll() is not None:
                if self._mended:
                    after_end(self.folder, self.process.returncode)
                if not self._over.wait(_RESTART_S):
                    self.process = self.launch()
                    self.restarts += 1


class Ground:
    """A context manager. `quick`: with little memory, a twentieth of everything, and one round a row.

    `mended` False: without a limit, with the access list for nodes of version 0.1, and with a unit that
    starts the broker with whatever it kept. The rows about floods do not hold then.
    """

    def __init__(self, folder: Path, *, quick: bool = False, mended: bool = True):
        self.folder = folder
        self.quick = quick
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs = 0
        self._mended = mended
        self.without: str | None = None
        """The mend that is taken out of the processes that are started."""
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
            "operator": {"name": OPERATOR},
        }
        file = self.folder / f"{name}.toml"
        file.write_text(to_toml(sections))
        return file

    def start(self, name: str) -> None:
        """Start the coordinator or a node; its log is NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._command(str(self.settings_file(name)), name),
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("APIARY_")},
            )

    def _command(self, *words: str) -> list[str]:
        if self.without is None:
            return [sys.executable, str(PARTY), *words]
        return [sys.executable, str(UNMENDED), self.without, "party", *words]

    def take_out(self, mend: str | None) -> None:
        """Where mends are taken out: a new coordinator without this one, and with nothing that it kept."""
        if self._mended or mend == self.without:
            return
        self.without = mend
        self.stop("coordinator")
        shutil.rmtree(self.folder / "coordinator-state", ignore_errors=True)
        self.start("coordinator")

    def stop(self, name: str) -> None:
        """`kill -9` a party."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def freeze(self, name: str, seconds: float) -> None:
        """A party that does nothing for a while: it is slow, or swaps."""
        self._processes[name].send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._processes[name].send_signal(signal.SIGCONT)

    # -- what an operator sees

    def ask(self, *words: str) -> tuple[int, Any]:
        """A command of `apiary` by the operator, with --json: exit code, and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*words, "--config", str(self.settings_file(OPERATOR)), "--json"])
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
            return all(states.get(name) == "ready" for name in HONEST)

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
        self.until(f"{run} is finished", summary.exists, _RUN_S)
        told = json.loads(summary.read_text())
        assert told["rounds_closed"] == rounds, told
        counted = {r: set(names) & set(HONEST) for r, names in told["contributors"].items()}
        assert all(names == set(HONEST) for names in counted.values()), counted
        restarts = self.broker.restarts - before
        again = f", the broker started {restarts} times anew" if restarts else ""
        return f"{rounds} rounds of {len(HONEST)} nodes in {time.monotonic() - began:.0f} s{again}"
