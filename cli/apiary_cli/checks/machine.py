"""What `apiary doctor` looks at. Each check returns what it found and how to mend it; none raises."""

import os
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from apiary.errors import ApiaryError
from apiary_edge.health import readings

State = Literal["ok", "warn", "fail"]
_MB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `mend` is what to do; empty where all is well."""

    name: str
    state: State
    what: str
    mend: str = ""


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """3.11 is the oldest that Apiary runs on."""
    what = f"Python {'.'.join(map(str, version))}"
    if version < (3, 11):
        return Check("python", "fail", what, "install Python 3.11 or later")
    return Check("python", "ok", what)


def runtime(wanted: str) -> Check:
    """Whether a training step can run here, with what, and whether numpy fits it."""
    from apiary.learn import runtimes

    try:
        usable = [wanted] if wanted != "auto" else runtimes.usable()
        runtimes.choose(wanted)
    except ApiaryError as e:
        mend = "pip install 'apiary-fl[edge]' (numpy < 2 with tflite-runtime)"
        return Check("runtime", "fail", str(e), mend)
    packages = ("tflite-runtime", "ai-edge-litert", "tensorflow", "numpy")
    versions = ", ".join(f"{p} {v}" for p in packages if (v := _version(p)))
    return Check("runtime", "ok", f"{' and '.join(usable)} can train; {versions}")


def export() -> Check:
    """What only the coordinator needs: TensorFlow to export, the rest for the report."""
    missing = [p for p in ("tensorflow", "matplotlib", "jinja2", "pillow") if _version(p) is None]
    if missing:
        what = f"not installed: {', '.join(missing)}"
        return Check("export", "fail", what, "pip install 'apiary-fl[coordinator]'")
    return Check("export", "ok", f"tensorflow {_version('tensorflow')}, matplotlib {_version('matplotlib')}")


def disk(folder: Path) -> list[Check]:
    """Free space, and how long the disk takes to have bytes safely."""
    there = nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return [Check("disk", "fail", f"this user may not write to {there}", f"sudo chown $USER {there}")]
    free = shutil.disk_usage(there).free
    what = f"{free / 1e9:.1f} GB free for {folder}"
    mend = "free some space: models and outbox go there"
    if free < 200e6:
        return [Check("disk", "fail", what, mend)]
    space = Check("disk", "warn", what, mend) if free < 1e9 else Check("disk", "ok", what)
    return [space, _write_speed(there)]


def nearest(folder: Path) -> Path:
    """`folder`, or the closest of its parents that exists."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def memory(role: str, proc: Path = Path("/proc")) -> Check:
    """Memory that is free or can be freed; a training child takes 77 to 120 MB, an export about 1 GB."""
    try:
        found = readings.meminfo((proc / "meminfo").read_text(encoding="utf-8"))
        available, swap = (found[key] / 2**20 for key in ("MemAvailable", "SwapTotal"))
    except (OSError, KeyError):
        return Check("memory", "ok", "this system does not tell")
    need, comfortable = (120, 250) if role == "edge" else (600, 1500)
    what = f"{available:.0f} MB available, {swap:.0f} MB swap"
    if available < need:
        return Check("memory", "fail", what, f"free {need} MB: stop other services, or add swap")
    if available < comfortable:
        return Check("memory", "warn", f"{what}: tight", "choose a smaller model, or stop other services")
    return Check("memory", "ok", what)


def heat(sys_root: Path = Path("/sys"), *, vcgencmd: str = "vcgencmd") -> list[Check]:
    """Temperature and, on a Raspberry Pi, throttling; nothing where neither can be read."""
    found: list[Check] = []
    try:
        degrees = int((sys_root / "class/thermal/thermal_zone0/temp").read_text(encoding="utf-8")) / 1000
    except (OSError, ValueError):
        pass
    else:
        # The Pi's firmware starts to slow the processor at 80 degrees, hard at 85.
        state: State = "fail" if degrees >= 85 else "warn" if degrees >= 75 else "ok"
        mend = "" if state == "ok" else "add a heat sink or a fan, and give it air"
        found.append(Check("temperature", state, f"{degrees:.0f} °C", mend))
    if shutil.which(vcgencmd):
        bits = readings.throttled(_output(vcgencmd, "get_throttled") or "")
        mute = Check("throttling", "warn", f"{vcgencmd} gives no answer", "add this user to group video")
        found.append(mute if bits is None else throttling(bits))
    return found


def throttling(bits: int) -> Check:
    """The firmware's flags: what is so now, what has been since the boot."""
    now, since = readings.flags(bits)
    mend = "use the official power supply and a short cable; cool the board"
    if now:
        return Check("throttling", "fail", f"now: {', '.join(now)}", mend)
    if since:
        return Check("throttling", "warn", f"since boot: {', '.join(since)}", mend)
    return Check("throttling", "ok", "none since boot")


def clock(now: datetime | None = None, run: Path = Path("/run")) -> Check:
    """Certificates and logs need the right time; a Pi has no clock that runs without power."""
    now = now or datetime.now(UTC)
    what = now.strftime("%Y-%m-%d %H:%M UTC")
    if not 2024 <= now.year < 2100:
        return Check("clock", "fail", f"it says {what}", "sudo timedatectl set-ntp true, or set the date")
    answer = _output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if (run / "systemd/timesync/synchronized").exists() or answer == "yes\n":
        return Check("clock", "ok", f"{what}, synchronised")
    if answer == "no\n":
        return Check("clock", "warn", f"{what}, not synchronised", "sudo timedatectl set-ntp true")
    return Check("clock", "ok", f"{what}; this system does not tell whether it is synchronised")


def _write_speed(folder: Path) -> Check:
    path = folder / f".apiary-doctor-{secrets.token_hex(4)}.part"
    block = os.urandom(_MB)
    waits = []
    try:
        with path.open("wb") as f:
            started = time.monotonic()
            for _ in range(8):
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
            speed = 8 / max(time.monotonic() - started, 1e-6)
            for _ in range(5):
                f.write(block[:4096])
                f.flush()
                started = time.monotonic()
                os.fsync(f.fileno())
                waits.append((time.monotonic() - started) * 1000)
    except OSError as e:
        what = f"cannot write to {folder}: {e.strerror}"
        return Check("disk speed", "fail", what, "a read-only card is worn")
    finally:
        path.unlink(missing_ok=True)
    sync = statistics.median(waits)
    what = f"{speed:.0f} MB/s written and synced, {sync:.1f} ms for a small sync"
    if speed < 2 or sync > 250:
        return Check("disk speed", "warn", what, "slow: a better SD card or an SSD saves minutes a round")
    return Check("disk speed", "ok", what)


def _output(*command: str) -> str | None:
    """What a program writes; None where it is not there, or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
