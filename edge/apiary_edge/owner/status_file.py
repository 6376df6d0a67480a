"""The node's state in a small file, so that its owner sees it without any network: `apiary edge status`.

On tmpfs where systemd gives the service a folder there (RuntimeDirectory=apiary-edge), else in the state
folder, seldom written. Whether the service lives is judged by its process and by the boot, never by the
clock: a Pi's may be wrong by years.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apiary import __version__
from apiary.errors import StoreError
from apiary.files import write_atomic
from apiary.settings import Settings
from apiary.wire import NodeId
from apiary.wire.messages import Message
from apiary.wire.topics import TopicKind
from apiary_edge.feature import NodeFeature
from apiary_edge.owner.status_board import Board

RUNTIME_FOLDER: Final = Path("/run/apiary-edge")
_MAX_BYTES: Final = 1_000_000
_HEADLINE_S: Final = 1.0
"""A change of the state is written this soon anywhere."""
_ENDED: Final = frozenset("ZXx")
"""States of a process that runs no more, proc(5)."""
_LATE: Final = 3
"""A file that is older than so many of its own periods is of a service that hangs."""


@dataclass(frozen=True, slots=True)
class WriteIntervals:
    """Seconds between two writings of a figure that changed, and of nothing new."""

    news_s: float
    idle_s: float


_ON_TMPFS: Final = WriteIntervals(1.0, 10.0)
_ON_DISK: Final = WriteIntervals(10.0, 60.0)
"""An SD card wears; the file is not synced either."""


class StatusFile(NodeFeature):
    """Writes the board to the file. `tap` sees the node's messages; `more` gives what no message holds."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        runtime_folder: Path | None,
        more: Callable[[], Mapping[str, Any]] = dict,
    ):
        self.board = Board()
        self._node = settings.edge.node_id
        self._path = _path(settings, runtime_folder)
        self._pace = _ON_TMPFS if runtime_folder is not None else _ON_DISK
        self._shared = runtime_folder is not None
        self._clock = clock
        self._more = more
        self._constant = {
            "v": 1,
            "node": self._node,
            "version": __version__,
            "federation": settings.federation,
            "address": settings.broker.names,
            "pid": os.getpid(),
            "began": _process_start(os.getpid()),
            "boot": _boot(),
            "started_s": round(clock(), 1),
            "every_s": self._pace.idle_s,
        }
        self._written: tuple[dict[str, Any], float] | None = None

    def tap(self, kind: TopicKind, node: NodeId | None, message: Message) -> None:
        """A message that the node sent or took."""
        self.board.take(message, self._clock())

    def start(self, now: float) -> None:
        """Say that the service lives."""
        self._write(self._status(), now)

    def connected(self) -> None:
        """The broker took us in."""
        self.board.linked(self._clock())

    def disconnected(self, why: str) -> None:
        """The broker is gone."""
        self.board.unlinked(why, self._clock())

    def tick(self, now: float) -> None:
        """Write where something is new, or nothing was for long. Raises StoreError."""
        before, at = self._written or ({}, float("-inf"))
        if now - at < _HEADLINE_S:
            return
        status = self._status()
        if _headline(status) != _headline(before):
            due = _HEADLINE_S
        else:
            due = self._pace.news_s if status != before else self._pace.idle_s
        if now - at >= due:
            self._write(status, now)

    def close(self) -> None:
        """Say that it ended in good order."""
        status = {**self._status(), "state": "stopped", "why": None, "progress": None}
        self._write({**status, "broker": {"connected": False}}, self._clock())

    def _status(self) -> dict[str, Any]:
        return {**self.board.picture(), **self._more()}

    def _write(self, status: dict[str, Any], now: float) -> None:
        # Noted before it is tried: a full disk is not tried again in each turn.
        self._written = (status, now)
        document = {**self._constant, "at_s": round(now, 1), "time": int(time.time()), **status}
        # The service's umask keeps others out of its data; on tmpfs this is for everybody at the machine.
        mode = {"mode": 0o644} if self._shared else {}
        write_atomic(self._path, json.dumps(document).encode(), sync=False, **mode)


@dataclass(frozen=True, slots=True)
class Found:
    """What a node's file says. `alive`: its process runs; `age_s` since it was written, None after a boot."""

    status: dict[str, Any]
    alive: bool
    age_s: float | None

    @property
    def hangs(self) -> bool:
        """Whether the process is there, but writes no more."""
        late = _LATE * float(self.status.get("every_s", 0))
        return self.alive and self.age_s is not None and self.age_s > late

    @property
    def stopped(self) -> bool:
        """Whether it ended in good order."""
        return self.status.get("state") == "stopped"


def find(settings: Settings, now: float, folders: tuple[Path, ...] = (RUNTIME_FOLDER,)) -> Found | None:
    """The newest word of this node; `now` monotonic. Raises StoreError where a file cannot be read."""
    found = [_read(path, now) for path in places(settings, folders)]
    order = [f for f in found if f is not None]
    return max(order, key=lambda f: (f.alive, f.status.get("time", 0)), default=None)


def places(settings: Settings, folders: tuple[Path, ...] = (RUNTIME_FOLDER,)) -> list[Path]:
    """Where a node's file may be."""
    return [*(_path(settings, folder) for folder in folders), _path(settings, None)]


def runtime_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder on tmpfs that systemd made for this service, or None."""
    given = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given) if given else None


def _headline(status: Mapping[str, Any]) -> list[Any]:
    return [
        status.get("state"),
        status.get("why"),
        status.get("round"),
        (status.get("broker") or {}).get("connected"),
    ]


def _path(settings: Settings, folder: Path | None) -> Path:
    edge = settings.edge
    return folder / f"{edge.node_id}.json" if folder is not None else edge.state_dir / "status.json"


def _read(path: Path, now: float) -> Found | None:
    try:
        with path.open("rb") as f:
            status = json.loads(f.read(_MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise StoreError(f"cannot read {path}: {e.strerror}; try it with sudo") from None
    except ValueError:
        return None
    if not isinstance(status, dict) or status.get("v") != 1:
        return None
    if status.get("boot") != _boot():
        return Found(status, alive=False, age_s=None)
    pid = status.get("pid")
    alive = (
        isinstance(pid, int) and status.get("began") is not None and _process_start(pid) == status["began"]
    )
    return Found(
        status, alive and status.get("state") != "stopped", max(0.0, now - float(status.get("at_s", now)))
    )


def _process_start(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since the boot: with its id a name that is never reused.

    None where there is none, or it has ended and its exit code was not collected yet.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return int(fields[19]) if fields[0] not in _ENDED else None
    except (OSError, ValueError, IndexError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
