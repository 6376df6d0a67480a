"""Folders of pictures as people have them, small and the same each time, with what their authors mean."""

from __future__ import annotations

import io
import json
import os
import struct
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (24, 20)
COLOURS = {"red": (220, 30, 30), "blue": (30, 40, 220)}


@dataclass(frozen=True, slots=True)
class FolderCase:
    """A folder: what `make` puts into it, and what of it is trained, tests, and has no label.

    `says` are words that a command has to say of it; `unread` pictures only turn out to be none when opened.
    """

    name: str
    title: str
    make: Callable[[Path], None]
    trained: dict[str, int] = field(default_factory=lambda: {"blue": 4, "red": 4})
    tested: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    unread: int = 0
    says: tuple[str, ...] = ()


def picture(label: str, seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Noise with a square of the label's colour."""
    rng = np.random.default_rng([sum(map(ord, label)), seed])
    made = Image.fromarray(rng.integers(90, 150, (size[1], size[0], 3), np.uint8))
    ImageDraw.Draw(made).rectangle((4, 4, 14, 14), fill=COLOURS.get(label, (seed * 40 % 256, 200, 90)))
    return made


def encoded(made: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The file's bytes."""
    out = io.BytesIO()
    made.save(out, kind, **options)
    return out.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file and the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def fill(folder: Path, n: int = 4, labels: tuple[str, ...] = ("red", "blue"), first: int = 0) -> None:
    """`n` JPEGs in a folder a label."""
    for label in labels:
        for i in range(first, first + n):
            put(folder / label / f"{i:03d}.jpg", encoded(picture(label, i)))


def png_of_16_bits(values: np.ndarray[tuple[int, int], np.dtype[np.uint16]], key: int | None = None) -> bytes:
    """Grey of 16 bits; the value `key` is transparent."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 0))
    keyed = chunk(b"tRNS", struct.pack(">H", key)) if key is not None else b""
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + keyed + body + chunk(b"IEND", b"")


def _mac(folder: Path) -> None:
    fill(folder)
    for label in ("red", "blue"):
        for i in range(4):
            put(folder / label / f"._{i:03d}.jpg", b"\0\5\x16\7" + bytes(80))
            put(folder / "__MACOSX" / label / f"._{i:03d}.jpg", b"\0\5\x16\7" + bytes(80))
        put(folder / label / ".DS_Store", b"\0\0\0\1Bud1")
        put(folder / label / "Thumbs.db", b"\xd0\xcf\x11\xe0")
        put(folder / label / ".ipynb_checkpoints" / "000-checkpoint.jpg", encoded(picture(label, 0)))
    put(folder / "desktop.ini", b"[x]")


def _formats(folder: Path) -> None:
    fill(folder, 1)
    for i, (suffix, kind) in enumerate(
        [
            ("webp", "WEBP"),
            ("bmp", "BMP"),
            ("gif", "GIF"),
            ("tif", "TIFF"),
            ("TIFF", "TIFF"),
            ("jfif", "JPEG"),
        ]
    ):
        put(folder / "red" / f"{i}.{suffix}", encoded(picture("red", 20 + i), kind))
    put(folder / "red" / "raw.CR2", b"II*\0")
    put(folder / "blue" / "clip.mp4", b"\0\0\0\x18ftypmp42")


def _wrong_suffix(folder: Path) -> None:
    fill(folder)
    put(folder / "red" / "webp.jpg", encoded(picture("red", 30), "WEBP"))
    put(folder / "red" / "jpeg.png", encoded(picture("red", 31)))
    put(folder / "red" / "page.jpg", b"<!DOCTYPE html><html>403")
    put(folder / "red" / "empty.jpg", b"")
    put(folder / "blue" / "live.jpg", b"\0\0\0\x18ftypqt  \0\0\0\0qt  mif1" + bytes(80))
    (folder / "blue" / "folder.jpg").mkdir()


def _phones(folder: Path) -> None:
    fill(folder)
    whole, second, third = (encoded(picture("red", 45 + i, (160, 120)), quality=90) for i in range(3))
    put(folder / "red" / "no-end.jpg", whole[:-2])
    trailer = b"\0\0\x30\x0aSEFHk" + b"\x17" * 400 + b"SEFT"
    put(folder / "red" / "no-end-trailer.jpg", second[:-2] + trailer)
    put(folder / "red" / "newline.jpg", b"\n" + encoded(picture("red", 49)))
    put(folder / "red" / "mp4-behind.jpg", third + b"\0\0\0\x18ftypmp42" + bytes(range(256)))
    more = [picture("blue", 42)]
    put(
        folder / "red" / "animated.png", encoded(picture("red", 41), "PNG", save_all=True, append_images=more)
    )
    put(folder / "red" / "several.jpg", encoded(picture("red", 43), "MPO", save_all=True, append_images=more))
    for share in (30, 60, 95):
        put(folder / "blue" / f"cut{share}.jpg", whole[: len(whole) * share // 100])


def _csv(folder: Path) -> None:
    rows = ["id_code,diagnosis"]
    for label in ("red", "blue"):
        for i in range(4):
            put(folder / "images" / f"{label[0]}{i}.jpg", encoded(picture(label, i)))
            rows.append(f"{label[0]}{i},{label}")
    put(folder / "train.csv", "\n".join(rows).encode())
    put(folder / "test.csv", b"id_code\nt0\nt1\n")


def _usage_csv(folder: Path) -> None:
    rows = ["path,label,Usage"]
    for label in ("red", "blue"):
        for i in range(6):
            put(folder / "images" / f"{label[0]}{i}.jpg", encoded(picture(label, i)))
            usage = "Training" if i < 4 else "PublicTest" if i < 5 else "PrivateTest"
            rows.append(f"images/{label[0]}{i}.jpg,{label},{usage}")
    put(folder / "labels.csv", "\n".join(rows).encode())


def _fer2013(folder: Path) -> None:
    rng = np.random.default_rng(1)
    rows = ["emotion,pixels,Usage"]
    for i in range(6):
        usage = "Training" if i < 4 else "PrivateTest"
        rows.append(f"{3 + i % 2},{' '.join(map(str, rng.integers(0, 255, 16)))},{usage}")
    put(folder / "fer2013.csv", "\n".join(rows).encode())


def _mnist(folder: Path) -> None:
    rows = ["label," + ",".join(f"pixel{i}" for i in range(16))]
    rows += [f"{i % 2}," + ",".join(str(100 * (i % 2) + j) for j in range(16)) for i in range(6)]
    put(folder / "digits" / "train.csv", "\n".join(rows).encode())


def _utf16(folder: Path) -> None:
    rows = ["name;label"]
    for label in ("red", "blue"):
        for i in range(4):
            put(folder / "images" / f"{label[0]}{i}.jpg", encoded(picture(label, i)))
            rows.append(f"{label[0]}{i}.jpg;{label}")
    put(folder / "labels.csv", "\r\n".join(rows).encode("utf-16"))


def _spellings(folder: Path) -> None:
    for number, label in enumerate(("hard hat", "Hard-Hat", "head")):
        for i in range(4):
            put(folder / label / f"{i}.jpg", encoded(picture("red", 10 * number + i)))


def _edge_impulse(as_text: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for part, first in (("training", 0), ("testing", 40)):
            files = []
            for label in ("red", "blue"):
                for i in range(4):
                    name = f"{label}.{i:04x}.ingestion-{i}.jpg"
                    put(folder / part / name, encoded(picture(label, first + i)))
                    given: object = label if as_text else {"type": "label", "label": label}
                    files.append({"path": name, "name": name[:-4], "category": part, "label": given})
            put(folder / part / "info.labels", json.dumps({"version": 1, "files": files}).encode())

    return make


def _flat(folder: Path) -> None:
    for label in ("red", "blue"):
        for i in range(4):
            put(folder / f"{label}.{i}.jpg", encoded(picture(label, i)))


def _teachable(folder: Path) -> None:
    put(folder / "labels.txt", b"0 red\n1 blue\n\n")
    fill(folder / "samples", 4, ("Class 1-samples", "Class 2-samples"))


def _links(folder: Path) -> None:
    fill(folder)
    put(folder.parent / "outside" / "x.jpg", encoded(picture("red", 90)))
    (folder / "red" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "red" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    (folder / "green").symlink_to("../outside")
    (folder / "blue" / "around").symlink_to("..")


def _names(folder: Path) -> None:
    fill(folder)
    (folder / "blue").rename(folder / os.fsdecode(b"gr\xfcn"))
    (folder / "red/000.jpg").rename(folder / "red" / os.fsdecode(b"caf\xe9.jpg"))
    for i, name in enumerate(("new\nline.jpg", "esc\x1b[31m.jpg", "-rf.JPG", "日本語 🐝.jpeg")):
        put(folder / "red" / name, encoded(picture("red", 60 + i)))


def _repeats(folder: Path) -> None:
    fill(folder / "train")
    fill(folder / "test", 2, first=30)
    data = (folder / "train/red/000.jpg").read_bytes()
    put(folder / "train/blue/dup.jpg", data)
    put(folder / "test/red/leak.jpg", (folder / "train/red/001.jpg").read_bytes())


def _parts(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for i, name in enumerate(names):
            fill(folder / name, 4, first=20 * i)

    return make


def _loose(*folders: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for i, name in enumerate(folders):
            for k in range(3):
                put(folder / name / f"{k}.jpg", encoded(picture("red", 100 + 10 * i + k)))

    return make


def _flat_test(folder: Path) -> None:
    fill(folder / "train")
    _loose("test")(folder)


def _nested(folder: Path) -> None:
    fill(folder, 1)
    for label in ("red", "blue"):
        for i in range(3):
            put(folder / label / "2023" / "may" / f"{i}.jpg", encoded(picture(label, 50 + i)))


def _case_and_blanks(folder: Path) -> None:
    fill(folder, 4, ("Red", "red", "blue"))


def _two_forms(folder: Path) -> None:
    fill(folder, 4, (unicodedata.normalize("NFD", "grün"), "red"))


def _with_empty(folder: Path) -> None:
    fill(folder)
    (folder / "green").mkdir()


def _deep(folder: Path) -> None:
    fill(folder)
    values = np.repeat(np.array([[0, 4000]], np.uint16), 8, 1).repeat(8, 0)
    put(folder / "red" / "12-in-16.png", png_of_16_bits(values))
    put(folder / "red" / "16-transparent.png", png_of_16_bits((values * 15).astype(np.uint16), key=60_000))


BOTH = {"blue": 4, "red": 4}
CASES = (
    FolderCase("plain", "`LABEL/*.jpg`", fill),
    FolderCase("mac-zip", "unpacked from a Mac: `._x.jpg`, `__MACOSX/`, `.DS_Store`, `Thumbs.db`", _mac),
    FolderCase("other-formats", "WebP, BMP, GIF, TIFF, `.jfif` among JPEGs; a raw file, a video", _formats,
               {"blue": 1, "red": 7}, says=("camera raw", "videos")),
    FolderCase("wrong-suffix", "WebP as `.jpg`, JPEG as `.png`; a web page, nothing and a video as `.jpg`",
               _wrong_suffix, {"blue": 4, "red": 6}, unread=3, says=("web page", "empty", "video")),
    FolderCase("phones", "JPEGs without an end, with a trailer or a video behind; animated PNG; three cut",
               _phones, {"blue": 4, "red": 10}, unread=3, says=("truncated",)),
    FolderCase("16-bit", "12 bits in 16, 16 bits with a transparent value", _deep, {"blue": 4, "red": 6}),
    FolderCase("train-valid-test", "`train/`, `valid/`, `test/`", _parts("train", "valid", "test"),
               tested={"blue": 8, "red": 8}, says=("held out",)),
    FolderCase("Training-Testing", "`Training/`, `Testing/`", _parts("Training", "Testing"), tested=BOTH,
               says=("held out",)),
    FolderCase("archive", "`archive/dataset/train/`, `.../validation/`",
               _parts("archive/dataset/train", "archive/dataset/validation"), tested=BOTH,
               says=("the set is archive/dataset/",)),
    FolderCase("flat-test", "`train/LABEL`, and `test/` without labels", _flat_test, unlabelled=3,
               says=("3 pictures without a label, such as test/0.jpg",)),
    FolderCase("train-alone", "`train/*.jpg`, `test/*.jpg`", _loose("train", "test"), {}, unlabelled=6,
               says=("6 pictures without a label",)),
    FolderCase("loose", "pictures right in the folder", _loose("."), {}, unlabelled=3,
               says=("3 pictures without a label",)),
    FolderCase("flat", "`red.0.jpg`, `blue.0.jpg`, ...", _flat, says=("labels come from file names",)),
    FolderCase("csv", "`train.csv` (`id_code,diagnosis`), `images/`", _csv, says=("column 'diagnosis'",)),
    FolderCase("csv-usage", "`labels.csv` with a column `Usage`", _usage_csv, tested={"blue": 2, "red": 2},
               says=("column 'label'",)),
    FolderCase("fer2013", "`fer2013.csv`: `emotion,pixels,Usage`", _fer2013, {},
               says=("apiary data partition fer2013.csv writes pictures",)),
    FolderCase("mnist", "`digits/train.csv`: `label,pixel0,pixel1,...`", _mnist, {},
               says=("apiary data partition digits/train.csv writes pictures",)),
    FolderCase("utf-16", "`labels.csv` as Excel's Unicode text (UTF-16)", _utf16, says=("column 'label'",)),
    FolderCase("coco-parts", "`train2017/LABEL`, `val2017/LABEL`", _parts("train2017", "val2017"),
               tested=BOTH, says=("val2017/ held out",)),
    FolderCase("spellings", "`hard hat/` and `Hard-Hat/`", _spellings,
               {"Hard-Hat": 4, "hard hat": 4, "head": 4}, says=("differ in case, blanks or hyphens only",)),
    FolderCase("nested", "`LABEL/2023/may/*.jpg`", _nested, says=("pictures that lie deeper",)),
    FolderCase("edge-impulse", "Edge Impulse's export, `info.labels` with objects", _edge_impulse(False),
               tested=BOTH, says=("Edge Impulse",)),
    FolderCase("edge-impulse-text", "the same with plain labels", _edge_impulse(True), tested=BOTH,
               says=("Edge Impulse",)),
    FolderCase("teachable-machine", "`Class 1-samples/`, `labels.txt` with numbers", _teachable,
               says=("labels.txt names the classes",)),
    FolderCase("friends", "`anna/train/LABEL`, `berta/train/LABEL`", _parts("anna/train", "berta/train"), {},
               says=("did you mean", "anna")),
    FolderCase("links", "links to nowhere, out of the folder, around in a circle", _links,
               says=("leads nowhere", "leads out", "already")),
    FolderCase("names", "names that are not UTF-8, with line ends, escapes, emoji", _names,
               {"grün": 4, "red": 8}, says=("not UTF-8",)),
    FolderCase("unicode-forms", "`grün` as a Mac writes it", _two_forms, {"grün": 4, "red": 4}),
    FolderCase("case-and-blanks", "`Red/` and `red/`", _case_and_blanks, {"Red": 4, "blue": 4, "red": 4},
               says=("join_labels",)),
    FolderCase("empty-label", "an empty folder beside others", _with_empty),
    FolderCase("repeats", "a picture under two labels, one in `train/` and `test/`", _repeats,
               {"blue": 5, "red": 4}, {"blue": 2, "red": 3}),
)  # fmt: skip
