"""Hooks of mkdocs (mkdocs.yml): pages made from the code and from files outside docs/, and their links.

`repository_pages` maps files of the repository to pages; `generated_pages` makes the rest. Both are used by
`tests/unit/test_docs.py` as well, which needs no mkdocs.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parent.parent
REPOSITORY: Final = "https://github.com/apiary-fl/apiary"
PACKAGES: Final = ("core/apiary", "coordinator/apiary_coordinator", "edge/apiary_edge", "cli/apiary_cli")
OUTSIDE: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "broker/README.md": "broker.md",
    "datasets/README.md": "datasets.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/hosts/README.md": "test-hosts.md",
}
"""Files of the repository that are pages of the site."""

API: Final = {
    "errors": ("Errors", "Every error that a caller may see, with its exit code.", ["apiary.errors"]),
    "settings": (
        "Settings",
        "One frozen model for each section; the root is `Settings`.",
        ["apiary.settings.*"],
    ),
    "messages": (
        "Messages",
        "Control messages: small JSON documents, one class a kind.",
        ["apiary.wire.messages.*"],
    ),
    "wire": (
        "Wire format",
        "Topics, weights as blobs, chunks, and the codecs.",
        [
            "apiary.wire.topics",
            "apiary.wire.blob",
            "apiary.wire.chunks",
            "apiary.wire.codecs.base",
            "apiary.tensors",
        ],
    ),
    "learn": (
        "Learning",
        "What a runtime offers, a model as data, and a round's training.",
        [
            "apiary.learn.runtimes.base",
            "apiary.learn.manifest",
            "apiary.learn.fit",
            "apiary.learn.classifier",
        ],
    ),
    "coordinator-plugins": (
        "Coordinator plug-ins",
        "What a strategy, a recipe and a publisher offer.",
        [
            "apiary_coordinator.strategies.base",
            "apiary_coordinator.combiners.base",
            "apiary_coordinator.server_rules.base",
            "apiary_coordinator.recipes.base",
            "apiary_coordinator.publishers.base",
            "apiary_coordinator.feature",
        ],
    ),
    "edge-plugins": (
        "Edge plug-ins",
        "What a camera offers, and features of a node.",
        ["apiary_edge.cameras.base", "apiary_edge.feature"],
    ),
}
"""Pages of the API reference: title, first line, modules (`.*`: a package and all that is in it)."""

_LINK: Final = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
_FENCE: Final = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def repository_pages() -> dict[str, str]:
    """Path in the repository to path in the site, for every page that is a file."""
    pages = {f"docs/{p.relative_to(ROOT / 'docs').as_posix()}": p for p in (ROOT / "docs").rglob("*.md")}
    return {path: path.removeprefix("docs/") for path in pages} | {
        path: page for path, page in OUTSIDE.items() if (ROOT / path).is_file()
    }


def generated_pages() -> dict[str, Callable[[], str]]:
    """Path in the site to what makes the page."""
    pages: dict[str, Callable[[], str]] = {
        "settings.md": settings_page,
        "command-line.md": command_line_page,
        "modules.md": modules_page,
    }
    for name in API:
        pages[f"api/{name}.md"] = lambda name=name: api_page(name)  # type: ignore[misc]
    return pages


def site_links(text: str, source: str) -> str:
    """`text` of the file `source` with links that hold in the site; to the repository for what is no page."""
    pages = repository_pages()
    here = posixpath.dirname(pages[source])

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if (ROOT / path).is_dir() and f"{path}/README.md" in pages:
            path = f"{path}/README.md"
        if path in pages:
            return match[1] + posixpath.relpath(pages[path], here or ".") + match[3]
        if path.startswith("docs/"):  # a picture
            return match[1] + posixpath.relpath(path.removeprefix("docs/"), here or ".") + match[3]
        return f"{match[1]}{REPOSITORY}/blob/main/{path}{match[3]}"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def settings_page() -> str:
    """Every setting with its default, bounds and meaning, a table for each section."""
    from apiary.settings import Settings

    lines = [
        "# Settings",
        "",
        "Settings come from `apiary.toml` (or `--config FILE`, or `APIARY_CONFIG`), from the environment",
        "(`APIARY_RUN__ROUNDS=12`) and from the command line (`--set run.rounds=12`), the later winning.",
        "`apiary config --defaults` prints this page as a file to start from; `apiary config` shows the",
        "effective values and where each came from.",
    ]
    return "\n".join([*lines, *_section("", Settings)]) + "\n"


def _section(path: str, model: Any, about: str = "") -> Iterator[str]:
    from apiary.options import bounds
    from apiary_cli.commands.config import toml_value

    rows, inner = [], []
    for name, info in model.model_fields.items():
        if hasattr(info.annotation, "model_fields"):
            inner.append((f"{path}.{name}".lstrip("."), info))
            continue
        fixed = info.default_factory in (None, dict, list)
        default = info.get_default(call_default_factory=True, validated_data={}) if fixed else None
        shown = "unset" if default is None else f"`{toml_value(default)}`"
        words = (info.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {shown} | {bounds(info)} | {_to_pages(words)} |")
    yield from ("", f"## `[{path}]`" if path else "## At the top", "")
    if about := about or (model.__doc__ or "").split("\n")[0]:
        yield from (_to_pages(about), "")
    yield from ("| setting | default | allowed | meaning |", "|---|---|---|---|", *rows)
    for below, info in inner:
        yield from _section(below, info.annotation, info.description or "")


def _to_pages(text: str) -> str:
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](\1.md)", text)


def command_line_page() -> str:
    """The help of every command and of those below it."""
    from apiary_cli.main import COMMANDS

    lines = ["# Command line", "", "What `apiary COMMAND --help` prints."]
    with mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}):
        for name in COMMANDS:
            for parser in _with_those_below(_parser_of(name)):
                level = "#" * len(parser.prog.split())
                lines += ["", f"{level} `{parser.prog}`", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that prints a command's help."""
    from apiary_cli.main import main

    shown: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser) -> None:
        shown.append(parser)

    with mock.patch.object(argparse.ArgumentParser, "print_help", keep), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return shown[0]


def _with_those_below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    parser.prog = " ".join(re.findall(r"(?<!\S)[a-z][\w-]*", parser.prog))
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from _with_those_below(below)


def modules_page() -> str:
    """Each folder and module of the four packages with the first sentence of its docstring."""
    lines = [
        "# Map of modules",
        "",
        "Each folder with its modules and the first sentence of their docstrings. Imports run one way:",
        "`cli` > `coordinator | edge` > `core`.",
    ]
    for package in PACKAGES:
        lines += ["", f"## `{package}/`"]
        for folder in sorted({p.parent for p in (ROOT / package).rglob("*.py")}):
            name = folder.relative_to(ROOT).as_posix()
            if name != package:
                lines += ["", f"### `{folder.relative_to(ROOT / package).as_posix()}/`"]
            init = folder / "__init__.py"
            lines += [
                "",
                first_sentence(init) if init.is_file() else "",
                "",
                "| module | what |",
                "|---|---|",
            ]
            lines += [
                f"| [`{p.name}`]({REPOSITORY}/blob/main/{name}/{p.name}) | {first_sentence(p)} |"
                for p in sorted(folder.glob("*.py"))
                if p.name != "__init__.py"
            ]
            if lines[-1] == "|---|---|":
                del lines[-3:]
    return "\n".join(lines) + "\n"


def first_sentence(path: Path) -> str:
    """Of a module's docstring, without a line break; empty where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.match(r".*?[.](?=\s+[A-Z]|$)", paragraph)
    return (sentence[0] if sentence else paragraph).replace("|", "\\|")


def api_page(name: str) -> str:
    """Directives for mkdocstrings, one for each module."""
    title, about, wanted = API[name]
    lines = [f"# {title}", "", about]
    for module in api_modules(wanted):
        lines += ["", f"## `{module}`", "", f"::: {module}"]
        lines += ["    options: {show_root_heading: false, show_root_toc_entry: false}"]
    return "\n".join(lines) + "\n"


def api_modules(wanted: list[str]) -> Iterator[str]:
    """The modules that are meant; a package with `.*` gives those in it that do not begin with `_`."""
    for entry in wanted:
        module = entry.removesuffix(".*")
        if module == entry:
            yield module
            continue
        folder = next(
            p for p in (ROOT / q.split("/")[0] / module.replace(".", "/") for q in PACKAGES) if p.is_dir()
        )
        yield from (f"{module}.{p.stem}" for p in sorted(folder.glob("*.py")) if p.name[0] != "_")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for source, page in repository_pages().items():
        if source in OUTSIDE:
            text = site_links((ROOT / source).read_text(encoding="utf-8"), source)
            files.append(File.generated(config, page, content=text))
    for page, made in generated_pages().items():
        files.append(File.generated(config, page, content=made()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page of docs/ that leave it."""
    source = f"docs/{page.file.src_uri}"
    return site_links(markdown, source) if page.file.generated_by is None else markdown
