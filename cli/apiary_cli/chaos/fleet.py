"""The federation under test: real processes, killed, stopped and started again, and watched all the time."""

import contextlib
import logging
import math
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from apiary.bus.broker import BrokerProcess, start_broker
from apiary.errors import RunFailed, StoreError
from apiary.files import write_atomic
from apiary.identity.rights import access_list
from apiary_cli.chaos.links import Links
from apiary_cli.chaos.processes import (
    began_of,
    children_of,
    free_port,
    is_killed,
    limit_files,
    processes_of,
    send,
)
from apiary_cli.datasets.partition import Layout
from apiary_cli.demo.federation import COORDINATOR, LocalFederation, Party

log = logging.getLogger(__name__)

BROKER: Final = "broker"
RUN: Final = "chaos"
_MEMORY_EVERY_S: Final = 0.5
_MAX_FALLS: Final = 20
"""A party that ends by itself this often will not get better."""
_OUTLIVES_S: Final = 0.3
"""The kernel kills the children of a killed party at once; a training here takes little longer than this."""


def node_listener(port: int, folder: Path) -> str:
    """Lines for mosquitto: who connects to `port` has the rights of the node that is its user name."""
    rights = folder / "rights.acl"
    write_atomic(rights, access_list().encode(), sync=False)
    return f"listener {port} 127.0.0.1\nallow_anonymous true\nacl_file {rights}\n"


class Fleet:
    """Broker, coordinator and nodes in `folder`, each party behind a link of its own.

    All methods are for one thread: the kernel ends a child when the thread that started it is gone.
    """

    def __init__(self, folder: Path, layout: Layout, settings: dict[str, dict[str, Any]]):
        self.folder = folder
        self.nodes = [node.name for node in layout.nodes]
        self.parties = [COORDINATOR, *self.nodes]
        self.fell: list[str] = []
        """Parties that ended by themselves, with the end of their output."""
        self.outlived: list[str] = []
        """Children that were still there when their party had been killed for seconds."""
        self.peaks_mb: dict[str, float] = {}
        self._layout = layout
        self._settings = settings
        self.port = free_port()
        """The broker's own port, without a link in between."""
        self.port_of_one_node = free_port()
        """Another port of it: whoever connects has the rights of the node that is its user name."""
        self.links: Links
        """The links of the parties, once started."""
        self._broker: BrokerProcess
        self._federation: LocalFederation
        self._at_end = contextlib.ExitStack()
        # By party: when the fault is over, and what ends it.
        self._down: dict[str, tuple[float, Callable[[], None]]] = {}
        self._stopped: dict[str, tuple[float, Callable[[], None]]] = {}
        self._full: dict[str, tuple[float, Callable[[], None]]] = {}
        self._orphans: list[tuple[float, str, int, int]] = []
        self._memory_at = 0.0

    @property
    def ports(self) -> list[int]:
        """Every port in use."""
        return [self.port, self.port_of_one_node, *self.links.ports]

    def start(self) -> None:
        """Start everything. Raises BusError, StoreError."""
        (self.folder / "state").mkdir(parents=True)
        self.links = Links(self.port, self.parties)
        self._at_end.callback(self.links.close)
        self._settings.setdefault("broker", {})["host"] = "127.0.0.1"
        self._federation = LocalFederation(self.folder, self._settings)
        self._start_broker()
        self._at_end.callback(lambda: self._broker.stop())  # noqa: PLW0108 - the broker of then
        self._at_end.callback(self._federation.stop)
        for party in self.parties:
            self._start_party(party)
        self._at_end.callback(self.measure)

    def turn(self) -> None:
        """Start again what is due, let go on what was stopped, notice who fell."""
        now = time.monotonic()
        self._restore(now)
        self.see_to_orphans(now)
        if now - self._memory_at >= _MEMORY_EVERY_S:
            self._memory_at = now
            self.measure()
        self._notice(now)

    @property
    def result(self) -> Any:
        """The coordinator's result once it has ended well, None before."""
        return None if COORDINATOR in self._down else self._federation.result()

    # -- faults

    def up(self, name: str) -> bool:
        """Whether a party runs and is not stopped."""
        if name == BROKER:
            return self._broker.running
        return name not in self._down and name not in self._stopped and self._party(name).code is None

    @property
    def disturbed(self) -> int:
        """How many are down or stopped at the moment."""
        return len(self._down) + len(self._stopped)

    def kill(self, name: str, pause_s: float, then: Callable[[], None] | None = None) -> None:
        """`kill -9` a party or the broker; `then` runs while it is dead; it is back after the pause."""
        if name == BROKER:
            self._broker.kill()
        else:
            party = self._party(name)
            self._stopped.pop(name, None)
            self._full.pop(name, None)
            children = [
                (pid, began) for pid in children_of(party.process.pid) if (began := began_of(pid)) is not None
            ]
            party.process.kill()
            party.stop()
            self.watch_orphans(name, children)
        if then is not None:
            then()
        self._bring_back(name, time.monotonic() + pause_s)

    def watch_orphans(
        self, name: str, children: list[tuple[int, int]], within_s: float = _OUTLIVES_S
    ) -> None:
        """Of a party that was killed: these children, by id and beginning, must end in time."""
        until = time.monotonic() + within_s
        self._orphans += [(until, name, pid, began) for pid, began in children]

    def see_to_orphans(self, now: float) -> None:
        """Note those that did not."""
        for orphan in list(self._orphans):
            until, name, pid, began = orphan
            if began_of(pid) != began:
                self._orphans.remove(orphan)
            elif now >= until and not is_killed(pid):
                self._orphans.remove(orphan)
                self.outlived.append(f"process {pid} of {name}")

    def stop(self, name: str, seconds: float) -> None:
        """Stop a party as a machine that hangs, and let it go on after `seconds`."""
        pid = self._party(name).process.pid
        send(pid, signal.SIGSTOP)
        self._stopped[name] = (time.monotonic() + seconds, partial(send, pid, signal.SIGCONT))

    def fill_disk(self, name: str, seconds: float) -> None:
        """No byte of a party goes into any file for `seconds`: EFBIG, where a full disk gives ENOSPC."""
        pid = self._party(name).process.pid
        limit_files(pid, 0)
        self._full[name] = (time.monotonic() + seconds, partial(limit_files, pid, resource.RLIM_INFINITY))

    def kill_child(self, name: str) -> str | None:
        """`kill -9` the training child of a node; which process it was, None where there is none now."""
        child = next(iter(children_of(self._party(name).process.pid)), None)
        if child is None:
            return None
        send(child, signal.SIGKILL)
        return f"process {child}"

    def trains(self, name: str) -> bool:
        """Whether a training child of this node runs."""
        return self.up(name) and bool(children_of(self._party(name).process.pid))

    def state(self, name: str) -> Path:
        """The state folder of a party."""
        return self.folder / "state" / name

    @property
    def broker_database(self) -> Path:
        """Where mosquitto keeps its retained messages."""
        return self.folder / "broker" / "mosquitto.db"

    # -- the end

    def settle(self) -> None:
        """Bring back whoever is down, and heal all links."""
        self.links.heal()
        self._restore(math.inf)

    def close(self) -> None:
        """End everything; what does not end by itself is killed."""
        for _, go_on in self._stopped.values():
            go_on()
        self._stopped.clear()
        self._down.clear()
        self._at_end.close()

    def left_running(self) -> list[str]:
        """Processes that still have something to do with the folder, by id and command."""
        return [f"{pid} {command}" for pid, command in processes_of(str(self.folder.resolve()))]

    def end_left_running(self) -> None:
        """Kill what is left, so that an interrupted test leaves nothing."""
        for line in self.left_running():
            send(int(line.split()[0]), signal.SIGKILL)

    def logs(self) -> dict[str, str]:
        """Everything that the parties wrote, by file name."""
        files = [*self.folder.glob("*.log"), self.folder / "broker" / "broker.err"]
        return {f.name: f.read_text(encoding="utf-8", errors="replace") for f in files if f.is_file()}

    def measure(self) -> None:
        """Note the greatest resident memory of each role so far."""
        pids = {name: self._party(name).process.pid for name in self.parties if self.up(name)}
        if self._broker.running:
            pids[BROKER] = self._broker.pid
        for name, pid in pids.items():
            role = name if name in (COORDINATOR, BROKER) else "node"
            self._peak(role, pid)
            if role == "node":
                for child in children_of(pid):
                    self._peak("training child", child)

    # -- starting

    def _start_broker(self) -> None:
        folder = (self.folder / "broker").resolve()
        listener = node_listener(self.port_of_one_node, folder)
        self._broker = start_broker(
            self.port, state_dir=folder, prefer="mosquitto", more=listener, say=log.info
        )

    def _start_party(self, name: str) -> None:
        port = str(self.links.port(name))
        if name == COORDINATOR:
            self._federation.start_coordinator("--run", RUN, "--port", port)
        else:
            data = next(folder for folder in self._layout.nodes if folder.name == name)
            self._federation.start_node(name, data.resolve(), "--port", port)

    def _restore(self, now: float) -> None:
        """End the faults whose time is over."""
        for faults in (self._down, self._stopped, self._full):
            for name, (due, end) in list(faults.items()):
                if now >= due:
                    del faults[name]
                    end()

    def _notice(self, now: float) -> None:
        """Whoever ended without a fault of ours is a finding; it is started again, as systemd would."""
        if not self._broker.running and BROKER not in self._down:
            self._fall(BROKER, f"{BROKER}: {self._broker.log_tail()}", now)
        for name in self.parties:
            party = self._party(name)
            if name in self._down or party.code is None or (name == COORDINATOR and party.code == 0):
                continue
            if party.code == StoreError.exit_code and self._full.pop(name, None) is not None:
                # It was just starting: there is nothing to go on with, so it ends. As systemd does:
                self._bring_back(name, now + 1.0)
                continue
            self._fall(name, f"{name} ended with exit code {party.code}: {party.tail()}", now)

    def _fall(self, name: str, what: str, now: float) -> None:
        self.fell.append(what)
        if len(self.fell) > _MAX_FALLS:
            raise RunFailed(f"parties end by themselves again and again; the last: {what}")
        self._bring_back(name, now + 1.0)

    def _bring_back(self, name: str, due: float) -> None:
        start = self._start_broker if name == BROKER else partial(self._start_party, name)
        self._down[name] = (due, start)

    def _party(self, name: str) -> Party:
        return self._federation.parties[name]

    def _peak(self, role: str, pid: int) -> None:
        with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
            line = next(text for text in lines if text.startswith("VmHWM:"))
            self.peaks_mb[role] = max(self.peaks_mb.get(role, 0.0), int(line.split()[1]) / 1024)
