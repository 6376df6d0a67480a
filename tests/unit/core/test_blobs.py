"""Blobs on disk: whole and verified, or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.stand_ins.disk_trace import unsynced

from apiary.blobs import BlobStore
from apiary.errors import ChunkError, StoreError
from apiary.wire import Digest
from apiary.wire.chunks import CHUNK_BYTES, digest_of, encode, span

DATA = bytes(range(256)) * 1000
DIGEST = digest_of(DATA)


def chunk(index: int, data: bytes = DATA) -> bytes:
    start, end = span(index, len(data))
    return encode(DIGEST, index, data[start:end])


def test_put_read_part_verify_remove(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    assert DIGEST not in store and store.verify(DIGEST) is False
    assert store.put(DATA) == DIGEST
    assert DIGEST in store and store.verify(DIGEST)
    assert store.read(DIGEST) == DATA
    assert store.read_part(DIGEST, 1000, 24) == DATA[1000:1024]
    store.remove(DIGEST)
    store.remove(DIGEST)
    assert DIGEST not in store


@pytest.mark.parametrize("how", ["put", "verified", "downloaded"])
def test_a_blob_is_hashed_once_and_again_where_its_file_has_changed(tmp_path: Path, how: str) -> None:
    """A node asks at every announcement, and its models are large."""
    store = BlobStore(tmp_path)
    if how == "downloaded":
        download = store.begin(DIGEST, len(DATA))
        assert all(download.accept(i, chunk(i)) for i in range(3)) and download.finish()
    else:
        store.put(DATA)
    if how == "verified":
        store = BlobStore(tmp_path)
        assert store.verify(DIGEST) is True
    before = store.path(DIGEST).stat()
    with store.path(DIGEST).open("r+b") as f:
        f.write(b"x")
    os.utime(store.path(DIGEST), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.verify(DIGEST), "the file looks as it did"
    os.utime(store.path(DIGEST), (1, 1))
    assert store.verify(DIGEST) is False and DIGEST not in store


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)
    with store.path(DIGEST).open("rb") as held:
        assert store.put(DATA) == DIGEST
        assert store.path(DIGEST).stat().st_ino == os.fstat(held.fileno()).st_ino


def test_a_disk_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BlobStore(tmp_path / "blobs").put(DATA)
    store = BlobStore(tmp_path / "blobs", max_bytes=1)

    def broken(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("apiary.blobs.sha256_of", broken)
        with pytest.raises(StoreError, match=rf"blob {DIGEST[:12]} cannot be read from .*: Input/output"):
            store.verify(DIGEST)
    assert DIGEST in store, "it may be whole"
    (tmp_path / "blobs").rename(tmp_path / "away")
    with pytest.raises(StoreError, match=r"cannot look into .*: No such file"):
        store.evict(keep=set())
    with pytest.raises(StoreError, match=r"cannot write blob .*: No such file"):
        store.begin(DIGEST, 1)


def test_what_is_whole_survives_the_power(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)

    def fetch() -> None:
        download = store.begin(DIGEST, len(DATA))
        assert all(download.accept(i, chunk(i)) for i in range(3)) and download.finish()

    assert unsynced(tmp_path, fetch) == set()
    store.remove(DIGEST)
    fetch()
    assert store.path(DIGEST).stat().st_mode & 0o777 == 0o600


def test_what_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    reads: list[Callable[[], bytes]] = [lambda: store.read(DIGEST), lambda: store.read_part(DIGEST, 0, 1)]
    for act in reads:
        with pytest.raises(StoreError, match=rf"blob {DIGEST[:12]} cannot be read from .*: No such file"):
            act()


def test_a_damaged_blob_is_found_and_removed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)
    store.path(DIGEST).write_bytes(DATA[:-1] + b"x")
    with pytest.raises(StoreError, match="was damaged and has been removed"):
        store.read(DIGEST)
    assert DIGEST not in store
    store.put(DATA)
    store.path(DIGEST).write_bytes(b"")
    assert not store.verify(DIGEST)
    assert not store.path(DIGEST).exists()


def test_what_a_power_cut_left_is_cleared_at_the_start(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)
    (tmp_path / f"{DIGEST}.download").write_bytes(b"half")
    (tmp_path / f".{DIGEST}.abc.part").write_bytes(b"half")
    again = BlobStore(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [DIGEST]
    assert again.read(DIGEST) == DATA


def test_the_least_recently_used_go_first_and_those_kept_stay(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, max_bytes=2500)
    digests = [store.put(bytes([i]) * 1000) for i in range(4)]
    for age, digest in enumerate(digests):
        os.utime(store.path(digest), (1000 + age, 1000 + age))
    os.utime(store.path(digests[0]), (5000, 5000))
    assert store.evict(keep={digests[1]}) == 2
    assert [d in store for d in digests] == [True, True, False, False]
    assert store.evict(keep=set()) == 0
    assert BlobStore(tmp_path, max_bytes=2000).evict(keep=set()) == 0, "they fit to the byte"
    assert BlobStore(tmp_path, max_bytes=1999).evict(keep=set()) == 1


def test_a_download_that_goes_on_is_no_blob_to_evict(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, max_bytes=len(DATA))
    download = store.begin(DIGEST, len(DATA))
    store.put(b"small")
    assert store.evict(keep=set()) == 0
    assert all(download.accept(i, chunk(i)) for i in range(3)) and download.finish()


def test_verify_counts_as_use(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, max_bytes=1000)
    old, new = store.put(b"a" * 1000), store.put(b"b" * 1000)
    os.utime(store.path(old), (1, 1))
    os.utime(store.path(new), (2, 2))
    store.verify(old)
    store.evict(keep=set())
    assert old in store and new not in store


def test_without_a_bound_nothing_is_evicted(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)
    assert store.evict(keep=set()) == 0


@pytest.mark.parametrize(("bound", "fits"), [(len(DATA), True), (len(DATA) - 1, False)])
def test_what_can_never_fit_is_refused_before_room_is_taken(tmp_path: Path, bound: int, fits: bool) -> None:
    store = BlobStore(tmp_path, max_bytes=bound)
    if fits:
        store.begin(DIGEST, len(DATA)).abandon()
    else:
        with pytest.raises(StoreError, match=rf"has {len(DATA)} bytes, the store .* holds {bound}"):
            store.begin(DIGEST, len(DATA))
    assert list(tmp_path.iterdir()) == []


def test_a_download_takes_chunks_in_any_order_once(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    download = store.begin(DIGEST, len(DATA))
    assert [download.accept(i, chunk(i)) for i in (2, 0, 2, 1)] == [True, True, False, True]
    assert download.assembly.complete and DIGEST not in store
    assert download.finish()
    assert store.read(DIGEST) == DATA
    assert [p.name for p in tmp_path.iterdir()] == [DIGEST]


def test_a_torn_chunk_is_refused_and_still_missing(tmp_path: Path) -> None:
    download = BlobStore(tmp_path).begin(DIGEST, len(DATA))
    with pytest.raises(ChunkError):
        download.accept(1, chunk(1)[:-1])
    assert download.assembly.missing() == [(0, 3)]
    download.abandon()
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_do_not_give_the_digest_are_all_asked_for_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    wrong = b"x" * CHUNK_BYTES + DATA[CHUNK_BYTES:]
    download = store.begin(DIGEST, len(DATA))
    for i in range(3):
        download.accept(i, chunk(i, wrong))
    assert not download.finish()
    assert download.assembly.missing() == [(0, 3)]
    assert DIGEST not in store
    for i in range(3):
        download.accept(i, chunk(i))
    assert download.finish()
    assert store.read(DIGEST) == DATA


def test_a_disk_that_refuses_to_keep_it_is_said_and_it_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    download = store.begin(DIGEST, len(DATA))

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for i in range(3):
        download.accept(i, chunk(i))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreError, match=r"cannot keep blob .*: Input/output error"):
            download.finish()
    assert DIGEST not in store
    assert download.assembly.missing() == [(0, 3)]
    for i in range(3):
        download.accept(i, chunk(i))
    assert download.finish()


def test_a_folder_that_cannot_be_synced_after_the_name_was_given_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    download = store.begin(DIGEST, len(DATA))
    for _ in range(2):
        for i in range(3):
            download.accept(i, chunk(i))
        with monkeypatch.context() as patch:
            patch.setattr("apiary.blobs.sync_folder", _no_sync)
            with pytest.raises(StoreError, match=r"cannot keep blob .*: Input/output error"):
                download.finish()
        assert DIGEST not in store
        assert download.assembly.missing() == [(0, 3)]
    for i in range(3):
        download.accept(i, chunk(i))
    assert download.finish()
    assert store.read(DIGEST) == DATA
    assert [p.name for p in tmp_path.iterdir()] == [DIGEST]


def _no_sync(_: Path) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_no_room_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=rf"no room for blob {DIGEST[:12]} of {len(DATA)} bytes"):
        store.begin(DIGEST, len(DATA))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    with pytest.raises(StoreError, match="cannot use the folder"):
        BlobStore(tmp_path / "blobs")


def test_names_that_are_no_digest_are_not_there(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    assert 7 not in store
    assert Digest("0" * 64) not in store


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_no_file_is_left_open(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    before = descriptors()
    download = store.begin(DIGEST, len(DATA))
    assert all(download.accept(i, chunk(i)) for i in range(3)) and download.finish()
    store.read_part(DIGEST, 0, 10)
    store.begin(DIGEST, len(DATA)).abandon()
    assert descriptors() == before


def test_a_disk_without_room_costs_no_descriptor(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    before = descriptors()
    for _ in range(5):
        with pytest.raises(StoreError, match="no room for blob"):
            store.begin(DIGEST, 2**42)
    assert descriptors() == before
    assert not list(tmp_path.glob("*.download"))


def test_a_chunk_that_the_disk_refused_is_still_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = BlobStore(tmp_path).begin(DIGEST, len(DATA))

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        with pytest.raises(StoreError, match="No space left"):
            download.accept(0, chunk(0))
    assert download.assembly.missing() == [(0, 3)]
    assert all(download.accept(i, chunk(i)) for i in range(3))
    assert download.finish()


def test_a_disk_that_takes_a_part_is_given_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download, pwrite = BlobStore(tmp_path).begin(DIGEST, len(DATA)), os.pwrite

    def part(fd: int, data: memoryview, offset: int) -> int:
        return pwrite(fd, data[: max(1, len(data) // 2)], offset)

    monkeypatch.setattr(os, "pwrite", part)
    assert all(download.accept(i, chunk(i)) for i in range(3))
    assert download.finish()


def test_a_card_that_takes_no_writes_still_gives_its_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)

    def worn(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", worn)
    assert store.verify(DIGEST)
    monkeypatch.setattr(Path, "unlink", worn)
    with pytest.raises(StoreError, match="read-only"):
        store.remove(DIGEST)
