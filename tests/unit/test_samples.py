"""The sample store: what goes in, what is refused, labels and undo, what leaves when it is full."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import apiary.learn.images
from apiary.errors import DataError, StoreError
from apiary.learn.cache import ArrayCache
from apiary_edge import samples
from apiary_edge.samples import layout
from apiary_edge.samples.clean import clean
from apiary_edge.samples.incoming import Incoming
from apiary_edge.samples.model import (
    Added,
    Bounds,
    Duplicate,
    Filter,
    Order,
    Outcome,
    Refused,
    SampleId,
    State,
    check_label,
    is_held_out,
)
from apiary_edge.samples.store import MAX_UNDO, SampleStore

ROOMY = Bounds(min_free_bytes=0)


class Clock:
    """Counts up by a second a call."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)  # type: ignore[arg-type]  # Pillow's options differ
    return out.getvalue()


def opened(folder: Path, bounds: Bounds = ROOMY) -> SampleStore:
    return SampleStore(folder / "samples", folder / "cache", bounds, Clock())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    made = opened(tmp_path)
    yield made
    made.close()


def added(outcome: Outcome) -> SampleId:
    assert isinstance(outcome, Added), outcome
    return outcome.id


def fill(store: SampleStore, count: int, label: str | None = None, start: int = 0) -> list[SampleId]:
    batch = (Incoming(picture(start + i), f"camera {i}", label) for i in range(count))
    return [added(outcome) for outcome in store.add_many(batch)]


def test_a_picture_is_named_by_the_digest_of_what_is_stored(store: SampleStore) -> None:
    sample = added(store.add(Incoming(picture(1), "usb /dev/video0", captured_at=50.5)))
    path = store.path(sample)
    assert path is not None and hashlib.sha256(path.read_bytes()).hexdigest() == sample
    found = store.get(sample)
    assert found is not None
    assert (found.state, found.label, found.captured_at) == (State.UNLABELLED, None, 50.5)
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
def test_the_pixels_of_an_upright_jpeg_do_not_change(options: dict[str, object]) -> None:
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
        grown, said = got.read().split(" ", 1)
    os.waitpid(pid, 0)
    return said, float(grown)


BOMB = zlib.compress(bytes(30_000_000), 9)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a readable JPEG or PNG"),
        (b"GIF89a" + bytes(99), "not a readable JPEG or PNG"),
        (picture(1)[:-40], "not a readable JPEG"),
        (picture(1)[:300], "not a readable JPEG"),
        (picture(1, "PNG")[:-20], "not a readable (JPEG or )?PNG"),
        (png(10_000, 10_000, BOMB), r"10000x10000 pixels, expected at most 50 million"),
        (png(60_000, 60_000, BOMB), "far too many pixels, expected at most 50 million"),
        (png(16, 16, b"no zlib"), "not a readable"),
        (png(16, 16, zlib.compress(b"")), "not a readable"),
        (picture(1, "PNG").replace(b"IDAT", b"IDAS"), "not a readable"),
        (png(4, 4, zlib.compress(bytes(52)), chunk(b"ABCD", b"")), "critical chunk b'ABCD'"),
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


def test_the_limits_are_those_of_training() -> None:
    assert samples.MAX_PIXELS == apiary.learn.images.MAX_PIXELS
    assert samples.MAX_FILE_BYTES == apiary.learn.images.MAX_FILE_BYTES
    assert samples.MAX_DECODED_PIXELS == apiary.learn.images.MAX_DECODED_PIXELS


def test_bad_pictures_of_a_batch_do_not_hinder_the_others(store: SampleStore) -> None:
    outcomes = list(
        store.add_many([Incoming(picture(1), "a"), Incoming(b"torn", "b"), Incoming(picture(2), "c")])
    )
    assert [type(o) for o in outcomes] == [Added, Refused, Added]
    assert store.counts().total == 2


def test_labels_and_undo(store: SampleStore) -> None:
    ids = fill(store, 6)
    assert store.label(ids[:4], "cat", "ann") == 4
    assert store.label([*ids[2:5], ids[2]], "dog", "bob") == 3
    assert store.label(ids[:1], None, "ann") == 1
    assert store.counts().labelled == {"cat": 1, "dog": 3}
    assert [store.get(i).labelled_by for i in ids[:5]] == [None, "ann", "bob", "bob", "bob"]  # type: ignore[union-attr]  # they are there
    undone = store.undo()
    assert undone is not None and (undone.who, undone.ids) == ("ann", (ids[0],))
    undone = store.undo()
    assert undone is not None and undone.who == "bob" and set(undone.ids) == set(ids[2:5])
    assert store.counts().labelled == {"cat": 4}
    assert store.undo() is not None
    assert store.counts().labelled == {} and store.counts().unlabelled == 6
    assert store.undo() is None


def test_a_labelling_that_changes_nothing_is_no_step_of_undo(store: SampleStore) -> None:
    ids = fill(store, 1)
    store.label(ids, "cat", "ann")
    assert store.label(ids, "cat", "ann") == 0
    assert store.label([SampleId("0" * 64)], "cat", "ann") == 0
    assert store.undo() is not None and store.counts().labelled == {}


def test_undo_passes_over_what_was_deleted_meanwhile(store: SampleStore) -> None:
    ids = fill(store, 2)
    store.label(ids, "cat", "ann")
    store.delete(ids[:1])
    undone = store.undo()
    assert undone is not None and undone.ids == (ids[1],)
    assert store.counts().total == 1


def test_undo_is_bounded(store: SampleStore) -> None:
    (sample,) = fill(store, 1)
    for i in range(MAX_UNDO + 20):
        store.label([sample], f"l{i}", "ann")
    steps = 0
    while store.undo() is not None:
        steps += 1
    assert steps == MAX_UNDO


@pytest.mark.parametrize(
    "label", ["", " cat", "cat ", ".cat", "a/b", "..", "a\nb", "a\x00b", "x" * 65, "\ud800"]
)
def test_a_label_must_be_fit_for_a_folder_and_a_message(store: SampleStore, label: str) -> None:
    (sample,) = fill(store, 1)
    with pytest.raises(DataError, match="cannot be a label: expected 1 to 64 printable characters"):
        store.label([sample], label, "ann")
    refused = store.add(Incoming(picture(99), "import", label)) if label else Refused("")
    assert isinstance(refused, Refused)
    assert check_label("Schutz Helm (gelb) Ü") == "Schutz Helm (gelb) Ü"


@pytest.mark.parametrize("text", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "/..", "é" * 64])
def test_an_id_from_outside_is_never_a_path(store: SampleStore, text: str) -> None:
    bad = SampleId(text)
    for act in (store.get, store.path, lambda i: store.delete([i]), lambda i: store.label([i], "cat", "me")):
        with pytest.raises(DataError, match="is no sample id: expected 64 characters"):
            act(bad)


def test_held_out_is_a_fixed_share_by_digest_and_never_trained(tmp_path: Path) -> None:
    store = opened(tmp_path)
    ids = fill(store, 300, "cat")
    trained, tests = store.training(), store.held_out()
    assert {s.digest for s in trained} | {s.digest for s in tests} == set(ids)
    assert not {s.digest for s in trained} & {s.digest for s in tests}
    assert 30 < len(tests) < 90
    assert all(is_held_out(s.digest, 0.2) for s in tests)
    counts = store.counts()
    assert (counts.labelled, counts.held_out) == ({"cat": 300}, {"cat": len(tests)})
    assert counts.trainable == {"cat": len(trained)}
    assert trained == sorted(trained, key=lambda s: s.digest)
    assert all(Path(s.file).stat().st_size == s.bytes for s in trained)
    # A share that is changed later concerns newcomers: what was trained does not become a test.
    store.close()
    later = opened(tmp_path, replace(ROOMY, held_out=0.9))
    assert [s.digest for s in later.held_out()] == [s.digest for s in tests]
    later.close()


def test_unlabelled_and_suggested_pictures_are_never_trained(store: SampleStore) -> None:
    ids = fill(store, 20)
    store.set_suggestions("m", [(i, "cat", 0.99) for i in ids])
    assert store.training() == [] and store.held_out() == []


def test_suggestions_most_uncertain_first(store: SampleStore) -> None:
    ids = fill(store, 5)
    store.label(ids[4:], "dog", "ann")
    noted = store.set_suggestions(
        "m1", [(ids[0], "cat", 0.9), (ids[1], "dog", 0.55), (ids[2], "cat", 0.7), (ids[4], "cat", 1.0)]
    )
    assert noted == 3, "a labelled picture needs no suggestion"
    page = store.page(Filter(labelled=False), Order.UNCERTAIN)
    assert [s.id for s in page.samples] == [ids[1], ids[2], ids[0], ids[3]]
    first = page.samples[0]
    assert first.state is State.SUGGESTED and first.suggestion is not None
    assert (first.suggestion.label, first.suggestion.probability, first.suggestion.model) == (
        "dog",
        0.55,
        "m1",
    )
    assert store.awaiting_suggestion("m1", 10) == [ids[3]]
    assert store.awaiting_suggestion("m2", 10) == [ids[3], ids[2], ids[1], ids[0]]
    assert store.counts().suggested == {"cat": 2, "dog": 1} and store.counts().unlabelled == 1
    store.label(ids[:1], "dog", "ann")
    kept = store.get(ids[0])
    assert kept is not None and kept.label == "dog" and kept.suggestion is not None


def test_pages(store: SampleStore) -> None:
    ids = fill(store, 25)
    store.label(ids[:5], "cat", "ann")
    newest = store.page(limit=10)
    assert [s.id for s in newest.samples] == ids[::-1][:10] and newest.total == 25
    assert [s.id for s in store.page(order=Order.OLDEST, limit=3, offset=24).samples] == ids[24:]
    assert store.page(Filter(label="cat")).total == 5
    assert store.page(Filter(state=State.LABELLED)).total == store.page(Filter(labelled=True)).total == 5
    assert store.page(Filter(state=State.UNLABELLED)).total == 20
    halves = [store.page(Filter(held_out=h, label="cat")).total for h in (True, False)]
    assert sum(halves) == 5
    assert store.page(limit=10**9).samples == store.page(limit=200).samples
    assert store.page(limit=-1, offset=-5).samples == ()


def test_when_full_the_oldest_unlabelled_go_first_then_suggested_and_labelled_never(tmp_path: Path) -> None:
    store = opened(tmp_path, replace(ROOMY, max_count=6))
    ids = fill(store, 6)
    store.label(ids[:2], "cat", "ann")
    store.set_suggestions("m", [(ids[2], "cat", 0.9)])
    gone: list[SampleId] = []
    for i in range(4):
        outcome = store.add(Incoming(picture(100 + i), "camera"))
        assert isinstance(outcome, Added)
        gone += outcome.evicted
    assert gone[:3] == ids[3:6], "the oldest unlabelled first"
    assert store.get(ids[2]) is not None, "a suggested one stays while there are unlabelled ones"
    rest = [s.id for s in store.page(Filter(labelled=False)).samples]
    store.set_suggestions("m", [(i, "cat", 0.5) for i in rest])
    outcome = store.add(Incoming(picture(200), "camera"))
    assert isinstance(outcome, Added) and outcome.evicted == (ids[2],)
    store.label([s.id for s in store.page(Filter(labelled=False)).samples], "dog", "ann")
    outcome = store.add(Incoming(picture(300), "camera"))
    assert isinstance(outcome, Refused) and outcome.full
    assert "full of labelled pictures: 6 of 6" in outcome.why and "edge.store.max_count" in outcome.why
    files = [p for p in (tmp_path / "samples" / "pictures").rglob("*") if p.is_file()]
    assert len(files) == store.counts().total == 6
    store.close()


def test_the_bound_in_megabytes_counts_the_files(tmp_path: Path) -> None:
    one = len(clean(picture(0, "PNG")).data)
    store = opened(tmp_path, replace(ROOMY, max_bytes=one * 3 + one // 2))
    for i in range(6):
        assert isinstance(store.add(Incoming(picture(i, "PNG"), "camera")), Added)
    counts = store.counts()
    assert counts.total == 3 and counts.bytes <= one * 3.5
    assert isinstance(store.add(Incoming(picture(9, "PNG", (200, 200)), "camera")), Refused)
    assert store.counts().total == 3, "nothing leaves for a picture that does not fit anyway"
    store.close()


def test_a_full_label_lets_go_of_what_was_labelled_longest_ago_but_not_of_held_out(tmp_path: Path) -> None:
    store = opened(tmp_path, replace(ROOMY, max_per_label=10))
    ids = fill(store, 30)
    for sample in ids[:15]:
        store.label([sample], "cat", "ann")
    tests = [i for i in ids[:15] if is_held_out(i, 0.2)]
    trained = [i for i in ids[:15] if not is_held_out(i, 0.2)]
    left = {s.id for s in store.page(Filter(label="cat")).samples}
    assert len(left) == 10 and left == {*tests, *trained[-(10 - len(tests)) :]}
    refused = store.add(Incoming(picture(500), "import", "cat"))
    assert isinstance(refused, Refused) and "label 'cat' has 10 pictures" in refused.why and not refused.full
    with pytest.raises(DataError, match=r"11 pictures at once, but a label keeps 10 "):
        store.label(ids[15:26], "dog", "ann")
    store.close()


def test_no_picture_is_taken_where_the_disk_is_nearly_full(tmp_path: Path) -> None:
    store = opened(tmp_path, replace(ROOMY, min_free_bytes=2**60))
    refused = store.add(Incoming(picture(1), "camera"))
    assert isinstance(refused, Refused) and refused.full and "edge.store.min_free_mb" in refused.why
    store.close()


def test_deleting_takes_the_file_and_what_the_caches_made_of_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep, gone = fill(store, 2)
    cache = ArrayCache(tmp_path / "cache", 10)
    for sample in (keep, gone):
        cache.put("pictures-8x8x3", sample, np.zeros((8, 8, 3), np.uint8))
        cache.put("features-abc", sample, np.zeros(5, np.float32))
    path = store.path(gone)
    assert path is not None and store.delete([gone, gone]) == 1
    assert not path.exists() and store.get(gone) is None and store.path(gone) is None
    for space, shape, dtype in (("pictures-8x8x3", (8, 8, 3), np.uint8), ("features-abc", (5,), np.float32)):
        assert cache.get(space, gone, shape, dtype) is None
        assert cache.get(space, keep, shape, dtype) is not None
    assert not [p for p in tmp_path.rglob("*") if gone in p.name]
    # A training that had begun before caches it once more; the service asks for this after a training.
    cache.put("features-abc", gone, np.zeros(5, np.float32))
    assert store.forget_cached() == 1
    assert cache.get("features-abc", gone, (5,), np.float32) is None
    store.close()


def test_what_the_owner_deleted_comes_back_by_import_only(store: SampleStore) -> None:
    automatic = Incoming(picture(1), "folder", automatic=True)
    sample = added(store.add(automatic))
    store.delete([sample])
    refused = store.add(automatic)
    assert isinstance(refused, Refused) and "its owner deleted this picture" in refused.why
    assert store.add(replace(automatic, automatic=False)) == Added(sample)
    store.forget_cached()
    assert store.get(sample) is not None


def test_an_evicted_picture_may_come_back(tmp_path: Path) -> None:
    store = opened(tmp_path, replace(ROOMY, max_count=1))
    for seed in (1, 2, 1):
        assert isinstance(store.add(Incoming(picture(seed), "camera", automatic=True)), Added)
    store.close()


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    """Eight children add the same and different pictures at once; one opens and reconciles meanwhile."""
    opened(tmp_path).close()
    pids = []
    for child in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                mine = opened(tmp_path)
                for i in range(10):
                    mine.add(Incoming(picture(i), "shared"))
                    mine.add(Incoming(picture(1000 + child * 10 + i), "own"))
                    if child == 0:
                        assert mine.reconcile() == 0
                os._exit(0)
            except BaseException:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    store = opened(tmp_path)
    assert store.reconcile() == 0
    assert store.counts().total == 10 + 80
    assert all((store.path(s.id) or Path()).is_file() for s in store.page(limit=200).samples)
    store.close()


def test_reconciling_removes_files_without_a_row_and_rows_without_a_file(tmp_path: Path) -> None:
    store = opened(tmp_path)
    ids = fill(store, 5)
    lost = store.path(ids[0])
    assert lost is not None
    lost.unlink()
    folder = lost.parent
    (folder / f"{'0' * 64}.jpg").write_bytes(b"orphan")
    (folder / ".half.jpg.x.part").write_bytes(b"torn")
    (folder / "link.jpg").symlink_to("/etc/passwd")
    swapped = store.path(ids[1])
    assert swapped is not None
    swapped.unlink()
    swapped.symlink_to("/etc/passwd")
    assert store.reconcile() == 6
    assert {s.id for s in store.page().samples} == set(ids[2:])
    assert len([p for p in (tmp_path / "samples" / "pictures").rglob("*") if p.is_file()]) == 3
    assert Path("/etc/passwd").is_file() and store.reconcile() == 0
    store.close()


def test_a_store_of_a_later_version_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    file = tmp_path / "samples" / "samples.sqlite"
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(StoreError, match="has version 7, this program writes 1: update Apiary on this node"):
        opened(tmp_path)
    for leftover in file.parent.glob("samples.sqlite*"):
        leftover.unlink()
    file.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match=r"cannot be opened: .*; restore it"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot use the folder .*samples"):
        opened(tmp_path)


def test_a_store_of_20_000_answers_quickly(tmp_path: Path) -> None:
    store = opened(tmp_path)
    rows = [
        (
            hashlib.sha256(str(i).encode()).hexdigest(),
            i,
            "cat" if i % 4 == 0 else None,
            i % 2 or None,
            i / 20_000,
        )
        for i in range(20_000)
    ]
    db = sqlite3.connect(tmp_path / "samples" / "samples.sqlite")
    db.executemany(
        "INSERT INTO sample (id, origin, suffix, bytes, width, height, captured_at, source, held_out, label,"
        " suggested, probability)"
        " SELECT ?1, ?1, 'jpg', 100, 8, 8, ?2, 's', 0, ?3, CASE WHEN ?4 THEN 'dog' END,"
        " CASE WHEN ?4 THEN ?5 END",
        rows,
    )
    db.commit()
    db.close()
    began = time.perf_counter()
    for order in Order:
        assert store.page(Filter(labelled=False), order, limit=50, offset=200).total == 15_000
    assert store.counts().total == 20_000
    assert len(store.training()) == 5_000
    assert store.recent_likeness(64) == []
    assert time.perf_counter() - began < 2.0  # 0.1 s measured
    store.close()


def test_syncing_a_batch_that_fails_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)

    def fails(_: layout.Pictures) -> None:
        raise StoreError("cannot sync: Input/output error")

    monkeypatch.setattr(layout.Pictures, "sync", fails)
    with pytest.raises(StoreError, match="Input/output error"):
        fill(store, 3)
    assert store.counts().total == 0
    assert not [p for p in (tmp_path / "samples" / "pictures").rglob("*") if p.is_file()]
    store.close()
