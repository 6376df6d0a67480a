"""What the hosts stand on, made once and kept in build/: systems, wheels, pictures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from tests.hosts.machines import bootstrap

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "hosts"
WORK: Final = BUILD / "run"
PIS: Final = ("pi-1", "pi-2", "pi-3")
LATER: Final = "pi-4"
"""Joins by a card of its own."""
BEFORE: Final = "8fbd764adfcc7cc3474a7cffd3ed58f5cd4cd164"
"""The last commit before the modules moved and the distribution got its name: the version before."""


def wheel(version: str, *, breaks: bool = False) -> Path:
    """This checkout as another version; `breaks`: one whose node does not start."""
    out = BUILD / "wheels"
    made = out / f"apiary_fl-{version}-py3-none-any.whl"
    if made.exists():
        return made
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("core", "coordinator", "edge", "cli", "broker", "constraints", "datasets"):
        ignore = shutil.ignore_patterns("__pycache__", "*.npz", "images")
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    about = tree / "core/apiary/__init__.py"
    about.write_text(re.sub(r'__version__ = "[^"]+"', f'__version__ = "{version}"', about.read_text()))
    if breaks:
        edge = tree / "cli/apiary_cli/commands/edge.py"
        edge.write_text(edge.read_text() + "\n\ndef run(args):  # type: ignore\n    raise SystemExit(7)\n")
    pip(["wheel", "--no-deps", "--wheel-dir", str(out), str(tree)])
    return made


def version_before() -> Path:
    """The checkout of before, from the repository's history."""
    tree = BUILD / "before"
    if not (tree / "pyproject.toml").exists():
        tree.mkdir(parents=True, exist_ok=True)
        # Root reads somebody's checkout.
        words = ["git", "-c", "safe.directory=*", "archive", BEFORE]
        packed = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=False)
        assert packed.returncode == 0, f"{BEFORE} is not in this clone: git fetch --unshallow"
        subprocess.run(["tar", "--extract", "--directory", tree], input=packed.stdout, check=True)
    return tree


def pip(words: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "-qq"], check=True, cwd=ROOT)


def prepare(suites: dict[str, str], *, keep: bool) -> None:
    """What is made once and kept in build/: the systems, the wheels that they need, pictures."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not keep:
        shutil.rmtree(WORK, ignore_errors=True)
        shutil.rmtree(BUILD / "wheels", ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    for suite in sorted(set(suites.values())):
        extras = ["coordinator", "edge"] if suites["server"] == suite else ["edge"]
        python = bootstrap(BUILD, suite)
        for tree in (ROOT, version_before()):
            fill_wheelhouse(python, extras, tree)
    if not (BUILD / "shares").exists():
        share = ["data", "partition", "digits", "--nodes", "3", "--by", "dirichlet", "--alpha", "0.5"]
        subprocess.run(
            [sys.executable, "-m", "apiary_cli", *share, "--out", BUILD / "shares"], check=True, cwd=ROOT
        )


def fill_wheelhouse(python: str, extras: list[str], tree: Path) -> None:
    """Download what hosts with this Python install of `tree`, once for each state of its bounds."""
    house = BUILD / "wheelhouse"
    of = "" if tree == ROOT else f"-{BEFORE[:7]}"
    stamp = house / f"complete-{python}-{'-'.join(extras)}{of}"
    versions = tree / "constraints" / f"py{python.replace('.', '')}.txt"
    bounds = (tree / "pyproject.toml").read_bytes()
    known = versions.exists()  # the version before had none
    needs = bounds + (versions.read_bytes() if known else b"")
    if stamp.exists() and stamp.read_bytes() == needs:
        return
    print(f"downloading what Python {python} installs of {' and '.join(extras)} (once)", flush=True)
    told = tomllib.loads(bounds.decode())["project"]
    wanted = [*told["dependencies"], *(r for e in extras for r in extra_requirements(told, e))]
    # pip's --python-version chooses wheels, but leaves markers to the Python that it runs on.
    target = {"python_version": python, "python_full_version": f"{python}.0"}
    plain = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(target):
            requirement.marker = None
            plain.append(str(requirement))
    target_words = ["--only-binary=:all:", "--python-version", python]
    target_words += ["--constraint", str(versions)] if known else []
    pip(["download", *target_words, "--dest", str(house), *plain])
    stamp.write_bytes(needs)


def extra_requirements(project: dict[str, Any], extra: str) -> list[str]:
    """What an extra names, its own extras (`apiary-fl[edge]`) followed."""
    found = []
    for text in project["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            found += [r for e in sorted(requirement.extras) for r in extra_requirements(project, e)]
        else:
            found.append(text)
    return found
