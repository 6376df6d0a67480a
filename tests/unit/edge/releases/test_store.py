"""The slots on disk: swapped, restored, tidied, taken up again, and whole after a power cut at any step."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.stand_ins.disk_trace import unsynced
from tests.stand_ins.power_cuts import DONE, every_cut
from tests.unit.edge.releases.installed_releases import BYTES, GOOD, blob, digests, files, installed, release

from apiary.errors import SignatureRefused, StoreError
from apiary.identity.release_key import public_text, seal
from apiary_edge.releases.store import (
    MAX_REFUSED,
    ReleaseStore,
    current,
    current_file,
    folder_of,
    opened_before,
    trusting,
)


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
    told = json.loads(current_file(tmp_path).read_text())
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


def test_what_was_left_of_an_attempt_does_not_cost_the_room_twice(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    source = blob(tmp_path, "one")
    where = shelf.path(release("one"))
    where.with_name(f".{where.name}.part").write_bytes(b"half of it")
    path = shelf.take(source, release("one"))
    assert path == where and path.stat().st_ino == source.stat().st_ino
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in where.parent.iterdir()] == [where.name]
    source.unlink()
    assert shelf.take(source, release("one")) == path, "it is there already"


def test_a_blob_on_another_card_is_copied_whole_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    source = blob(tmp_path, "one")

    def other_device(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_device)
    assert unsynced(folder_of(tmp_path), lambda: shelf.take(source, release("one"))) == set()
    other = blob(tmp_path, "two")
    assert shelf.take(other, release("two")).read_bytes() == BYTES["two"]
    path = shelf.path(release("one"))
    assert path.read_bytes() == BYTES["one"] and path.stat().st_mode & 0o777 == 0o644


def test_a_file_that_is_here_already_and_damaged_is_removed(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    source = blob(tmp_path, "one")
    shelf.take(source, release("one")).write_bytes(b"rotten")
    with pytest.raises(StoreError, match="was damaged on this node's disk"):
        shelf.take(source, release("one"))
    assert files(tmp_path) == set()


def test_another_attempt_at_the_current_file_keeps_the_one_before(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two")
    slot = shelf.swap(release("two", attempt=2), GOOD)
    assert (slot, slot.attempt) == (shelf.current, 2)
    assert shelf.previous is not None and shelf.previous.release == "one"
    assert ReleaseStore(folder_of(tmp_path)).previous == shelf.previous
    assert files(tmp_path) == digests("one", "two")


def test_the_one_before_comes_back_under_the_attempt_that_is_assigned(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two")
    again = release("one", attempt=4).model_copy(update={"name": "uno"})
    slot = shelf.restore(again)
    assert slot is not None and (slot.release, slot.attempt) == ("uno", 4)
    assert slot.path.read_bytes() == BYTES["one"] and current(tmp_path) == slot
    assert ReleaseStore(folder_of(tmp_path)).previous is None
    assert shelf.restore(again) is None, "there is none before it"


def test_clearing_leaves_neither_files_nor_a_way_back(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two")
    assert unsynced(folder_of(tmp_path), shelf.clear) <= {"files"}, "what is left there is removed at a start"
    shelf.clear()
    assert (shelf.current, shelf.previous, files(tmp_path)) == (None, None, set())
    again = ReleaseStore(folder_of(tmp_path))
    assert (again.current, again.previous) == (None, None)


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


def test_the_one_before_that_rots_is_given_up_and_not_gone_back_to(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two")
    assert shelf.previous is not None
    shelf.previous.path.write_bytes(b"rotten")
    for _ in range(2):
        found = ReleaseStore(folder_of(tmp_path))
        assert (found.current, found.previous) == (shelf.current, None)
        assert files(tmp_path) == digests("two")
    found.refuse("two", 1, "it crashes")
    assert ReleaseStore(folder_of(tmp_path)).current is None


def test_where_all_of_it_is_gone_the_node_has_none(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one", "two")
    for slot in (shelf.current, shelf.previous):
        assert slot is not None
        slot.path.unlink()
    found = ReleaseStore(folder_of(tmp_path))
    assert (found.current, found.previous, current(tmp_path)) == (None, None, None)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v": 2}', '{"v": 1, "kind": "eim", "file": "../../x"}'])
def test_a_torn_record_is_left_out(tmp_path: Path, text: str) -> None:
    shelf = installed(tmp_path, "one", "two")
    assert shelf.previous is not None
    (folder_of(tmp_path) / "current.json").write_text(text)
    assert current(tmp_path) is None
    assert ReleaseStore(folder_of(tmp_path)).current is None


@pytest.mark.parametrize(
    ("ledger", "serial", "key", "refused"),
    [
        ('{"v": 1, "serial": 1, "key": "K", "refused": {"r/1": "why"}}', 1, "K", {"r/1": "why"}),
        ('{"serial": -5, "key": 7, "refused": ["r/1"], "previous": "one"}', 0, None, {}),
        ('{"serial": "9", "key": null, "refused": {"r/1": 3}, "previous": {"v": 1}}', 0, None, {"r/1": "3"}),
        ('{"serial": 2.5}', 0, None, {}),
        ("[1]", 0, None, {}),
        ("{", 0, None, {}),
    ],
)
def test_of_a_ledger_that_is_torn_what_can_be_read_counts(
    tmp_path: Path, ledger: str, serial: int, key: str | None, refused: dict[str, str]
) -> None:
    shelf = installed(tmp_path, "one")
    (folder_of(tmp_path) / "ledger.json").write_text(ledger)
    found = ReleaseStore(folder_of(tmp_path))
    assert (found.serial, found.key, found.refused, found.previous) == (serial, key, refused, None)
    assert found.current == shelf.current


def test_a_ledger_says_its_version_and_is_written_for_news_only(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    shelf.seen(7)
    path = folder_of(tmp_path) / "ledger.json"
    assert json.loads(path.read_text())["v"] == 1
    before = path.stat().st_ino
    held = path.open("rb")  # its number is not given to another file
    shelf.seen(7)
    assert path.stat().st_ino == before
    held.close()


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


def test_half_written_files_are_gone_after_a_start(tmp_path: Path) -> None:
    installed(tmp_path, "one")
    for left in (".current.json.x.part", "files/.two.part", "files/two"):
        (folder_of(tmp_path) / left).touch()
    ReleaseStore(folder_of(tmp_path))
    assert sorted(p.name for p in folder_of(tmp_path).iterdir()) == ["current.json", "files"]
    assert files(tmp_path) == digests("one")


MINE, ANOTHERS = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
SAID = b'{"v":1}'


def test_the_key_that_comes_first_is_trusted_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    open_ = trusting(shelf, None)
    with pytest.raises(SignatureRefused):
        open_("t", SAID)
    assert shelf.key is None
    for _ in range(2):
        assert open_("t", seal(MINE, "t", SAID, 5)) == SAID
    assert len([m for m in caplog.messages if f"the key {public_text(MINE)} are trusted" in m]) == 1
    again = ReleaseStore(folder_of(tmp_path))
    assert again.key == public_text(MINE)
    with pytest.raises(SignatureRefused, match="this node trusts"):
        trusting(again, None)("t", seal(ANOTHERS, "t", SAID, 6))
    assert again.key == public_text(MINE)


def test_a_key_that_is_set_counts_alone_and_is_not_written_down(tmp_path: Path) -> None:
    shelf = ReleaseStore(folder_of(tmp_path))
    open_ = trusting(shelf, public_text(MINE))
    assert open_("t", seal(MINE, "t", SAID, 5)) == SAID and shelf.key is None
    with pytest.raises(SignatureRefused, match="this node trusts"):
        open_("t", seal(ANOTHERS, "t", SAID, 6))
    shelf.pin_key(public_text(ANOTHERS))
    assert open_("t", seal(MINE, "t", SAID, 7)) == SAID and shelf.key == public_text(ANOTHERS)


def test_what_an_authority_has_opened_is_passed_on() -> None:
    assert opened_before("t", SAID) == SAID


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
