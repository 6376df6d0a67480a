"""Folders of pictures of any kind to uint8 arrays of one size; what cannot be used is said, not fatal."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.cache import ArrayCache
from apiary.learn.manifest import PictureInput

RGB = PictureInput(height=8, width=12, channels=3)
GREY = PictureInput(height=8, width=12, channels=1)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)  # type: ignore[arg-type]  # Pillow's options differ by format
    return path


def plain(colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def test_scan_is_sorted_by_label_and_name_whatever_the_case(tmp_path: Path) -> None:
    for name in ("dog/b.JPG", "dog/a.png", "cat/z.jpeg", "cat/.hidden.png"):
        save(tmp_path / name, plain())
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    found = images.scan(tmp_path, ["dog", "cat"])
    assert [(r.label, r.path.name) for r in found.records] == [
        ("cat", "z.jpeg"),
        ("dog", "a.png"),
        ("dog", "b.JPG"),
    ]
    assert found.counts == {"dog": 2, "cat": 1}
    assert found.messages() == []
    assert all(r.size == r.path.stat().st_size for r in found.records)


def test_labels_are_the_folders_where_none_are_given(tmp_path: Path) -> None:
    save(tmp_path / "b" / "1.png", plain())
    save(tmp_path / "a" / "1.png", plain())
    (tmp_path / "empty").mkdir()
    assert images.scan(tmp_path).known == ("a", "b")
    # A server's folder names the labels, also those that it holds no picture of.
    named = images.scan(tmp_path, use="test")
    assert (
        named.known == ("a", "b", "empty") and "labels without a picture here: empty" in named.messages()[0]
    )


def test_unknown_label_is_counted_and_named(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", plain())
    save(tmp_path / "fox" / "1.png", plain())
    save(tmp_path / "fox" / "2.png", plain())
    found = images.scan(tmp_path, ["cat", "dog"])
    assert found.unknown == {"fox": 2}
    assert "2 pictures of label 'fox' are left out: the model knows cat, dog" in found.messages()[0]
    assert "all pictures have the label 'cat'" in found.messages()[1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "does not exist; expected a folder for each label"),
        (lambda p: p.mkdir(), "holds no pictures; expected a folder for each label"),
        (lambda p: p.write_text("x"), "is a file"),
        (lambda p: save(p / "1.png", plain()), "holds pictures, but not in folders by label"),
        (lambda p: save(p / "fox" / "1.png", plain()), "no picture of a label that the model knows"),
    ],
)
def test_a_folder_without_usable_pictures_is_explained(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    folder = tmp_path / "data"
    make(folder)
    with pytest.raises(DataError, match=says):
        images.scan(folder, ["cat", "dog"])


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    secret = save(tmp_path / "elsewhere" / "cat" / "s.png", plain())
    data = tmp_path / "data"
    inside = save(data / "cat" / "a.png", plain())
    (data / "cat" / "out.png").symlink_to(secret)
    (data / "cat" / "in.png").symlink_to(inside)
    (data / "cat" / "loop.png").symlink_to(data / "cat" / "loop.png")
    (data / "dog").symlink_to(secret.parent)
    found = images.scan(data, ["cat", "dog"])
    assert [r.path.name for r in found.records] == ["a.png", "in.png"]
    assert {s.path.name for s in found.skipped} == {"out.png", "loop.png", "dog"}
    assert "leads out of the data folder" in " ".join(found.messages())


def test_unreadable_pictures_are_skipped_with_the_reason(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "good.png", plain())
    (tmp_path / "cat" / "empty.jpg").write_bytes(b"")
    torn = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    (tmp_path / "cat" / "torn.jpg").write_bytes(torn[: len(torn) // 2])
    (tmp_path / "cat" / "page.png").write_bytes(b"<!DOCTYPE html><html>403")
    data = images.load(images.scan(tmp_path, ["cat", "dog"]), RGB)
    assert len(data) == 1
    assert data.x.shape == (1, 8, 12, 3)
    assert {s.path.name for s in data.skipped} == {"empty.jpg", "torn.jpg", "page.png"}
    whys = {s.path.name: s.why for s in data.skipped}
    assert whys["page.png"] == "not a readable picture: it is a web page: the download went wrong"
    assert whys["empty.jpg"] == "not a readable picture: the file is empty"
    assert whys["torn.jpg"].startswith("not a readable picture: image file is truncated")


def test_only_unreadable_pictures_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"none of 1 pictures can be read; the first: a\.jpg"):
        images.load(images.scan(tmp_path, ["cat"]), RGB)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes could never hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(DataError, match="9000x9000 pixels, at most 50 million"):
        images.decode(png_claiming(9000, 9000), RGB)
    with pytest.raises(DataError, match="far too many pixels, at most 50 million"):
        images.decode(png_claiming(60000, 60000), RGB)


def test_a_picture_at_the_limit_of_pixels_is_read_and_one_past_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    assert images.decode(encoded(plain(size=(40, 30))), RGB).shape == (8, 12, 3)
    with pytest.raises(DataError, match="40x31 pixels"):
        images.decode(encoded(plain(size=(40, 31))), RGB)


def test_a_set_larger_than_the_bound_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", plain())
    save(tmp_path / "cat" / "2.png", plain())
    found = images.scan(tmp_path, ["cat"])
    assert len(images.load(found, RGB, max_bytes=2 * 8 * 12 * 3)) == 2
    with pytest.raises(DataError, match="2 pictures of 12x8x3 take"):
        images.load(found, RGB, max_bytes=2 * 8 * 12 * 3 - 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("to", [RGB, GREY])
def test_every_mode_becomes_the_models(mode: str, to: PictureInput) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((30, 40), 200 * 257, np.uint16))
    else:
        picture = plain((200, 200, 200)).convert(mode)
    out = images.decode(encoded(picture, "JPEG" if mode == "CMYK" else "PNG"), to)
    assert out.shape == (8, 12, to.channels)
    assert out.dtype == np.uint8
    if mode not in "1P":  # dithered
        assert np.abs(out.astype(int) - 200).max() <= 2
    assert abs(float(out.mean()) - 200) < 12


def test_transparent_pixels_lie_on_white() -> None:
    assert images.decode(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0))), RGB).min() == 255


def test_exif_orientation_is_honoured() -> None:
    picture = Image.new("RGB", (64, 32), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 32, 32))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: white on top
    out = images.decode(encoded(picture, "JPEG", exif=exif, quality=95), GREY)
    assert out[:3].min() > 200
    assert out[5:].max() < 50


def test_shrinking_averages_instead_of_picking() -> None:
    board = np.indices((160, 240)).sum(0) % 2 * 255
    out = images.decode(encoded(Image.fromarray(board.astype(np.uint8))), GREY)
    assert np.abs(out.astype(int) - 127).max() <= 3


def test_a_cached_load_gives_the_same_bytes_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        save(tmp_path / "data" / "cat" / f"{i}.png", Image.effect_noise((50, 50), 80 + i))
    found = images.scan(tmp_path / "data", ["cat", "dog"])
    first = images.load(found, RGB, cache=ArrayCache(tmp_path / "cache", 1))
    monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("decoded again"))
    second = images.load(found, RGB, cache=ArrayCache(tmp_path / "cache", 1))
    assert np.array_equal(first.x, second.x)
    assert first.digests == second.digests
    assert len(set(first.digests)) == 3


def test_plain_folders_give_the_samples_of_the_version_before(tmp_path: Path) -> None:
    """In their order: the same run gives the same model. The digest was computed with that version."""
    rng = np.random.default_rng(7)
    for label in ("b", "A", "a b", "ö"):
        for i in (10, 9, 2, 1):
            made = Image.fromarray(rng.integers(0, 256, (20 + i, 31, 3), np.uint8))
            save(tmp_path / label / f"{i}.png", made)
    data = images.load(images.scan(tmp_path), PictureInput(height=16, width=16, channels=3))
    found = hashlib.sha256(data.x.tobytes() + data.y.tobytes()).hexdigest()
    assert found == "1337d2a971a40bb4c21f0b7bfab79862041e6598f427d2349fa8efde95331062"


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_read(kind: str) -> None:
    out = images.decode(encoded(plain(), kind), RGB)
    assert np.abs(out.astype(int) - (200, 100, 50)).max() <= 4


def test_of_several_pictures_in_a_file_the_first_counts() -> None:
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(plain((255, 0, 0)), kind, save_all=True, append_images=[plain((0, 0, 255))])
        assert images.decode(data, RGB)[..., 0].min() > 240, kind


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_may_lack_its_end_but_none_of_its_data(progressive: bool) -> None:
    noise = Image.effect_noise((320, 240), 90).convert("RGB")
    whole = encoded(noise, "JPEG", quality=90, progressive=progressive)
    assert np.array_equal(images.decode(whole[:-2], RGB), images.decode(whole, RGB))
    for share in (30, 60, 95, 99):
        with pytest.raises(DataError, match="not a readable picture"):
            images.decode(whole[: len(whole) * share // 100], RGB)


def test_labels_of_a_model_of_before_may_be_in_another_form_of_unicode(tmp_path: Path) -> None:
    save(tmp_path / "gru\u0308n" / "1.png", plain())
    for known in ("grün", "gru\u0308n"):
        assert images.scan(tmp_path, [known, "rot"]).counts == {known: 1}
    save(tmp_path / "Rot " / "1.png", plain())
    assert images.scan(tmp_path, ["grün", "rot"]).unknown == {"Rot ": 1}
    assert images.scan(tmp_path, ["grün", "rot"], join_labels=True).counts == {"grün": 1, "rot": 1}
