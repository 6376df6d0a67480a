"""A mosquitto as the play deploys it: configuration, access list, certificates, log filter, unit.

Where it ends, it is started again as systemd would.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from tests.broker.secured import Secured
from tests.broker.unit import after_end, before_start

_RESTART_S: Final = 2.0
"""RestartSec of the broker's unit."""


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
    def reload(self) -> str:
        """The setting by which `apiary pki` has it read its files again."""
        return f"pki.reload=['kill', '-HUP', '{self.process.pid}']"

    @property
    def memory_mb(self) -> float:
        """What mosquitto has of the memory now."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            return int(next(x for x in lines if x.startswith("VmRSS")).split()[1]) / 1024
        return 0.0

    def begin_anew(self) -> None:
        """Kill it, and have it started with nothing that it kept."""
        process, before = self.process, self.restarts
        process.kill()
        process.wait()
        (self.folder / "mosquitto.db").unlink(missing_ok=True)
        end = time.monotonic() + 30
        while self.restarts == before:
            assert time.monotonic() < end, "the broker is not started again"
            time.sleep(0.1)
        self.await_answer()

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
