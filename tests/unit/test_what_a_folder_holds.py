"""One rule for all: the real commands over folders as people have them, and the table in docs/folders.md.

`python tests/unit/test_what_a_folder_holds.py` writes the table anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.places import ROOT
from tests.stand_ins.folders import CASES, FolderCase

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.folder.walk import Use
from apiary.learn.manifest import PictureInput
from apiary_cli.main import main
from apiary_edge.samples.reader import SampleReader
from apiary_edge.training import census

PAGE = ROOT / "docs" / "folders.md"
HEAD = "| a folder with | a node trains | held out | import takes | said |\n|---|---|---|---|---|\n"
WORDS = ("both to train on and held out", "under several labels", "more than once")
TO = PictureInput(height=8, width=8, channels=3)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a folder: labels with their numbers, and what was said."""

    trained: dict[str, int]
    tested: dict[str, int]
    imported: dict[str, int]
    held_out: dict[str, int]
    unlabelled: int
    partitioned: dict[str, int] | None
    said: list[str]


def run(*words: object) -> tuple[int, str, str]:
    """A command, with what it says on both streams."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def decoded(folder: Path, use: Use) -> dict[str, int]:
    """What of it can be decoded, by label; empty where there is nothing for this use."""
    try:
        data = images.load(images.scan(folder, use=use), TO)
    except DataError:
        return {}
    return {label: n for label, n in data.counts.items() if n}


def outcome(case: FolderCase, root: Path) -> Outcome:
    folder = root / case.name
    folder.mkdir()
    case.make(folder)
    said: list[str] = []
    try:
        counted = census.take(folder)
    except DataError as e:
        said += str(e).splitlines()
    else:
        said += [*counted.understood, *counted.left_out]
    state = root / f"{case.name}-state"
    _, _, err = run("samples", "import", folder, "--state-dir", state, "--set", "edge.store.held_out=0")
    said += [
        line.partition(": ")[2] for line in err.splitlines() if line.startswith(("left out: ", "note: "))
    ]
    labelled: dict[str, int] = {}
    held: dict[str, int] = {}
    unlabelled = 0
    if (state / "samples").is_dir():
        with contextlib.closing(SampleReader(state / "samples")) as store:
            counts = store.counts()
        labelled, held, unlabelled = counts.trainable, dict(counts.held_out), counts.unlabelled
    code, out, err = run(
        "data", "partition", folder, "--nodes", 1, "--out", root / f"{case.name}-shares", "--json"
    )
    shares: dict[str, int] | None = None
    if code == 0:
        shares = {}
        for part in json.loads(out)["counts"].values():
            for label, n in part.items():
                shares[label] = shares.get(label, 0) + n
        said += [line for line in err.splitlines() if any(w in line for w in WORDS)]
    elif code != 3:
        raise AssertionError(f"{case.name}: partition ended with {code}: {err}")
    tests = decoded(folder, "test") if case.tested else {}
    lines = [line.replace(f"{folder}/", "").replace(str(folder), "FOLDER") for line in said]
    return Outcome(
        decoded(folder, "train"), tests, labelled, held, unlabelled, shares, list(dict.fromkeys(lines))
    )


def shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{label} {n}" for label, n in counts.items())


def row(case: FolderCase, found: Outcome) -> str:
    parts = [shown(found.imported)]
    parts.append(f"held out {shown(found.held_out)}" if found.held_out else "")
    parts.append(f"{found.unlabelled} without a label" if found.unlabelled else "")
    taken = "; ".join(filter(None, parts))
    same = found.imported == found.trained and found.held_out == found.tested and not found.unlabelled
    said = "<br>".join(clean(line) for line in found.said[:5])
    cells = [
        case.title,
        shown(found.trained),
        shown(found.tested),
        "the same" if same and taken else taken,
        said,
    ]
    return f"| {' | '.join(cells)} |\n"


def clean(line: str) -> str:
    line = re.sub(r" \(\d+ bytes not processed\)", "", line)  # depends on Pillow
    text = "".join(c if c.isprintable() else "?" for c in line).replace("|", "\\|").replace("<", "&lt;")
    return text.replace("*", "\\*").replace("_", "\\_")


def table(rows: list[str]) -> str:
    return HEAD + "".join(rows)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_folder_is_taken_as_its_author_means_it(case: FolderCase, tmp_path: Path) -> None:
    found = outcome(case, tmp_path)
    assert found.trained == case.trained and found.tested == case.tested
    for words in case.says:
        assert any(words in line for line in found.said), (words, found.said)
    # One reader, one verdict: what training decodes, an import takes; the store has a picture once.
    twice = case.name == "repeats"
    if not twice:
        assert found.imported == case.trained and found.held_out == case.tested
        assert found.unlabelled == case.unlabelled
    if case.trained:
        # A census opens no picture: what turns out to be none still counts.
        counted = census.take(tmp_path / case.name).labels
        assert counted.keys() == case.trained.keys()
        assert sum(counted.values()) == sum(case.trained.values()) + case.unread
    if found.partitioned is not None and case.trained:
        both = {k: case.trained.get(k, 0) + case.tested.get(k, 0) for k in {**case.trained, **case.tested}}
        assert sum(found.partitioned.values()) == sum(both.values()), "what cannot be read is in no share"
    assert row(case, found) in PAGE.read_text(), f"the table in {PAGE.name}: python {Path(__file__).name}"


def test_the_page_has_these_cases_and_no_others() -> None:
    text = PAGE.read_text()
    assert text.count("\n| ", text.index(HEAD) + len(HEAD) - 1) == len(CASES)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        rows = [row(case, outcome(case, Path(made))) for case in CASES]
    before = PAGE.read_text()
    start = before.index(HEAD) if HEAD in before else len(before)
    PAGE.write_text(before[:start] + table(rows))
    print(f"wrote {len(rows)} rows to {PAGE}")
