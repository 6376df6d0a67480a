"""The slots on disk: swapped, restored, tidied, taken up again, and whole after a power cut at any step."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from tests.stand_ins.power_cuts import DONE, every_cut
from tests.unit.edge.releases.installed_releases import BYTES, GOOD, blob, digests, files, installed, release

from apiary.errors import StoreError
from apiary_edge.releases.store import MAX_REFUSED, ReleaseStore, current, folder_of


def test_a_card_that_does_not_give_a_file_back_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error of the card ended the node's service with a traceback."""
    shelf = installed(tmp_path, "one")
    file = blob(tmp_path, "two")

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("apiary_edge.releases.store.sha256_of", broken)
    with pytest.raises(StoreError, match=r"cannot keep release two in .*: Input/output error"):
        shelf.take(file, release("two"))


def test_the_current_slot_is_there_for_any_process(tmp_path: Path) -> None:
    assert current(tmp_path) is None
    shelf = installed(tmp_path, "one")
    slot = current(tmp_path)
    assert slot == shelf.current
    assert slot is not None and slot.path.read_bytes() == BYTES["one"]
    assert (slot.kind, slot.labels, slot.release, slot.accuracy) == ("tflite", ("a", "b"), "one", 0.95)
    told = json.loads((folder_of(tmp_path) / "current.json").read_text())
    assert {"kind", "file", "labels", "digest", "release", "input", "accuracy"} <= set(told)
    assert (folder_of(tmp_path) / told["file"]).is_file()


def test_two_are_kept_and_no_more(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two", "three")
    assert shelf.current is not None and shelf.previous is not None
    assert (shelf.current.release, shelf.previous.release) == ("three", "two")
    assert files(tmp_path) == digests("two", "three")
    again = ReleaseStore(folder_of(tmp_path))
    assert (again.current, again.previous) == (shelf.current, shelf.previous)


def test_back_to_the_one_before(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two")
    back = shelf.restore()
    assert back is not None and back.release == "one"
    assert (ReleaseStore(folder_of(tmp_path)).current, shelf.previous) == (back, None)
    assert files(tmp_path) == digests("one")
    assert shelf.restore() is None
    assert current(tmp_path) is None and files(tmp_path) == set()


def test_a_program_is_executable_and_takes_no_room_twice(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    source = blob(tmp_path, "one")
    path = shelf.take(source, release("one", "eim"))
    assert path.stat().st_mode & 0o777 == 0o755
    assert path.stat().st_ino == source.stat().st_ino


def test_a_damaged_file_is_removed_and_said(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    source = blob(tmp_path, "one")
    source.write_bytes(BYTES["two"])
    with pytest.raises(StoreError, match="was damaged on this node's disk"):
        shelf.take(source, release("one"))
    assert files(tmp_path) == set()


def test_a_release_that_rots_on_the_card_is_given_up_at_the_next_start(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two")
    assert shelf.current is not None
    data = bytearray(shelf.current.path.read_bytes())
    data[100] ^= 1
    shelf.current.path.write_bytes(data)
    found = ReleaseStore(folder_of(tmp_path))
    assert found.current is not None and found.current.release == "one"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v": 2}', '{"v": 1, "kind": "eim", "file": "../../x"}'])
def test_a_torn_record_is_left_out(tmp_path: Path, text: str) -> None:
    shelf = installed(tmp_path, "one", "two")
    assert shelf.previous is not None
    (folder_of(tmp_path) / "current.json").write_text(text)
    assert current(tmp_path) is None
    assert ReleaseStore(folder_of(tmp_path)).current is None


def test_refusals_are_by_attempt_and_bounded(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    for i in range(MAX_REFUSED + 5):
        shelf.refuse(f"r{i}", 1, f"why {i}")
    again = ReleaseStore(folder_of(tmp_path))
    assert len(again.refused) == MAX_REFUSED
    assert again.why_refused(f"r{MAX_REFUSED}", 1) == f"why {MAX_REFUSED}"
    assert again.why_refused(f"r{MAX_REFUSED}", 2) is None


def test_what_was_refused_while_it_was_current_is_not_current_at_the_next_start(tmp_path: Path) -> None:
    """The power went between the refusal and the swap back."""
    shelf = installed(tmp_path, "one", "two")
    shelf.refuse("two", 1, "it crashes")
    found = ReleaseStore(folder_of(tmp_path))
    assert found.current is not None and found.current.release == "one"


def test_serial_and_key_are_remembered(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    shelf.seen(7)
    shelf.seen(3)
    shelf.pin_key("KEY")
    again = ReleaseStore(folder_of(tmp_path))
    assert (again.serial, again.key) == (7, "KEY")


def whole(state: Path) -> ReleaseStore:
    """What a start after the cut finds; whatever is named is there, whole."""
    shelf = ReleaseStore(folder_of(state))
    for slot in (shelf.current, shelf.previous):
        if slot is not None:
            assert slot.path.read_bytes() == BYTES[slot.release]
    named = {s.path.name for s in (shelf.current, shelf.previous) if s is not None}
    assert {p.name for p in (folder_of(state) / "files").iterdir()} == named, "nothing is left behind"
    assert current(state) == shelf.current
    return shelf


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """A new folder at each call."""
    number = count()

    def make() -> Path:
        folder = tmp_path / str(next(number))
        folder.mkdir()
        return folder

    return make


def test_power_goes_while_a_release_is_swapped_in(fresh: Callable[[], Path]) -> None:
    here: list[Path] = []

    def before() -> Callable[[], object]:
        here.append(fresh())
        shelf = installed(here[-1], "one", "two")
        source = blob(here[-1], "three")

        def act() -> None:
            shelf.take(source, release("three"))
            shelf.swap(release("three"), GOOD)

        return act

    found = []
    for code in every_cut(before):
        shelf = whole(here[-1])
        assert shelf.current is not None
        found.append(shelf.current.release)
        assert shelf.previous is not None and shelf.previous.release in ("one", "two")
        if code == DONE:
            assert (shelf.current.release, shelf.previous.release) == ("three", "two")
    assert set(found) == {"two", "three"} and found == sorted(found, reverse=True)


def test_power_goes_while_a_bad_release_is_taken_back(fresh: Callable[[], Path]) -> None:
    here: list[Path] = []

    def before() -> Callable[[], object]:
        here.append(fresh())
        shelf = installed(here[-1], "one", "two")

        def act() -> None:
            shelf.refuse("two", 1, "it crashes")
            shelf.restore()

        return act

    found = []
    for _ in every_cut(before):
        shelf = whole(here[-1])
        assert shelf.current is not None
        found.append((shelf.current.release, shelf.why_refused("two", 1)))
        assert found[-1] in (("two", None), ("one", "it crashes")), "never the bad one once it is refused"
    assert len(set(found)) == 2
