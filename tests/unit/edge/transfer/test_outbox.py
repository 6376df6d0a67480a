"""Updates wait on disk for their receipt; what is torn goes, what is too much goes oldest first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.stand_ins.disk_trace import unsynced

from apiary.errors import StoreError
from apiary.files import write_atomic
from apiary.wire import Digest
from apiary.wire.chunks import digest_of
from apiary.wire.messages import BlobRef, Offer, TrainMetrics
from apiary_edge.transfer.outbox import MAX_WAITING, Outbox


def data(number: int) -> bytes:
    return f"update {number}".encode() * 100


def offer(number: int) -> Offer:
    ref = BlobRef(digest=digest_of(data(number)), bytes=len(data(number)))
    return Offer(
        run="r", round=number, update=ref, codec="raw_f32", samples=5, metrics=TrainMetrics(loss=1.0)
    )


def digest(number: int) -> Digest:
    return digest_of(data(number))


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def put(outbox: Outbox, tmp_path: Path, number: int) -> None:
    made = tmp_path / "update.blob"
    made.write_bytes(data(number))
    outbox.put(made, offer(number))
    stamp = 1000 + number
    os.utime(tmp_path / "outbox" / f"{digest(number)}.json", (stamp, stamp))


def test_an_update_moves_in_waits_and_goes(outbox: Outbox, tmp_path: Path) -> None:
    put(outbox, tmp_path, 1)
    assert not (tmp_path / "update.blob").exists()
    assert Outbox(tmp_path / "outbox").waiting() == [offer(1)]
    assert outbox.read_part(digest(1), 7, 10) == data(1)[7:17]
    outbox.remove(digest(1))
    outbox.remove(digest(1))
    assert outbox.waiting() == []
    assert list((tmp_path / "outbox").iterdir()) == []


def test_the_oldest_comes_first(outbox: Outbox, tmp_path: Path) -> None:
    for number in (2, 1, 3):
        put(outbox, tmp_path, number)
    assert [o.round for o in outbox.waiting()] == [1, 2, 3]


def test_more_than_a_few_are_not_kept(outbox: Outbox, tmp_path: Path) -> None:
    for number in range(1, MAX_WAITING + 1):
        put(outbox, tmp_path, number)
    assert len(outbox.waiting()) == MAX_WAITING
    put(outbox, tmp_path, MAX_WAITING + 1)
    assert [o.round for o in outbox.waiting()] == [2, 3, 4, 5]
    assert len(list((tmp_path / "outbox").iterdir())) == 8, "nor are their files"


def test_what_is_put_in_survives_the_power_by_both_names(outbox: Outbox, tmp_path: Path) -> None:
    put(outbox, tmp_path, 1)
    made = tmp_path / "update.blob"
    write_atomic(made, data(2))
    assert unsynced(tmp_path / "outbox", lambda: outbox.put(made, offer(2))) == set()


def test_what_a_cut_left_half_written_is_gone_after_a_start(outbox: Outbox, tmp_path: Path) -> None:
    put(outbox, tmp_path, 1)
    (tmp_path / "outbox" / ".done.json.x.part").touch()
    Outbox(tmp_path / "outbox")
    assert len(list((tmp_path / "outbox").iterdir())) == 2


def test_reading_leaves_no_file_open(outbox: Outbox, tmp_path: Path) -> None:
    put(outbox, tmp_path, 1)
    file = str(tmp_path / "outbox" / f"{digest(1)}.update")
    outbox.read_part(digest(1), 0, 10)
    assert file not in [os.readlink(f"/proc/self/fd/{fd}") for fd in open_files()]  # noqa: PTH115


def open_files() -> list[int]:
    """Numbers of this process's open files, but of the one that lists them."""
    return [int(fd) for fd in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{fd}").exists()]  # noqa: PTH208


def test_a_part_that_is_not_all_there_is_an_error(outbox: Outbox, tmp_path: Path) -> None:
    put(outbox, tmp_path, 1)
    size = len(data(1))
    assert outbox.read_part(digest(1), size - 5, 5) == data(1)[-5:]
    with pytest.raises(StoreError, match=rf"was cut short: 5 of 6 bytes at {size - 5}"):
        outbox.read_part(digest(1), size - 5, 6)


@pytest.mark.parametrize("torn", [b"", data(1)[:-1], b"x" + data(1)[1:], None])
def test_a_torn_update_is_forgotten(outbox: Outbox, tmp_path: Path, torn: bytes | None) -> None:
    put(outbox, tmp_path, 1)
    put(outbox, tmp_path, 2)
    file = tmp_path / "outbox" / f"{digest(1)}.update"
    file.unlink() if torn is None else file.write_bytes(torn)
    assert outbox.waiting() == [offer(2)]
    assert len(list((tmp_path / "outbox").iterdir())) == 2


@pytest.mark.parametrize("torn", [b"", b"{", b'{"v": 1}', b'{"v": 99}', b"\xff"])
def test_an_offer_that_cannot_be_read_is_forgotten_with_its_update(
    outbox: Outbox, tmp_path: Path, torn: bytes
) -> None:
    put(outbox, tmp_path, 1)
    (tmp_path / "outbox" / f"{digest(1)}.json").write_bytes(torn)
    assert outbox.waiting() == []
    assert list((tmp_path / "outbox").iterdir()) == []


def test_an_update_without_an_offer_does_not_exist(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "outbox" / f"{digest(1)}.update").write_bytes(data(1))
    assert outbox.waiting() == []
    assert list((tmp_path / "outbox").iterdir()) == []


def test_the_last_answered_round_is_remembered(outbox: Outbox, tmp_path: Path) -> None:
    assert outbox.done() is None
    outbox.set_done("r", 3)
    outbox.set_done("r", 4)
    again = Outbox(tmp_path / "outbox")
    assert again.done() == ("r", 4)
    assert again.waiting() == []
    assert again.done() == ("r", 4)


def test_the_last_answered_round_can_be_forgotten(outbox: Outbox) -> None:
    outbox.forget_done()
    outbox.set_done("r", 3)
    outbox.forget_done()
    assert outbox.done() is None


@pytest.mark.parametrize("torn", ["", "[1", '{"a": 1}', '["r"]', "null", '["r", null]', "7"])
def test_a_torn_memory_of_it_is_none(outbox: Outbox, tmp_path: Path, torn: str) -> None:
    (tmp_path / "outbox" / "done.json").write_text(torn)
    assert outbox.done() is None


def test_what_is_missing_is_an_error_that_names_it(outbox: Outbox, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"the update {digest(1)[:12]} cannot be read: No such file"):
        outbox.read_part(digest(1), 0, 1)
    with pytest.raises(StoreError, match=r"cannot move the update to .*: No such file"):
        outbox.put(tmp_path / "nothing.blob", offer(1))
    assert outbox.waiting() == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use the folder"):
        Outbox(tmp_path / "file")
