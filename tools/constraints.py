"""Write `constraints/py311.txt` and `py313.txt`: one version of every package, for all extras on Linux.

Run by `make constraints`. Each file names the versions for x86_64 and aarch64 by environment markers, so
a server with TensorFlow and a Pi with the `edge` extra install from the same file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.13")
MACHINES = ("x86_64", "aarch64")
# uv takes no notice of a package's newest Python, and pip does: 1.3 is for Python before 3.11 only. LiteRT
# asks for it on every Python.
HELD_BACK = ("backports-strenum<1.3",)
HEADER = """# Versions for Python {python} on 64-bit Linux, all extras; written by `make constraints`.
# pip install --constraint constraints/{name} ...
"""


def compile_for(python: str) -> str:
    """The constraints for one Python version. Raises CalledProcessError where no set of versions fits."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    environments = [
        f"sys_platform == 'linux' and platform_machine == '{machine}' and python_version == '{python}'"
        for machine in MACHINES
    ]
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "pyproject.toml")
        choice = f"environments = {environments!r}\nconstraint-dependencies = {list(HELD_BACK)!r}\n"
        inputs.write_text(f"{project}\n[tool.uv]\n{choice}", encoding="utf-8")
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
            *("--universal", "--python-version", python, "--all-extras", "--upgrade"),
            *("pyproject.toml", *(str(ROOT / folder / "requirements.txt") for folder in ("deploy", "tools"))),
        ]
        lines = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    return "".join(_narrowed(line, python) for line in lines.splitlines())


def _narrowed(line: str, python: str) -> str:
    """A pinned package without the markers that hold on every machine of the file."""
    wanted = Requirement(line)
    if wanted.marker is None:
        return f"{line}\n"
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    machines = [m for m in MACHINES if wanted.marker.evaluate({**here, "platform_machine": m})]
    pinned = line.partition(" ;")[0]
    if len(machines) == len(MACHINES):
        return f"{pinned}\n"
    return "".join(f"{pinned} ; platform_machine == '{machine}'\n" for machine in machines)


def main() -> None:
    """Write a file for each Python version."""
    for python in PYTHONS:
        name = f"py{python.replace('.', '')}.txt"
        text = HEADER.format(python=python, name=name) + compile_for(python)
        (ROOT / "constraints" / name).write_text(text, encoding="utf-8")
        print(f"constraints/{name}: {sum(line[0] != '#' for line in text.splitlines())} packages")


if __name__ == "__main__":
    main()
