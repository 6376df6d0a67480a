"""What a file is, by name and by its first bytes."""

from __future__ import annotations

import pytest

from apiary.learn.folder import kinds


@pytest.mark.parametrize(
    ("name", "ignored"),
    [("a.jpg", False), ("._a.jpg", True), (".git", True), ("__MACOSX", True), ("Thumbs.db", True),
     ("desktop.ini", True), ("@eaDir", True), ("macosx", False)],
)  # fmt: skip
def test_what_systems_leave_is_ignored(name: str, ignored: bool) -> None:
    assert kinds.is_ignored(name) is ignored


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("IMG_1.HEIC", "HEIC"), ("a.heif", "HEIC"), ("a.avif", "AVIF"), ("a.NEF", "camera raw"),
        ("a.mp4", "videos"), ("x.tar.gz", "archives"), ("a.npz", "arrays"),
        ("a.svg", "other picture formats"), ("a.jpg", None), ("notes.md", None), ("heic", None),
        (".heic", None),
    ],
)  # fmt: skip
def test_kinds_that_are_not_read_say_what_to_do(name: str, kind: str | None) -> None:
    assert kinds.foreign(name) == kind
    assert kind is None or kinds.advice(kind)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"", "empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "it is HEIC: pip install 'apiary-fl[heic]'"),
        (b"\0\0\0\x1cftypavif", "it is AVIF"),
        (b"\0\0\0\x18ftypmp42", "it is a video"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "web page"),
        (b"<svg xmlns", "SVG"),
        (b"version https://git-lfs.github.com", "git lfs pull"),
        (b"PK\x03\x04", "archive"),
        (b"\0\5\x16\7", "macOS"),
    ],
)
def test_first_bytes_explain_why_it_is_no_picture(head: bytes, says: str) -> None:
    assert says in (kinds.kind_of_bytes(head) or "")


@pytest.mark.parametrize("head", [b"\xff\xd8\xff", b"\x89PNG", b"nonsense"])
def test_others_are_not_explained(head: bytes) -> None:
    assert kinds.kind_of_bytes(head) is None
