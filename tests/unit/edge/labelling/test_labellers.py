"""Labels by folder and in the terminal, and the commands for both."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.unit.edge.samples.parts import picture

from apiary.errors import DataError
from apiary.settings import StoreSettings
from apiary_cli.main import main
from apiary_edge.labelling import folder, terminal
from apiary_edge.samples.model import Added, Incoming, SampleId
from apiary_edge.samples.store import SampleStore
from apiary_edge.training import census


@pytest.fixture(autouse=True)
def on_any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIARY_EDGE__STORE__MIN_FREE_MB", "0")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    made = SampleStore(tmp_path / "state" / "samples", None, StoreSettings(min_free_mb=0), time.time)
    yield made
    made.close()


def tree(root: Path) -> Path:
    """Two labels, pictures without one, and all that must be left out."""
    for i, name in enumerate(["cat/1.jpg", "cat/2.JPEG", "dog/1.png", "loose.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(i, "PNG" if name.endswith("png") else "JPEG"))
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "private.jpg").write_bytes(picture(50))
    (root / "cat" / "link.jpg").symlink_to(outside / "private.jpg")
    (root / "linked").symlink_to(outside, target_is_directory=True)
    (root / "cat" / ".hidden.jpg").write_bytes(picture(51))
    (root / ".git").mkdir()
    (root / ".git" / "1.jpg").write_bytes(picture(52))
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "cat" / "torn.jpg").write_bytes(picture(53)[:200])
    (root / "cat" / "deeper").mkdir()
    os.mkfifo(root / "cat" / "pipe.jpg")
    return root


def test_folders_are_labels_and_what_is_no_plain_picture_stays_out(
    tmp_path: Path, store: SampleStore
) -> None:
    root = tree(tmp_path / "photos")
    done = folder.import_folder(store, folder.look(store, root))
    assert (done.added, done.duplicates, done.refused_count) == (4, 0, 1)
    assert "torn.jpg: not a readable picture" in done.refused[0]
    counts = store.counts()
    assert counts.labelled == {"cat": 2, "dog": 1} and counts.unlabelled == 1
    assert {s.source for s in store.page().samples} == {"cat/1.jpg", "cat/2.JPEG", "dog/1.png", "loose.jpg"}
    assert folder.count(folder.look(store, root).layout) == 5
    again = folder.import_folder(store, folder.look(store, root))
    assert (again.added, again.duplicates, again.refused_count) == (0, 4, 1)
    shutil.copy(root / "loose.jpg", root / "dog" / "now-sorted.jpg")
    sorted_now = folder.import_folder(store, folder.look(store, root))
    assert sorted_now.relabelled == 1 and store.counts().labelled == {"cat": 2, "dog": 2}


def test_a_given_label_is_for_what_lies_right_in_the_folder(tmp_path: Path, store: SampleStore) -> None:
    root = tree(tmp_path / "photos")
    done = folder.import_folder(store, folder.look(store, root), label="fox")
    assert store.counts().labelled == {"cat": 2, "dog": 1, "fox": 1} and done.labels["fox"] == 1


def test_what_is_there_under_another_label_keeps_it_and_is_named(
    tmp_path: Path, store: SampleStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat/1.jpg", "dog/1\n.jpg", "test/cat/2.jpg", "train/x.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(picture(1))
    (tmp_path / "photos" / "dog" / "1\n.jpg").write_bytes(picture(1))
    done = folder.import_folder(store, folder.look(store, tmp_path / "photos"))
    assert (done.added, done.duplicates, done.contradicted_count) == (1, 1, 1)
    assert done.contradicted == ["dog/1\\n.jpg: the same picture is there as 'cat', here it is 'dog'"]
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "1.jpg").write_bytes(picture(3))
    state = ("--state-dir", tmp_path / "state")
    _, _, err = apiary(capsys, "samples", "import", tmp_path / "loose", "--label", "fox", *state)
    assert "without a label" not in err, "they get the one that was given"


def test_a_folder_whose_name_cannot_be_a_label_is_named(tmp_path: Path, store: SampleStore) -> None:
    root = tmp_path / "photos"
    (root / ("x" * 80)).mkdir(parents=True)
    (root / ("x" * 80) / "1.jpg").write_bytes(picture(1))
    contents = folder.look(store, root)
    assert folder.import_folder(store, contents).added == 0
    assert "1 picture in 'xxxx" in contents.messages()[0] and "cannot be a label" in contents.messages()[0]
    for wrong in (tmp_path / "none", tmp_path / "photos" / "none"):
        with pytest.raises(DataError, match="does not exist; expected a folder for each label"):
            folder.look(store, wrong)
    with pytest.raises(DataError, match="cannot be a label"):
        folder.import_folder(store, folder.look(store, root), label="a/b")


def test_an_import_stops_with_the_reason_when_the_store_is_full(tmp_path: Path, store: SampleStore) -> None:
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    for i in range(100):
        (root / "cat" / f"{i}.jpg").write_bytes(picture(i))
    store.bounds = StoreSettings(max_count=10, min_free_mb=0)
    done = folder.import_folder(store, folder.look(store, root))
    assert done.added == 10 and done.stopped is not None and "edge.store.max_count" in done.stopped
    assert store.counts().labelled == {"cat": 10}


def test_100_000_files_in_the_folder(tmp_path: Path, store: SampleStore) -> None:
    """Two pictures under 100,000 names: names are read as they come, and what is known costs a hash."""
    root = tmp_path / "many"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        first = root / label / "0.jpg"
        first.write_bytes(picture(len(label) + ord(label[0])))
        for i in range(1, 50_000):
            os.link(first, root / label / f"{i}.jpg")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = folder.import_folder(store, folder.look(store, root))
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (done.added, done.duplicates) == (2, 99_998)
    assert grown_mb < 20  # 0 to 2 MB measured, in 8 s


def test_the_census_counts_what_is_trained(tmp_path: Path, store: SampleStore) -> None:
    root = tree(tmp_path / "photos")
    assert census.take(None, store).labels == {}, "a node may begin without a label"
    store.add(Incoming(picture(900), "x"))
    assert census.take(None, store).waiting == 1
    for i in range(60):
        store.add(Incoming(picture(1000 + i), "x", "fox"))
    trained = store.counts().trainable["fox"]
    assert 30 < trained < 60
    assert census.take(None, store).labels == {"fox": trained}
    assert census.take(root, store).labels["fox"] == trained and census.take(root, store).labels["cat"] >= 2
    (tmp_path / "empty").mkdir()
    assert census.take(tmp_path / "empty", store).labels == {"fox": trained}


# -- the terminal


class Terminal:
    def __init__(self, *answers: str):
        self.answers = list(answers)
        self.said: list[str] = []
        self.prompts: list[str] = []

    def ask(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.answers:
            raise EOFError
        return self.answers.pop(0)


def add(store: SampleStore, count: int) -> list[SampleId]:
    outcomes = [store.add(Incoming(picture(i), "camera")) for i in range(count)]
    return [o.id for o in outcomes if isinstance(o, Added)]


def label_all(store: SampleStore, person: Terminal, *known: str) -> int:
    said = person.said.append
    return terminal.label_all(store, "ann", person.ask, said, paint=said, known=known)


def test_numbers_names_and_the_suggestion_give_labels_most_uncertain_first(store: SampleStore) -> None:
    ids = add(store, 4)
    store.set_suggestions("m", [(ids[0], "dog", 0.6), (ids[1], "cat", 0.9)])
    person = Terminal("2", "", "bird", "3")
    assert label_all(store, person, "cat", "dog") == 4
    assert person.prompts == ["label? [dog, 60%] ", "label? [cat, 90%] ", "label? ", "label? "]
    got = {i: store.get(i) for i in ids}
    assert [s.label for s in got.values() if s] == ["dog", "cat", "bird", "bird"]
    assert all(s.labelled_by == "ann" for s in got.values() if s)


def test_skip_undo_delete_and_what_cannot_be_meant(store: SampleStore) -> None:
    ids = add(store, 3)
    person = Terminal("s", "cat", "u", "9", "", "x", "a/b", "d", "q")
    assert label_all(store, person) == 0
    assert store.counts().labelled == {} and store.counts().total == 2
    assert store.get(ids[2]) is not None, "the newest came first, and was skipped"
    text = "\n".join(person.said)
    for said in (
        "undone: 1",
        "9 is no label's number",
        "there is no suggestion to take",
    ):
        assert said in text
    assert "'x' is no command" in text and "'a/b' cannot be a label" in text
    assert label_all(store, Terminal("u", "q")) == 0


def test_the_labelling_of_another_is_undone_only_if_that_is_confirmed(store: SampleStore) -> None:
    ids = add(store, 2)
    store.label(ids[:1], "cat", "bob")
    person = Terminal("u", "n", "u", "y", "q")
    label_all(store, person)
    assert person.prompts[1] == "the latest labelling is by bob: undo it? [y/N] "
    assert store.counts().labelled == {}
    store.label(ids[:1], "cat", "bob")
    label_all(store, Terminal("u", "n", "q"))
    assert store.counts().labelled == {"cat": 1}


class Interrupted(Terminal):
    """A person who is slow: somebody else labels `sample` before the first answer."""

    def __init__(self, store: SampleStore, sample: SampleId, *answers: str):
        super().__init__(*answers)
        self.store, self.sample = store, sample

    def ask(self, prompt: str) -> str:
        if not self.prompts:
            self.store.label([self.sample], "dog", "bob")
        return super().ask(prompt)


def test_what_somebody_labelled_meanwhile_is_neither_labelled_nor_deleted_unasked(store: SampleStore) -> None:
    ids = add(store, 2)
    person = Interrupted(store, ids[1], "cat", "n", "q")
    assert label_all(store, person) == 0
    assert person.prompts[1] == "bob gave it 'dog' meanwhile: make it 'cat'? [y/N] "
    person = Interrupted(store, ids[0], "d", "n", "q")
    label_all(store, person)
    assert person.prompts[1] == "bob gave it 'dog' meanwhile: delete it? [y/N] "
    assert store.counts().labelled == {"dog": 2}
    store.label(ids, None, "bob")
    label_all(store, Interrupted(store, ids[1], "d", "y", "q"))
    assert store.counts().total == 1


def test_what_is_typed_for_a_label_stays_as_digits_come(store: SampleStore) -> None:
    add(store, 4)
    person = Terminal("cat", "1", "=1", "q")
    assert label_all(store, person, "cat", "1") == 3
    assert store.counts().labelled == {"1": 1, "cat": 2}
    assert any("1 cat  =1 1" in line for line in person.said)


def test_the_end_of_input_ends_it_and_an_empty_store_asks_nothing(store: SampleStore) -> None:
    assert label_all(store, Terminal()) == 0
    add(store, 1)
    assert label_all(store, Terminal()) == 0


def test_a_picture_is_drawn_in_its_shape_and_colours() -> None:
    out = io.BytesIO()
    Image.new("RGB", (200, 100), (255, 0, 0)).save(out, "PNG")
    lines = terminal.draw(out.getvalue(), columns=40, rows=24).split("\n")
    assert len(lines) == 10 and all(line.count("▀") == 40 for line in lines)
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;255;0;0m▀") and lines[0].endswith("\x1b[0m")
    with pytest.raises(DataError, match="cannot be shown"):
        terminal.draw(b"torn")


# -- the commands


def apiary(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_import_list_label_undo_delete_and_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "photos")
    state = ("--state-dir", tmp_path / "state")
    code, out, err = apiary(capsys, "samples", "import", root, *state)
    assert code == 0 and out.startswith("added 4, ") and "torn.jpg: not a readable" in err
    code, out, _ = apiary(capsys, "samples", "list", "--state", "unlabelled", "--json", *state)
    (loose,) = (json.loads(line) for line in out.splitlines())
    assert loose["source"] == "loose.jpg" and Path(loose["file"]).is_file()
    code, out, _ = apiary(capsys, "samples", "label", loose["id"][:10], "--as", "fox", *state)
    assert (code, out) == (0, "changed: 1\n")
    label = ("samples", "label", loose["id"][:10])
    code, _, err = apiary(capsys, *label, "--as", "wolf", *state)
    assert code == 3 and "has the label 'fox' (by " in err and "--was 'fox' is for those" in err
    code, _, err = apiary(capsys, *label, "--was", "fox", "--as", "Cat", *state)
    assert code == 3 and "'cat' is there" in err and "--new-label" in err
    for was, to in (("fox", "Cat"), ("Cat", ""), ("", "fox")):
        code, out, _ = apiary(capsys, *label, "--was", was, "--as", to, "--new-label", *state)
        assert (code, out) == (0, "changed: 1\n")
    code, _, err = apiary(capsys, "samples", "delete", loose["id"], "--was", "", *state)
    assert code == 3 and "has the label 'fox'" in err and Path(loose["file"]).exists()
    _, out, _ = apiary(capsys, "samples", "stats", "--json", *state)
    assert json.loads(out)["labelled"] == {"cat": 2, "dog": 1, "fox": 1}
    _, out, _ = apiary(capsys, "samples", "undo", *state)
    assert out.startswith("undone: 1 of ")
    _, out, _ = apiary(capsys, "samples", "delete", loose["id"], *state)
    assert out == "deleted: 1\n" and not Path(loose["file"]).exists()
    _, out, _ = apiary(capsys, "samples", "stats", *state)
    assert "      2  cat" in out and "      3  in all" in out
    _, out, _ = apiary(capsys, "samples", "list", "--label", "cat", *state)
    assert out.splitlines()[-1] == "2 of 2"


def test_what_a_user_may_do_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ("--state-dir", tmp_path / "state")
    (tmp_path / "empty").mkdir()
    (tmp_path / "state" / "samples").mkdir(parents=True)
    wrong = [
        (("samples", "label", "ffffff", "--as", "cat", *state), 3, "no sample's id begins with 'ffffff'"),
        (("samples", "delete", "../..", *state), 3, "no sample's id begins with '../..'"),
        (("samples", "label", "ffffff", *state), 3, "which label?"),
        (("samples", "label", *state), 3, "needs a terminal"),
        (("samples", "import", tmp_path / "none", *state), 3, "does not exist"),
        (("samples", "import", tmp_path / "empty", *state), 3, "holds no pictures"),
        (("capture", *state), 2, "no camera is set: --camera KIND"),
        (("capture", "--camera", "folder", *state), 3, "no source; set edge.camera.source"),
        (("capture", "--camera", "usb", "--source", "/dev/video97", *state), 3, "plug it in"),
    ]
    for words, code, says in wrong:
        got, _, err = apiary(capsys, *words)
        assert (got, says in err) == (code, True), err


def test_capture_ends_after_its_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.unit.edge.capture.frames import pattern

    watched = tmp_path / "watched"
    watched.mkdir()
    for i in range(4):
        Image.fromarray(pattern(i)).save(watched / f"{i}.png")
    time.sleep(1.1)  # until they are settled
    code, out, _ = apiary(
        capsys, "capture", "--camera", "folder", "--source", watched, "--count", 2,
        "--state-dir", tmp_path / "state",
    )  # fmt: skip
    assert code == 0 and out.count("kept ") == 2 and f"folder {watched}: open" in out
