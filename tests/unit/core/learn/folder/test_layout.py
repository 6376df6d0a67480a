"""What a listing means: labels, splits, sets, and what has no label. No files."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

import pytest

from apiary.learn.folder import labels as naming
from apiary.learn.folder import tables
from apiary.learn.folder.labels import shown
from apiary.learn.folder.layout import FolderLayout, counts, understand
from apiary.learn.folder.splits import Split, split_of
from apiary.learn.folder.tables import class_names
from apiary.learn.folder.tree import Tree


def tree(
    *paths: str, tables: dict[str, str] | None = None, empty: Sequence[str] = (), foreign: Sequence[str] = ()
) -> Tree:
    files: dict[str, list[str]] = {}
    folders: dict[str, set[str]] = {}
    for path in [*paths, *(f"{e}/" for e in empty)]:
        *above, name = path.split("/")
        for i, folder in enumerate(above):
            folders.setdefault("/".join(above[:i]), set()).add(folder)
        if name:
            files.setdefault("/".join(above), []).append(name)
    return Tree(
        {k: sorted(v) for k, v in files.items()},
        {k: sorted(v) for k, v in folders.items()},
        tables or {},
        frozenset(foreign),
        frozenset(empty),
    )


def many(folder: str, n: int = 3) -> list[str]:
    return [f"{folder}/{i}.jpg" for i in range(n)]


def parts(layout: FolderLayout) -> tuple[dict[str, int], dict[str, int]]:
    tests = [g for g in layout.groups if g.split is not Split.TRAIN]
    return counts(layout.training()), counts(tests)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", Split.TRAIN), ("Training", Split.TRAIN), ("TRAIN_SET", Split.TRAIN),
        ("trainset", Split.TRAIN),
        ("valid", Split.VALID), ("val", Split.VALID), ("Validation", Split.VALID), ("dev", Split.VALID),
        ("test", Split.TEST), ("Testing", Split.TEST), ("test-data", Split.TEST), ("PrivateTest", Split.TEST),
        ("trainer", None), ("cat", None), ("", None), ("data", None), ("train test", None),
    ],
)  # fmt: skip
def test_spellings_of_parts(name: str, split: Split | None) -> None:
    assert split_of(name) is split


@pytest.mark.parametrize(
    ("paths", "train", "test"),
    [
        ([*many("cat"), *many("dog")], {"cat": 3, "dog": 3}, {}),
        ([*many("cat")], {"cat": 3}, {}),
        ([*many("Training/cat"), *many("Testing/cat", 2)], {"cat": 3}, {"cat": 2}),
        ([*many("train/cat"), *many("val/cat", 2), *many("test/cat", 1)], {"cat": 3}, {"cat": 3}),
        ([*many("archive/dataset/train/cat"), *many("archive/dataset/test/cat")], {"cat": 3}, {"cat": 3}),
        ([*many("dataset/cat"), *many("dataset/dog")], {"cat": 3, "dog": 3}, {}),
        ([*many("train")], {}, {}),
        ([*many("train"), *many("test")], {}, {}),
        ([*many("valid"), *many("validation")], {}, {}),
        ([*many("bus"), *many("train")], {"bus": 3, "train": 3}, {}),
        ([*many("cat/2023"), *many("cat"), *many("dog/2023/may")], {"cat": 6, "dog": 3}, {}),
        ([*many("cat/2023"), *many("dog/2023")], {"cat": 3, "dog": 3}, {}),
        ([*many("cat/train"), *many("cat/test"), *many("dog/train")], {"cat": 3, "dog": 3}, {"cat": 3}),
        (["cat.0.jpg", "cat.1.jpg", "dog.0.jpg", "dog.1.jpg"], {"cat": 2, "dog": 2}, {}),
        (["archive/cat.0.jpg", "archive/cat.1.jpg", "archive/dog.0.jpg", "archive/dog.1.jpg"],
         {"cat": 2, "dog": 2}, {}),
        (["training/a.1.ingestion-5.jpg", "training/a.2.x.jpg", "testing/b.1.x.jpg", "testing/b.2.x.jpg"],
         {"a": 2}, {"b": 2}),
        (["IMG.001.jpg", "IMG.002.jpg"], {}, {}),
        (["2024.01.05.jpg", "2024.01.06.jpg"], {}, {}),
        (["a.b.1.jpg", "c.d.2.jpg", "e.f.3.jpg"], {}, {}),
        (["1.jpg", "2.jpg"], {}, {}),
        ([*many("images")], {}, {}),
        ([*many("Class 1-samples"), *many("Class 2-samples")], {"Class 1": 3, "Class 2": 3}, {}),
        ([*many("train/cat"), *many("train/dog"), "test/1.jpg"], {"cat": 3, "dog": 3}, {}),
    ],
)  # fmt: skip
def test_what_is_trained_and_what_tests(
    paths: list[str], train: dict[str, int], test: dict[str, int]
) -> None:
    layout = understand(tree(*paths))
    assert parts(layout) == (train, test)
    assert sum(len(g.names) for g in layout.groups) == len(paths), "no picture vanishes"
    if layout.unlabelled:
        assert any(f"{layout.unlabelled} picture" in w and "without a label" in w for w in layout.warnings)


@pytest.mark.parametrize(
    "paths",
    [
        [*many("anna/train/cat"), *many("berta/train/cat")],
        [*many("anna/training/cat"), *many("berta/test/dog"), *many("berta/train/dog")],
        [*many("node-1/cat"), *many("node-1/dog"), *many("node-2/cat"), *many("server/dog")],
        [*many("node-1/0"), *many("node-2/0"), *many("server/7")],  # labels that might be dates
    ],
)
def test_several_sets_are_named_and_none_is_taken(paths: list[str]) -> None:
    layout = understand(tree(*paths))
    assert layout.sets == tuple(sorted({p.split("/")[0] for p in paths})) and not layout.groups


def test_plain_folders_say_nothing_and_are_in_the_order_of_names() -> None:
    layout = understand(tree("b/2.jpg", "b/10.jpg", "a/1.jpg"))
    assert [(g.label, tuple(g.names)) for g in layout.groups] == [
        ("a", ("1.jpg",)),
        ("b", ("10.jpg", "2.jpg")),
    ]
    assert layout.understood == layout.warnings == layout.unused == ()


def test_names_are_the_same_in_both_forms_of_unicode_and_in_another_encoding() -> None:
    nfd = unicodedata.normalize("NFD", "grün")
    latin = b"gr\xfcn".decode("utf-8", "surrogateescape")
    for name in ("grün", nfd, latin):
        layout = understand(tree(*many(name), *many("rot")))
        assert parts(layout)[0] == {"grün": 3, "rot": 3}
    assert layout.understood == ("a folder's name that is not UTF-8 is read as 'grün'",)
    assert parts(understand(tree(*many("grün"), *many(nfd))))[0] == {"grün": 6}


@pytest.mark.parametrize(
    ("one", "other"),
    [("hard hat", "hardhat"), ("Hard-Hat", "hard_hat"), ("hard\u00a0hat", "hard hat"), ("type 1", "type1")],
)
def test_labels_that_people_write_in_two_ways_are_alike(one: str, other: str) -> None:
    assert naming.alike([one, other, "head"]) == [tuple(sorted((one, other)))]


@pytest.mark.parametrize(("one", "other"), [("1-2", "12"), ("c", "c++"), ("-", "_"), ("2 1", "21")])
def test_labels_that_mean_two_things_are_not_alike(one: str, other: str) -> None:
    assert naming.alike([one, other]) == []


def test_a_table_beside_label_folders_is_said() -> None:
    csv = "name,label\n0.jpg,x\n1.jpg,y\n2.jpg,x\n"
    layout = understand(tree(*many("red"), "blue/a.jpg", tables={"labels.csv": csv}))
    assert parts(layout)[0] == {"red": 3, "blue": 1}
    assert layout.understood == ("the folders' names are the labels, and not what labels.csv says",)


def test_names_of_classes_that_are_too_few_are_said() -> None:
    layout = understand(tree(*many("Class 1"), *many("Class 2"), tables={"labels.txt": "0 cat\n"}))
    assert parts(layout)[0] == {"Class 1": 3, "Class 2": 3}
    assert layout.warnings == ("labels.txt has 1 names and is not taken: the folders are Class 1, Class 2",)


def test_blanks_before_a_quoted_label_and_utf_16() -> None:
    csv = 'name, label\n0.jpg, "hard hat"\n1.jpg, head\n2.jpg, "hard hat"\n'
    for data in (csv.encode(), csv.encode("utf-16"), b"\xef\xbb\xbf" + csv.encode()):
        layout = understand(tree(*many("images"), tables={"labels.csv": tables.decoded(data)}))
        assert parts(layout)[0] == {"hard hat": 2, "head": 1}


def test_what_differs_in_case_or_blanks_is_named() -> None:
    layout = understand(tree(*many("Red"), *many("red "), *many("blue")))
    assert parts(layout)[0] == {"Red": 3, "red ": 3, "blue": 3}
    assert "labels 'Red' and 'red ' differ in case, blanks or hyphens only" in layout.warnings[0]
    assert "join_labels" in layout.warnings[0]


def test_an_empty_folder_and_one_of_pictures_that_are_not_read_are_labels_without_one() -> None:
    found = tree(*many("cat"), "heic/", empty=["dog", "test"], foreign=["heic"])
    assert understand(found).unused == ("dog", "heic")


def test_what_cannot_be_a_label_is_counted() -> None:
    layout = understand(tree(*many("x" * 65), *many("a\nb"), *many("cat")))
    assert parts(layout)[0] == {"cat": 3}
    assert len([w for w in layout.warnings if "cannot be a label" in w]) == 2


# -- tables


CSV = "id_code,diagnosis\n0,cat\n1,dog\n2,cat\n"


@pytest.mark.parametrize(
    ("paths", "table", "text", "train", "test"),
    [
        (many("images"), "labels.csv", CSV, {"cat": 2, "dog": 1}, {}),
        (many("set/train_images"), "set/train.csv", CSV, {"cat": 2, "dog": 1}, {}),
        (["0.jpg", "1.jpg", "2.jpg"], "labels.csv", "\ufeff" + CSV.replace("\n", "\r\n"),
         {"cat": 2, "dog": 1}, {}),
        (many("images"), "l.csv", "file;label\nimages/0.jpg;a\nimages/1.jpg;b\nimages/2.jpg;b\n",
         {"a": 1, "b": 2}, {}),
        (many("images"), "l.csv", "label,x,file\na,1,0.jpg\nb,2,1.jpg\nb,3,2.jpg\n",
         {"a": 1, "b": 2}, {}),
        (many("images"), "l.csv",
         "file,label,usage\n0.jpg,a,Training\n1.jpg,b,PublicTest\n2.jpg,b,Training\n",
         {"a": 1, "b": 1}, {"b": 1}),
        (many("images"), "l.csv", "file,cat,dog\n0.jpg,1,0\n1.jpg,0,1\n2.jpg,1,0\n",
         {"cat": 2, "dog": 1}, {}),
        (many("images"), "l.csv", "file,label\n0.jpg,a\n0.jpg,b\n1.jpg,a\n2.jpg,a\n", {"a": 2}, {}),
        (many("train"), "train.csv", CSV, {"cat": 2, "dog": 1}, {}),
    ],
)  # fmt: skip
def test_labels_of_a_table(
    paths: list[str], table: str, text: str, train: dict[str, int], test: dict[str, int]
) -> None:
    layout = understand(tree(*paths, tables={table: text}))
    assert parts(layout) == (train, test)
    assert any(line.startswith("labels come from") for line in layout.understood)


def test_a_table_that_is_about_something_else_changes_nothing() -> None:
    paths = [*many("cat"), *many("dog")]
    assert parts(understand(tree(*paths, tables={"notes.csv": CSV}))) == ({"cat": 3, "dog": 3}, {})
    assert parts(understand(tree(*many("images"), tables={"notes.csv": "a,b\n9,x\n8,y\n"}))) == ({}, {})


def test_a_table_in_which_no_column_is_surely_the_label_is_named() -> None:
    layout = understand(tree(*many("images"), tables={"l.csv": "file,x,y\n0.jpg,a,b\n1.jpg,c,d\n"}))
    assert layout.unlabelled == 3
    assert "l.csv: which column is the label? It has file, x, y; name one of them label" in layout.warnings


def test_a_table_with_pixels_is_named() -> None:
    layout = understand(tree(tables={"fer2013.csv": "emotion,pixels,Usage\n0,1 2 3 4,Training\n"}))
    assert "fer2013.csv holds the pixels themselves: apiary data partition fer2013.csv writes pictures" in (
        layout.warnings
    )
    mnist = "label," + ",".join(f"pixel{i}" for i in range(784)) + "\n5" + ",0" * 784
    assert (
        "partition a/mnist.csv writes pictures" in understand(tree(tables={"a/mnist.csv": mnist})).warnings[0]
    )
    assert understand(tree(tables={"sizes.csv": "name,pixel1,pixel2\na,1,2\n"})).warnings == ()


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("at_root", [True, False])
def test_edge_impulses_export(as_text: bool, at_root: bool) -> None:
    def listing(*files: tuple[str, str, str]) -> str:
        rows = [
            {"path": path, "name": path[:-4], "category": category,
             "label": label if as_text else {"type": "label", "label": label}}
            for path, category, label in files
        ]  # fmt: skip
        return json.dumps({"version": 1, "files": rows})

    names = [f"training/{c}.{i}.x.jpg" for c in ("cat", "dog") for i in range(2)]
    tests = ["testing/9.jpg"]
    if at_root:
        rows = [(n, "training", n[9:12]) for n in names] + [(tests[0], "testing", "dog")]
        tables = {"info.labels": listing(*rows)}
    else:
        tables = {
            "training/info.labels": listing(*((n[9:], "training", n[9:12]) for n in names)),
            "testing/info.labels": listing(("9.jpg", "testing", "dog")),
        }
    layout = understand(tree(*names, *tests, tables=tables))
    assert parts(layout) == ({"cat": 2, "dog": 2}, {"dog": 1})


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": [3]}', "[" * 10_000])
def test_an_info_labels_that_is_none_is_named(text: str) -> None:
    layout = understand(tree("1.jpg", tables={"info.labels": text}))
    assert layout.unlabelled == 1 and "info.labels is not as Edge Impulse writes it" in layout.warnings[0]


def test_teachable_machines_names_with_numbers() -> None:
    assert class_names("0 Helmet\n1 No helmet\n\n") == ["Helmet", "No helmet"]
    assert class_names("\ufeffhelmet\r\nhead\r\n") == ["helmet", "head"]
    assert class_names("3 wheels\n1 wheel\n") == ["3 wheels", "1 wheel"]
    layout = understand(
        tree(
            *many("samples/Class 1-samples"),
            *many("samples/Class 2-samples"),
            tables={"labels.txt": "0 Hat\n1 None"},
        )
    )
    assert parts(layout)[0] == {"Hat": 3, "None": 3}


def test_names_are_shown_on_one_line_without_escapes() -> None:
    assert shown("new\nline \x1b[31mred.jpg") == "new\\nline \\x1b[31mred.jpg"
    assert shown("grün 🐝.jpg") == "grün 🐝.jpg"
    layout = understand(tree("a\x1b[2J\n.jpg"))
    assert layout.unlabelled == 1 and all(line.isprintable() for line in layout.warnings)


@pytest.mark.parametrize(
    "twice", ["train/train", "seg_train/seg_train", "Training/train", "train/data/train"]
)
def test_a_parts_folder_in_a_parts_folder_is_no_label(twice: str) -> None:
    found = understand(tree(*many(f"{twice}/cat"), *many(f"{twice}/dog")))
    assert parts(found) == ({"cat": 3, "dog": 3}, {})


def test_parts_that_lie_twice_keep_what_tests() -> None:
    found = understand(
        tree(
            *many("seg_train/seg_train/cat"), *many("seg_train/seg_train/dog"),
            *many("seg_test/seg_test/cat", 2), *many("seg_test/seg_test/dog", 2),
        )
    )  # fmt: skip
    assert parts(found) == ({"cat": 3, "dog": 3}, {"cat": 2, "dog": 2})


def test_within_what_tests_nothing_trains() -> None:
    found = understand(tree(*many("train/a"), *many("train/b"), *many("test/train/a"), *many("test/train/b")))
    assert parts(found) == ({"a": 3, "b": 3}, {"a": 3, "b": 3})


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0")])
def test_columns_with_ones_are_labels_as_they_are_written(yes: str, no: str) -> None:
    rows = [f"img_{i},{yes if i % 2 else no},{no if i % 2 else yes}" for i in range(4)]
    table = "\n".join(["image,MEL,Nv", *rows])
    found = understand(tree(*many("img", 0), *[f"img_{i}.jpg" for i in range(4)], tables={"gt.csv": table}))
    assert parts(found) == ({"MEL": 2, "Nv": 2}, {})


IMAGES = [f"images/img_{i}.jpg" for i in range(4)]


@pytest.mark.parametrize(
    "path",
    ["images/img_{}.jpg", "img_{}.jpg", "img_{}", "images\\img_{}.jpg", "/content/old/images/img_{}.jpg",
     "./images/img_{}.jpg", "C:\\data\\img_{}.jpg"],
)  # fmt: skip
@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_a_table_names_pictures_by_the_end_of_the_path_that_they_had(path: str, between: str) -> None:
    rows = [f"{path.format(i)}{between}{'cat' if i % 2 else 'dog'}" for i in range(4)]
    table = "\n".join([f"file{between}label", *rows])
    assert parts(understand(tree(*IMAGES, tables={"labels.csv": table}))) == ({"cat": 2, "dog": 2}, {})
    without_header = "\n".join(rows)
    assert parts(understand(tree(*IMAGES, tables={"l.csv": without_header}))) == ({"cat": 2, "dog": 2}, {})


def test_the_table_of_a_part_is_about_that_part() -> None:
    table = "\n".join(["id,label", *(f"img_{i},{'cat' if i % 2 else 'dog'}" for i in range(4))])
    both = [f"{part}/img_{i}.jpg" for part in ("train", "test") for i in range(4)]
    found = understand(tree(*both, tables={"train.csv": table}))
    assert parts(found) == ({"cat": 2, "dog": 2}, {})
    assert found.unlabelled == 4


def test_a_table_that_is_about_other_pictures_is_named() -> None:
    found = understand(tree(*IMAGES, tables={"labels.csv": "file,label\nother_1.jpg,cat\nother_2.jpg,dog"}))
    assert "labels.csv is not taken: no column of it names these pictures by path or name" in found.warnings
