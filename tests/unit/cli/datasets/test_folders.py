"""Folders of several owners become nodes with one held-out set; what is there twice is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.stand_ins.folders import encoded, fill, picture, put

from apiary.errors import DataError
from apiary.learn import images
from apiary_cli.datasets.folders import open_folders, repeats
from apiary_cli.datasets.partition import materialise_owners, read_layout
from apiary_cli.main import main


def test_two_friends_become_two_nodes_with_one_held_out_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "anna" / "train", 5)
    fill(tmp_path / "anna" / "test", 2, first=10)
    fill(tmp_path / "berta", 5, first=20)
    for label in ("red", "blue"):
        put(tmp_path / "berta" / label / "000.jpg", encoded(picture(label, 90)))  # anna has one of this name
        put(tmp_path / "anna" / "test" / label / "000.jpg", encoded(picture(label, 91)))
    out = tmp_path / "shares"
    words = [
        "data",
        "partition",
        str(tmp_path / "anna"),
        str(tmp_path / "berta"),
        "--out",
        str(out),
        "--json",
    ]
    assert main(words) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts == {
        "anna": {"blue": 5, "red": 5},
        "berta": {"blue": 5, "red": 5},
        "server": {"blue": 4, "red": 4},
    }
    for name, found in counts.items():
        assert images.scan(out / name, use="test").counts == found
    seen = [r.path.read_bytes() for name in counts for r in images.scan(out / name, use="test").records]
    assert len(seen) == len(set(seen)) == 28
    layout = read_layout(out)
    assert layout is not None and [n.name for n in layout.nodes] == ["anna", "berta"]
    assert main(words) == 0, "the same wish finds its folder"


def test_folders_whose_names_no_node_can_have_are_numbered(tmp_path: Path) -> None:
    for name in ("my photos", "berta"):
        fill(tmp_path / name, 3)
    found = materialise_owners([tmp_path / "my photos", tmp_path / "berta"], tmp_path / "out")
    assert [n.name for n in found.nodes] == ["node-1", "node-2"]
    assert sum(sum(c.values()) for c in found.counts.values()) == 12


def test_what_several_folders_do_not_go_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "a", 3)
    fill(tmp_path / "b", 3)
    several = ["data", "partition", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "o")]
    assert main([*several, "--nodes", "5"]) == 2
    assert main([several[0], several[1], several[2], "--out", str(tmp_path / "o")]) == 2
    assert "how many shares? --nodes N" in capsys.readouterr().err


def test_sets_in_a_folder_are_named_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path / "all" / "anna" / "train", 2)
    fill(tmp_path / "all" / "berta" / "train", 2)
    with pytest.raises(
        DataError, match=r"2 sets .*all/anna, .*all/berta\? Several that are named become a node each"
    ):
        open_folders([tmp_path / "all"])


def test_labels_of_several_folders_are_joined(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3, ("Red", "blue"))
    fill(tmp_path / "b", 2, ("red ", "Blue"), first=10)
    assert open_folders([tmp_path / "a", tmp_path / "b"]).labels == ["Blue", "Red", "blue", "red "]
    joined = open_folders([tmp_path / "a", tmp_path / "b"], join_labels=True)
    assert len(joined.labels) == 2 and joined.y_train.tolist().count(0) == 5


def test_the_same_picture_is_found_by_its_bytes(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    same = (tmp_path / "red/000.jpg").read_bytes()
    put(tmp_path / "red/copy.jpg", same)
    put(tmp_path / "blue/copy.jpg", (tmp_path / "red/001.jpg").read_bytes())
    files = [(p, p.parent.name, "train") for p in sorted(tmp_path.rglob("*.jpg"))]
    assert repeats(files[:0]) == []
    several, twice = repeats(files)
    assert several.startswith("1 picture under several labels") and twice.startswith(
        "1 picture more than once"
    )
    (tmp_path / "test").mkdir()
    put(tmp_path / "test/x.jpg", same)
    (leaked, *_) = repeats([*files, (tmp_path / "test/x.jpg", "red", "test")])
    assert leaked.startswith("1 picture both to train on and held out")


def test_a_csv_with_pixels_becomes_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["emotion, pixels, Usage"]
    for i in range(12):
        usage = "Training" if i < 8 else "PublicTest" if i < 10 else "PrivateTest"
        rows.append(f"{3 * (i % 2)},{' '.join(str((i * 31 + k) % 256) for k in range(16))},{usage}")
    (tmp_path / "fer").mkdir()
    (tmp_path / "fer" / "fer2013.csv").write_text("\n".join(rows))
    for number, source in enumerate(("fer", "fer/fer2013.csv")):
        words = (
            "data",
            "partition",
            str(tmp_path / source),
            "--nodes",
            "2",
            "--out",
            str(tmp_path / f"o{number}"),
        )
        assert main([*words, "--json"]) == 0
        counts = json.loads(capsys.readouterr().out)["counts"]
        assert counts["server"] == {"angry": 2, "happy": 2}
        assert sum(counts["node-1"].values()) + sum(counts["node-2"].values()) == 8


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("label;pixels\n0;1 2 3 4\n1;5 6 7 8\n", (2, 2)),
        ("label," + ",".join(f"pixel{i}" for i in range(9)) + "\n0" + ",7" * 9 + "\n1" + ",8.0" * 9, (3, 3)),
        ("label,1x1,1x2,1x3,2x1,2x2,2x3,3x1,3x2,3x3\n0" + ",7" * 9 + "\n1" + ",8" * 9, (3, 3)),
        (
            ",".join(f"pixel{i:04d}" for i in range(12)) + ",label\n" + "7," * 12 + "a\n" + "8," * 12 + "b",
            (2, 2, 3),
        ),
    ],
    ids=["semicolons", "mnist", "mnist as rows and columns", "in colour"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_of_pixels_as_people_have_them(
    tmp_path: Path, text: str, shape: tuple[int, ...], encoding: str
) -> None:
    from apiary_cli.datasets.sources import ArraySource, open_source

    (tmp_path / "set" / "archive").mkdir(parents=True)
    (tmp_path / "set" / "archive" / "p.csv").write_text(text, encoding=encoding)
    for named in ("set", "set/archive/p.csv"):
        found = open_source(tmp_path / named)
        assert isinstance(found, ArraySource)
        assert found.x_train.shape == (2, *shape) and found.x_train[1].max() == 8
        assert found.y_train.tolist() == [0, 1]


def test_several_tables_of_pixels_are_named(tmp_path: Path) -> None:
    from apiary_cli.datasets.sources import open_source

    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("label,pixels\n0,1 2 3 4\n1,5 6 7 8\n")
    with pytest.raises(DataError, match=r"several tables of pictures: name one of .*a\.csv, .*b\.csv"):
        open_source(tmp_path)


def test_owners_whose_folders_cannot_name_nodes_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner in ("node-1", "server"):
        for label in ("cat", "dog"):
            for i in range(5):
                path = tmp_path / owner / label / f"{owner}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), 10 * i + len(owner) + len(label), np.uint8)).save(path)
    folders = [str(tmp_path / owner) for owner in ("node-1", "server")]
    assert main(["data", "partition", *folders, "--out", str(tmp_path / "out")]) == 0
    assert "node-1 is node-1, server is node-2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("emotion,pixels\n0,1 2 3\n", "line 2: expected a label and the pixels of a square"),
        ("emotion,pixels\n0,1 2 3 300\n", "line 2: expected a label"),
        ("x,pixels\n0,1 2 3 4\n", "no label; it has x, pixels"),
        ("emotion,pixels\n0,1 2 3 4\n1,1\n", "pictures of several sizes"),
    ],
)
def test_a_csv_whose_pixels_cannot_be_read_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    from apiary_cli.datasets.sources import open_source

    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        open_source(tmp_path / "p.csv")


def test_owners_whose_labels_differ_in_case_only_are_said(tmp_path: Path) -> None:
    for owner, labels in (("a", ("cat", "dog")), ("b", ("Cat", "dog "))):
        for label in labels:
            fill(tmp_path / owner, 3, (label,))
    notes = open_folders([tmp_path / "a", tmp_path / "b"]).notes
    said = [note for note in notes if "differ in case, blanks or hyphens only" in note]
    assert len(said) == 2 and "'Cat' and 'cat'" in said[0] and "--join-labels" in said[0]
    joined = open_folders([tmp_path / "a", tmp_path / "b"], join_labels=True).notes
    assert not [note for note in joined if "differ in case" in note]


def test_damaged_pictures_are_in_no_share_and_named(tmp_path: Path) -> None:
    fill(tmp_path, 3, ("cat", "dog"))
    whole = next((tmp_path / "cat").iterdir()).read_bytes()
    (tmp_path / "cat" / "torn.jpg").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "dog" / "none.jpg").write_bytes(b"")
    found = open_folders([tmp_path])
    assert len(found.train) == len(found.y_train) == len(found.owners) == 6
    said = [note for note in found.notes if note.startswith("left out: ")]
    assert [note.split(":")[1].strip() for note in said] == ["cat/torn.jpg", "dog/none.jpg"]


def test_pictures_under_other_names_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, 3, ("cat", "dog"))
    whole = next((tmp_path / "cat").iterdir()).read_bytes()
    for name in ("photo", "photo.jpg_large", "photo.jpg.bak"):
        (tmp_path / "cat" / name).write_bytes(whole)
    (tmp_path / "cat" / "notes.md").write_text("not a picture")
    (said,) = [note for note in open_folders([tmp_path]).notes if "suffix" in note]
    assert said.startswith("not read, pictures without a picture's suffix: 3 (give them the suffix")


def test_an_archive_in_a_folders_place_is_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04")
    assert (
        main(["data", "partition", str(tmp_path / "set.zip"), "--nodes", "2", "--out", str(tmp_path / "o")])
        == 3
    )
    assert "it is an archive: unpack it, and name the folder" in capsys.readouterr().err
