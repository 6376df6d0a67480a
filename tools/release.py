"""Build wheel and sdist into dist/release/, and verify them as a user gets them.

Run by `make release`. The wheel is built from the sdist; one built straight from the checkout must have the
same content. Then the metadata is checked, and the wheel is installed in a fresh environment outside of the
checkout, where the command is run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
OUT: Final = ROOT / "dist" / "release"
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def main() -> None:
    """Build and verify. Raises CalledProcessError or SystemExit for the first thing that is wrong."""
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder)
        _run(sys.executable, "-m", "build", "--outdir", str(OUT))
        _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(outside / "direct"))
        (wheel,), (sdist,) = OUT.glob("*.whl"), OUT.glob("*.tar.gz")
        (direct,) = (outside / "direct").glob("*.whl")
        if different := {path for path, _ in contents(wheel) ^ contents(direct)}:
            sys.exit(f"the wheels from sdist and checkout differ: {', '.join(sorted(different))}")
        if missing := expected_files() - {path for path, _ in contents(wheel)}:
            sys.exit(f"the wheel lacks {', '.join(sorted(missing))}")
        _run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
        # W002: two pages have an icon of their own. W009: four top-level packages, on purpose.
        _run(sys.executable, "-m", "check_wheel_contents", "--ignore", "W002,W009", str(wheel))
        try_out(wheel, outside)
    print(f"built and verified: {wheel.relative_to(ROOT)}, {sdist.relative_to(ROOT)}")


def contents(wheel: Path) -> set[tuple[str, str]]:
    """Path and sha256 of each file in a wheel, its list of files aside."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            (name, hashlib.sha256(archive.read(name)).hexdigest())
            for name in archive.namelist()
            if not name.endswith("/RECORD")
        }


def expected_files() -> set[str]:
    """Paths in the wheel of the packages' files under version control, and of what travels with them."""
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    listed = subprocess.run(
        ["git", "ls-files", "--", *wheel["packages"]], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    typed = {f"{Path(package).name}/py.typed" for package in wheel["packages"]}
    return typed | {path.partition("/")[2] for path in listed} | set(wheel["force-include"].values())


def try_out(wheel: Path, outside: Path) -> None:
    """Install the wheel in a fresh environment and run the command there."""
    environment = outside / "venv"
    venv.create(environment, with_pip=True)
    constraints = ROOT / "constraints" / f"py3{sys.version_info.minor}.txt"
    constrained = ["--constraint", str(constraints)] if constraints.is_file() else []
    python = str(environment / "bin" / "python")
    _run(python, "-m", "pip", "install", "--quiet", *constrained, str(wheel), cwd=outside)
    command = str(environment / "bin" / "apiary")
    version = wheel.name.split("-")[1]
    shown = _run(command, "--version", cwd=outside)
    if shown != f"apiary {version}":
        sys.exit(f"apiary --version gives {shown!r}, expected version {version}")
    if "[run.plan]" not in _run(command, "config", "--defaults", cwd=outside):
        sys.exit("apiary config --defaults lacks its sections")
    if "digits" not in _run(command, "data", "list", cwd=outside):
        sys.exit("apiary data list lacks the catalogue's manifests")


def _run(*command: str, cwd: Path = ROOT) -> str:
    # Without this checkout on any path, so that what is tried is what was installed.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=cwd, check=False, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed with {done.returncode}: {' '.join(command)}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
