"""The sample store takes pictures in: without metadata, whole, of a size that fits, each once."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.edge.samples.parts import added, picture

from apiary.errors import DataError
from apiary_edge.samples.clean import clean
from apiary_edge.samples.model import (
    Added,
    Duplicate,
    Incoming,
    SampleRefused,
    SampleState,
)
from apiary_edge.samples.store import SampleStore


def test_a_picture_is_named_by_the_digest_of_what_is_stored(store: SampleStore) -> None:
    sample = added(store.add(Incoming(picture(1), "usb /dev/video0", captured_at=50.5)))
    path = store.path(sample)
    assert path is not None and hashlib.sha256(path.read_bytes()).hexdigest() == sample
    found = store.get(sample)
    assert found is not None
    assert (found.state, found.label, found.captured_at) == (SampleState.UNLABELLED, None, 50.5)
    assert (found.source, found.width, found.height) == ("usb /dev/video0", 24, 16)
    assert found.bytes == path.stat().st_size
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0


def test_the_same_picture_again_is_a_duplicate_also_within_a_batch_and_after_cleaning(
    store: SampleStore,
) -> None:
    plain = picture(1)
    with_comment = picture(1, comment=b"mine")
    assert plain != with_comment
    outcomes = list(store.add_many([Incoming(plain, "a"), Incoming(plain, "b"), Incoming(with_comment, "c")]))
    first = added(outcomes[0])
    assert outcomes[1:] == [Duplicate(first), Duplicate(first)]
    assert store.add(Incoming(with_comment, "d")) == Duplicate(first)
    assert store.counts().total == 1


def test_a_duplicate_brings_its_label_where_there_was_none(store: SampleStore) -> None:
    sample = added(store.add(Incoming(picture(1), "camera")))
    assert store.add(Incoming(picture(1), "import", "cat")) == Duplicate(sample, labelled=True)
    assert store.add(Incoming(picture(1), "import", "dog")) == Duplicate(sample)
    assert store.counts().labelled == {"cat": 1}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x010F] = "MAKER-OF-THE-CAMERA"
    made.get_ifd(0x8825)[2] = (52.0, 30.0, 59.0)  # GPS latitude
    return made


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_metadata_goes_and_the_picture_is_upright(kind: str, orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = (250, 20, 20)
    upright[16:, 24:] = (20, 20, 250)
    as_stored = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
    as_stored |= {
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    out = io.BytesIO()
    turned = Image.fromarray(np.ascontiguousarray(as_stored[orientation](upright)))
    turned.save(out, kind, exif=exif(orientation), quality=95)
    assert b"MAKER-OF-THE-CAMERA" in out.getvalue()
    got = clean(out.getvalue())
    assert b"MAKER" not in got.data and b"Exif" not in got.data and b"eXIf" not in got.data
    assert (got.width, got.height) == (48, 32)
    with Image.open(io.BytesIO(got.data)) as shown:
        assert not shown.getexif()
        pixels = np.asarray(shown.convert("RGB")).astype(int)
    assert np.abs(pixels[4:12, 4:20] - (250, 20, 20)).max() < 40
    assert np.abs(pixels[20:28, 28:44] - (20, 20, 250)).max() < 40


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"optimize": True, "quality": 30},
        {"restart_marker_rows": 1},
        {"subsampling": 0},
    ],
    ids=str,
)
def test_the_pixels_of_an_upright_jpeg_do_not_change(options: dict[str, Any]) -> None:
    data = picture(3, size=(200, 100), comment=b"secret", **options)
    got = clean(data)
    assert b"secret" in data and b"secret" not in got.data
    before, after = (np.asarray(Image.open(io.BytesIO(d))) for d in (data, got.data))
    assert np.array_equal(before, after)
    assert clean(got.data).data == got.data, "cleaning what is clean changes nothing"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_the_pixels_of_a_png_do_not_change(mode: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Author", "secret")
    text.add_itxt("Place", "secret", zip=False)
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    made = Image.new("I;16", (8, 8), 40_000) if mode == "I;16" else grey.convert(mode)
    out = io.BytesIO()
    made.save(out, "PNG", pnginfo=text)
    got = clean(out.getvalue() + b"secret trailer")
    assert b"secret" not in got.data
    before, after = (Image.open(io.BytesIO(d)) for d in (out.getvalue(), got.data))
    assert before.mode == after.mode and before.tobytes() == after.tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def peak_mb(data: bytes) -> tuple[str, float]:
    """What `clean` says of `data` in a child, and how much the child's memory grew, MB."""
    import resource

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            clean(data)
            said = "taken"
        except DataError as e:
            said = str(e)
        except BaseException as e:
            said = repr(e)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(write_end, f"{grown} {said}".encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as got:  # noqa: PTH123 - a file descriptor
        size, said = got.read().split(" ", 1)
    os.waitpid(pid, 0)
    return said, float(size)


BOMB = zlib.compress(bytes(30_000_000), 9)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a readable picture"),
        (b"GIF89a" + bytes(99), "not a readable picture"),
        (picture(1)[:-40], "not a readable picture"),
        (picture(1)[:300], "not a readable picture"),
        (picture(1, "PNG")[:-400], "not a readable picture"),
        (png(10_000, 10_000, BOMB), r"10000x10000 pixels, at most 50 million fit"),
        (png(60_000, 60_000, BOMB), "far too many pixels, at most 50 million fit"),
        (png(16, 16, b"no zlib"), "not a readable"),
        (png(16, 16, zlib.compress(b"")), "not a readable"),
        (picture(1, "PNG").replace(b"IDAT", b"IDAS"), "not a readable"),
        (bytes(64 * 2**20 + 1), "67108865 bytes, expected at most 67108864"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else len(v),
)
def test_what_is_no_whole_picture_is_refused_with_the_reason_in_little_memory(data: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        clean(data)
    said, grown = peak_mb(data)
    assert said != "taken" and grown < 30


def test_bombs_in_a_small_picture_are_not_unpacked() -> None:
    """Pixels that go on after the picture's end, and a compressed text: 30 MB each in 30 KB."""
    text = chunk(b"zTXt", b"Comment\x00\x00" + BOMB)
    profile = chunk(b"iCCP", b"profile\x00\x00" + BOMB)
    for data in (png(16, 16, BOMB), png(16, 16, zlib.compress(bytes(16 * 49)), text + profile)):
        said, grown = peak_mb(data)
        assert grown < 15, said


def test_bad_pictures_of_a_batch_do_not_hinder_the_others(store: SampleStore) -> None:
    outcomes = list(
        store.add_many([Incoming(picture(1), "a"), Incoming(b"torn", "b"), Incoming(picture(2), "c")])
    )
    assert [type(o) for o in outcomes] == [Added, SampleRefused, Added]
    assert store.counts().total == 2
