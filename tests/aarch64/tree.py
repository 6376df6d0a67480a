"""A Raspberry Pi's programs on this machine: Debian's arm64 packages, the wheels of a Pi, and an emulator.

A tree is unpacked, not installed: qemu's user-mode emulation looks files up in it first, then on this
machine. It is kept below build/; its wheels are fetched again where pyproject.toml asks for others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from apiary.process.child import light_environment

ROOT: Final = Path(__file__).resolve().parents[2]
MIRROR: Final = "http://deb.debian.org/debian"
PLATFORMS: Final = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
SOURCES: Final = ("core", "coordinator", "edge", "cli")
LATEST_S: Final = 900

# LiteRT reads it to choose its kernels; qemu shows this machine's otherwise. As a Pi 4 prints it, four times.
_CPU: Final = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


class CannotEmulateError(Exception):
    """This machine lacks something; the message says what."""


@dataclass(frozen=True, slots=True)
class Pi:
    """One release of Raspberry Pi OS: its Debian, its Python, the TFLite package that it gets."""

    suite: str
    version: str
    runtime: str


PIS: Final = (
    Pi("bookworm", "3.11", "tflite-runtime"),
    Pi("trixie", "3.13", "ai-edge-litert"),
)


@dataclass(frozen=True, slots=True)
class Tree:
    """An unpacked Pi. `run` is a command of it, with the checkout's own code."""

    pi: Pi
    folder: Path
    site: Path

    @property
    def python(self) -> list[str]:
        """The command that starts the Pi's Python."""
        root = self.folder / "root"
        inside = root / "usr" / "bin" / f"python{self.pi.version}"
        return [emulator(), "-cpu", "cortex-a72", "-L", str(root), str(inside)]

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of this machine's Python; our sources and the Pi's wheels."""
        ours = ("PYTHON", "PYENV", "APIARY_", "LD_")
        kept = {k: v for k, v in light_environment().items() if not k.startswith(ours)}
        path = os.pathsep.join([*(str(ROOT / s) for s in SOURCES), str(self.site)])
        return {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "USER": "pi"}

    def run(self, arguments: list[str | Path], *, cwd: Path | None = None) -> str:
        """What the Pi's Python printed. Raises SystemExit with all of it where it failed."""
        command = [*self.python, *map(str, arguments)]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=LATEST_S,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(
                f"{self.pi.suite}: {' '.join(map(str, arguments))[:300]}: code {done.returncode}\n"
                f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done.stdout


def emulator() -> str:
    """qemu's user-mode emulation of aarch64. Raises CannotEmulateError."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return found
    raise CannotEmulateError("no qemu-aarch64-static: apt-get install qemu-user-static")


def make(pi: Pi, build: Path, mirror: str = MIRROR) -> Tree:
    """The tree of a Pi, made where it is not there yet. Raises CannotEmulateError, SystemExit."""
    emulator()
    folder = build / pi.suite
    root = folder / "root"
    if not (folder / "unpacked").is_file():
        _unpack(pi, folder, mirror)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("".join(_CPU.format(n=n) for n in range(4)))
    wanted = requirements(pi)
    name = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    site = folder / f"site-{name}"
    if not site.is_dir():
        _install(pi, wanted, site)
    return Tree(pi, folder, site)


def requirements(pi: Pi) -> list[str]:
    """What `pip install apiary-fl[edge]` asks for on that Pi; pip itself judges markers by its own Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    there = {
        "python_version": pi.version,
        "python_full_version": f"{pi.version}.0",
        "platform_machine": "aarch64",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
    }
    all_of_them = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["edge"]])
    return [f"{r.name}{r.specifier}" for r in all_of_them if r.marker is None or r.marker.evaluate(there)]


def _unpack(pi: Pi, folder: Path, mirror: str) -> None:
    if shutil.which("debootstrap") is None:
        raise CannotEmulateError("no debootstrap: apt-get install debootstrap")
    if os.geteuid() != 0:
        raise CannotEmulateError("debootstrap downloads Debian's packages as root only: sudo make aarch64")
    shutil.rmtree(folder, ignore_errors=True)
    download, root = folder / "download", folder / "root"
    root.mkdir(parents=True)
    _say(f"{pi.suite}: downloading Debian's arm64 packages (about 60 MB)")
    _call(
        ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", "--include=python3",
         pi.suite, str(download), mirror]
    )  # fmt: skip
    for package in sorted((download / "var/cache/apt/archives").glob("*.deb")):
        _call(["dpkg-deb", "-x", str(package), str(root)])
    shutil.rmtree(download)
    (folder / "unpacked").touch()


def _install(pi: Pi, wanted: list[str], site: Path) -> None:
    _say(f"{pi.suite}: installing the wheels of Python {pi.version} on aarch64")
    part = site.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    platforms = [argument for p in PLATFORMS for argument in ("--platform", f"{p}_aarch64")]
    _call(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--target", str(part), "--only-binary=:all:", "--python-version", pi.version,
         "--implementation", "cp", *platforms, *wanted]
    )  # fmt: skip
    part.rename(site)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LATEST_S, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command)[:300]}: code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
