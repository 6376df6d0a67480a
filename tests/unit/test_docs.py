"""The documentation agrees with the repository: navigation, links, paths, addresses, versions."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools import docs

import apiary
from apiary.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(docs.repository_pages())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FENCE = re.compile(r"^ *```.*?^ *```$|^(?:    .*\n)+", re.MULTILINE | re.DOTALL)
FILES = {p.name for package in docs.PACKAGES for p in (ROOT / package).rglob("*.py")}
FOLDERS = ("core", "coordinator", "edge", "cli", "docs", "tests", "benchmarks", "deploy", "broker", "tools")
BESIDE = [ROOT, *(ROOT / package for package in docs.PACKAGES)]
"""Where a path in a page may begin: at the root, or in a package."""


def prose(source: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", (ROOT / source).read_text())


def anchors(source: str) -> set[str]:
    """What a page's headings may be linked by."""
    headings = re.findall(r"^#+ (.+)$", prose(source), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


def test_the_navigation_names_every_page_once() -> None:
    def pages(entry: Any) -> Iterator[str]:
        match entry:
            case str():
                yield entry
            case list():
                for below in entry:
                    yield from pages(below)
            case dict():
                yield from pages(list(entry.values()))

    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(named) == sorted([*docs.repository_pages().values(), *docs.generated_pages()])


@pytest.mark.parametrize("source", SOURCES)
def test_every_link_leads_somewhere(source: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose(source)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path = ((ROOT / source).parent / target).resolve() if target else ROOT / source
        assert path.exists(), f"{source} links to {target}"
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT).as_posix()), f"{source}: {target}#{anchor}"


@pytest.mark.parametrize("source", SOURCES)
def test_every_path_and_module_named_exists(source: str) -> None:
    for word in re.findall(r"`([^`\s]+)`", prose(source)):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.py)", word) and (
            word.startswith(tuple(f"{f}/" for f in FOLDERS)) or word.endswith(".py")
        ):
            beside = [*BESIDE, *(base.parent for base in BESIDE[1:]), (ROOT / source).parent]
            found = any((base / word).exists() for base in beside) or word in FILES
            assert found, f"{source} names {word}"
        elif re.fullmatch(r"apiary(_coordinator|_edge|_cli)?(\.\w+)+", word):
            module = word
            while not (there := [b for b in BESIDE if is_module(b.parent, module)]) and "." in module:
                module = module.rpartition(".")[0]
            assert there, f"{source} names {word}"
            assert "." in module or word.count(".") == 1, f"{source} names {word}"


def is_module(folder: Path, name: str) -> bool:
    path = folder / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("source", SOURCES)
def test_a_list_begins_after_an_empty_line(source: str) -> None:
    """Markdown takes it for a part of the paragraph otherwise."""
    lines = prose(source).splitlines()
    for before, line in pairwise(lines):
        if re.match(r"(\d+\.|[-*]) ", line):
            assert not before.strip() or re.match(r"\s*(\d+\.|[-*]) |\s{2,}", before), f"{source}: {line}"


def test_the_addresses_of_the_project_agree() -> None:
    assert PROJECT["project"]["urls"]["Homepage"] == docs.REPOSITORY
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == docs.REPOSITORY
    assert citation["version"] == apiary.__version__
    files = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        ".github/ISSUE_TEMPLATE/config.yml",
    ]
    for name in files:
        for address in re.findall(r"https://github\.com/[\w-]+/apiary\b", (ROOT / name).read_text()):
            assert address == docs.REPOSITORY, name
    assert f"git clone {docs.REPOSITORY} " in (ROOT / "README.md").read_text()


def test_the_settings_page_has_every_setting() -> None:
    page = docs.settings_page()

    def keys(model: Any) -> Iterator[str]:
        for name, info in model.model_fields.items():
            if hasattr(info.annotation, "model_fields"):
                yield from keys(info.annotation)
            else:
                yield name

    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE).__len__() == len(list(keys(Settings)))
    assert "| `rounds` | `10` | 1 to 100_000 | at most this many rounds |" in page


def test_the_api_pages_name_modules_that_exist_and_the_map_names_all() -> None:
    for _, _, wanted in docs.API.values():
        for module in docs.api_modules(wanted):
            assert any(is_module(base.parent, module) for base in BESIDE), module
    page = docs.modules_page()
    for package in docs.PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                assert f"/{path.relative_to(ROOT).as_posix()})" in page


def test_the_command_line_page_has_every_command_and_those_below() -> None:
    from apiary_cli.main import COMMANDS

    page = docs.command_line_page()
    assert {f"# `apiary {name}`" in page for name in COMMANDS} == {True}
    assert "### `apiary run start`" in page


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_constraints_pin_every_direct_dependency_within_its_range(python: str, machine: str) -> None:
    text = (ROOT / f"constraints/py{python.replace('.', '')}.txt").read_text()
    pins = [Requirement(line) for line in text.splitlines() if line and line[0] != "#"]
    here = {"python_version": python, "python_full_version": f"{python}.9", "platform_machine": machine}
    pinned = {canonicalize_name(p.name): p for p in pins if p.marker is None or p.marker.evaluate(here)}
    extras = PROJECT["project"]["optional-dependencies"].values()
    for line in [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(line)
        if wanted.name == PROJECT["project"]["name"] or (wanted.marker and not wanted.marker.evaluate(here)):
            continue
        (version,) = pinned[canonicalize_name(wanted.name)].specifier
        assert version.operator == "=="
        assert version.version in wanted.specifier, line
