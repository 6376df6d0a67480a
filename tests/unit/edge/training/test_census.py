from __future__ import annotations

import os
from pathlib import Path

import pytest

from apiary.errors import DataError
from apiary.wire.messages import MAX_LABEL_CHARS, MAX_LABELS
from apiary_edge.training.census import take


def pictures(folder: Path, **labels: int) -> Path:
    for label, n in labels.items():
        (folder / label).mkdir(parents=True)
        for i in range(n):
            (folder / label / f"{i}.png").touch()
    return folder


def test_pictures_are_counted_by_label_sorted(tmp_path: Path) -> None:
    pictures(tmp_path, dog=2, cat=3, empty=0)
    (tmp_path / "cat" / "X.JPG").touch()
    (tmp_path / "cat" / "y.jpeg").touch()
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "stray.png").touch()
    pictures(tmp_path, **{".hidden": 5})
    assert list(take(tmp_path).labels.items()) == [("cat", 5), ("dog", 2)]


def test_no_folder_is_set() -> None:
    with pytest.raises(DataError, match=r"no data folder is set: give --data DIR \(edge\.data_dir\)"):
        take(None)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data folder .*gone does not exist; expected a folder"):
        take(tmp_path / "gone")


def test_a_file_instead(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; expected a folder"):
        take(tmp_path / "file")


def test_an_empty_one_and_one_with_loose_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pictures; expected a folder for each label"):
        take(tmp_path)
    (tmp_path / "loose.png").touch()
    with pytest.raises(DataError, match="holds pictures, but not in folders by label"):
        take(tmp_path)


def test_a_label_that_no_message_can_carry_is_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, **{"x" * MAX_LABEL_CHARS: 1, "y" * (MAX_LABEL_CHARS + 1): 1})
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")  # noqa: PTH102 - no Path can be made of it
    (tmp_path / os.fsdecode(b"\xff\xfe") / "1.png").touch()
    found = take(tmp_path)
    assert found.labels == {"x" * MAX_LABEL_CHARS: 1, "ÿþ": 1}
    assert "cannot be a label: expected 1 to 64 characters" in found.left_out[0]
    assert found.understood == ("a folder's name that is not UTF-8 is read as 'ÿþ'",)


def test_more_labels_than_a_model_can_have(tmp_path: Path) -> None:
    pictures(tmp_path, **{f"label{i}": 1 for i in range(MAX_LABELS)})
    assert len(take(tmp_path).labels) == MAX_LABELS
    pictures(tmp_path, one_more=1)
    with pytest.raises(DataError, match="holds 1001 labels, expected at most 1000"):
        take(tmp_path)


def test_a_folder_is_listed_again_only_where_something_changed(tmp_path: Path) -> None:
    pictures(tmp_path, cat=2, dog=1)
    fresh = take(tmp_path)
    assert fresh.folder is not None and fresh.folder.stamps is None, "what changed just now may go on"
    for path in (tmp_path, tmp_path / "cat", tmp_path / "dog"):
        os.utime(path, (1.0, 1.0))
    first = take(tmp_path)
    second = take(tmp_path, before=first)
    assert second.folder is first.folder and second.labels == {"cat": 2, "dog": 1}
    (tmp_path / "cat" / "new.png").touch()
    third = take(tmp_path, before=second)
    assert third.labels == {"cat": 3, "dog": 1}
    (tmp_path / "cat").rename(tmp_path / "fox")
    assert take(tmp_path, before=third).labels == {"dog": 1, "fox": 3}
