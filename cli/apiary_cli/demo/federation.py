"""A federation on this machine: broker, coordinator and nodes as the separate processes that a fleet runs."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from apiary.errors import RunFailed, StoreError
from apiary.files import advice, write_atomic
from apiary.process.child import end, start
from apiary.settings import to_toml

COORDINATOR: Final = "coordinator"
MARK: Final = "FEDERATION_FOLDER"
"""In the environment of every process of a federation on this machine, and of its children: whose it is."""
_COPIED_S: Final = 2.0
"""The last words of a party are in its log this soon after its end."""


@dataclass(slots=True)
class Party:
    """One process and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    _copying: threading.Thread

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log."""
        if self.code is not None:
            self._copying.join(_COPIED_S)
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask it to end, then end it."""
        end(self.process, timeout_s)
        self._copying.join(_COPIED_S)


class LocalFederation:
    """Starts `apiary coordinator` and `apiary edge` with one settings file, their logs in `folder`."""

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, Any]]):
        self.folder = folder
        self.settings_file = folder / "apiary.toml"
        write_atomic(self.settings_file, to_toml(settings).encode(), sync=False)
        self.parties: dict[str, Party] = {}
        """By name: the nodes', and `coordinator`."""

    def start_coordinator(self, *flags: str) -> None:
        """Start it; its last line on standard output is the result as JSON."""
        self._start(COORDINATOR, "coordinator", "--json", *flags)

    def start_node(self, node: str, data: Path, *flags: str) -> None:
        """Start a node on its pictures, with a state folder of its own."""
        state = self.folder / "state" / node
        self._start(node, "edge", "--node-id", node, "--data", str(data), "--state-dir", str(state), *flags)

    def check(self) -> None:
        """Raise RunFailed, with the end of its output, where a party ended that should not have."""
        for party in self.parties.values():
            if party.code not in (None, 0):
                raise RunFailed(f"{party.name} ended with exit code {party.code}:\n{party.tail()}")

    def result(self) -> Any:
        """The coordinator's last line, decoded, once it has ended well; None before."""
        if COORDINATOR not in self.parties or self.parties[COORDINATOR].code != 0:
            return None
        lines = (self.folder / "coordinator.out").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]) if lines else None

    def stop(self) -> None:
        """End everything that was started."""
        for party in self.parties.values():
            if party.code is None:
                party.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 10
        for party in self.parties.values():
            party.stop(max(0.1, until - time.monotonic()))

    def _start(self, name: str, command: str, *flags: str) -> None:
        path = self.folder / f"{name}.log"
        log = path.open("ab", buffering=0)
        with (self.folder / f"{name}.out").open("wb") as out:
            process = start(
                [sys.executable, "-m", "apiary_cli", command, "--config", str(self.settings_file), *flags],
                stdout=out,
                # Through us: errors of a party whose log cannot be written are worth reading.
                stderr=subprocess.PIPE,
                env=_clean_environment() | {MARK: str(self.folder.resolve())},
            )
        copying = threading.Thread(target=_copy, args=(process, log), name=f"{name}-log", daemon=True)
        copying.start()
        self.parties[name] = Party(name, process, path, copying)


def _copy(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    with process.stderr as output, log:
        while data := output.read1(65_536):  # type: ignore[attr-defined] # it is buffered
            with contextlib.suppress(OSError):  # ours may be full as well
                log.write(data)


def fresh_folder(runs_dir: Path, kind: str) -> Path:
    """A hidden folder of its own for what runs here, absolute. Raises StoreError."""
    folder = runs_dir.absolute() / f".{kind}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True)
    except OSError as e:
        raise StoreError(f"cannot use the folder {runs_dir} (--runs-dir): {e.strerror}{advice(e)}") from None
    return folder


def _clean_environment() -> dict[str, str]:
    """Ours without settings, which the file gives; the runtime's own chatter is turned down."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("APIARY_")}
    return {**kept, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
