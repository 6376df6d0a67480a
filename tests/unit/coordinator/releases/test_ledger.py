"""What the coordinator remembers of releases, the key that signs them, and what operators are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.stand_ins.power_cuts import every_cut
from tests.unit.coordinator.releases.rollouts import ONE, POLICY, begun, release

from apiary.errors import SignatureRefused, StoreError
from apiary.identity.release_key import PinnedKey, load_or_make, public_text, seal
from apiary_cli.commands.release import render
from apiary_coordinator.releases.ledger import MAX_HISTORY, MAX_RELEASES, Book, HistoryLine, Ledger
from apiary_coordinator.releases.operations import in_short
from apiary_coordinator.releases.rollout_events import Pins

NOTE = HistoryLine(12.5, "it begins")


def book(**more: Any) -> Book:
    pins = Pins({"pi-1": "one"}, {"site=north": "two"}, {"one": ONE, "two": release()})
    rollout = replace(begun(), pins=pins, why="because")
    filled = Book(serial=7).with_rollout(replace(rollout, release=ONE), NOTE).with_rollout(rollout, NOTE)
    return replace(filled, **more)


def test_a_book_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = book()
    Ledger(tmp_path, POLICY).write(written)
    read = Ledger(tmp_path, POLICY).book
    assert read.rollout is not None and written.rollout is not None
    # What is known of nodes, and when the wave began, is not written: nodes say it again.
    forgotten = replace(written.rollout, fleet={}, since=0.0)
    assert replace(read, rollout=None) == replace(written, rollout=None)
    assert read.rollout == forgotten


def test_a_book_without_a_roll_out_or_without_a_release_before_comes_back(tmp_path: Path) -> None:
    written = book()
    assert written.rollout is not None
    first = replace(written, rollout=replace(written.rollout, stable=None))
    for one in (replace(written, rollout=None), first):
        Ledger(tmp_path, POLICY).write(one)
        read = Ledger(tmp_path, POLICY).book
        assert (read.rollout is None) == (one.rollout is None)
        assert read.rollout is None or read.rollout.stable is None


def test_no_book_is_an_empty_one_and_a_torn_one_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Ledger(tmp_path, POLICY).book == Book()
    for text in ("", "{", "[]", "{}", '{"v": 1}', json.dumps({"v": 1, "serial": "x"})):
        caplog.clear()
        (tmp_path / "releases.json").write_text(text)
        ledger = Ledger(tmp_path, POLICY)
        assert ledger.book == Book() and not (tmp_path / "releases.json").exists()
        assert (tmp_path / "releases.json.damaged").read_text() == text
        assert "moved to releases.json.damaged. The nodes keep what they have" in caplog.text
        assert ledger.book.next_serial(1.8e9) == 1_800_000_000_000, "nodes take the next release as newer"


def test_a_torn_book_that_cannot_be_set_aside_is_refused_with_both_reasons(tmp_path: Path) -> None:
    (tmp_path / "releases.json").write_text("{")
    (tmp_path / "releases.json.damaged" / "x").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"is not a record of releases \(.*\), and Is a directory"):
        Ledger(tmp_path, POLICY)


def test_a_whole_book_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path, POLICY).write(book())
    path = tmp_path / "releases.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "v": 2}))
    with pytest.raises(StoreError, match=r"not a record of releases of version 1, but 2: upgrade"):
        Ledger(tmp_path, POLICY)


def test_a_book_that_is_there_and_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    """The serial numbers would begin anew, and no node would follow."""
    (tmp_path / "releases.json").mkdir()
    with pytest.raises(StoreError, match=r"releases.json: Is a directory"):
        Ledger(tmp_path, POLICY)


def test_what_the_disk_refused_is_not_in_memory_either(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, POLICY)
    ledger.write(book(serial=3))
    kept = ledger.book
    (tmp_path / "releases.json").unlink()
    (tmp_path / "releases.json").mkdir()
    with pytest.raises(StoreError):
        ledger.write(book(serial=4))
    assert ledger.book is kept
    (tmp_path / "releases.json").rmdir()
    ledger.write(book(serial=4))
    assert ledger.book.serial == Ledger(tmp_path, POLICY).book.serial == 4


def test_fewer_waves_in_the_settings_than_it_began_with(tmp_path: Path) -> None:
    Ledger(tmp_path, POLICY).write(book(rollout=replace(begun(), wave=2)))
    read = Ledger(tmp_path, POLICY.model_copy(update={"waves": [1.0]})).book
    assert read.rollout is not None and read.rollout.wave == 0


def test_serial_numbers_grow_though_the_clock_goes_back_or_the_folder_was_lost() -> None:
    assert Book(serial=5).next_serial(0.0) == 6
    assert (Book().next_serial(0.0), Book().next_serial(1_800_000_000.0)) == (1, 1_800_000_000_000)


def test_the_book_is_bounded_and_what_is_in_use_stays() -> None:
    kept = book()
    for i in range(MAX_RELEASES + 5):
        rollout = replace(begun(), release=release(f"r{i}"), pins=kept.pins)
        kept = kept.with_rollout(rollout, HistoryLine(float(i), "x"))
    assert len(kept.entries) == MAX_RELEASES and len(kept.history) == MAX_HISTORY
    assert {"one", "two", f"r{MAX_RELEASES + 4}"} <= set(kept.entries)


def test_the_stable_release_is_the_last_one_that_was_out() -> None:
    assert Book().stable() is None
    assert Book(rollout=begun()).stable() == ONE
    assert Book(rollout=replace(begun(), state="halted")).stable() == ONE
    assert Book(rollout=replace(begun(), state="done")).stable() == release()


def test_power_goes_while_the_book_is_written(tmp_path: Path) -> None:
    number, here = count(), [tmp_path]

    def before() -> Callable[[], object]:
        here.append(tmp_path / str(next(number)))
        here[-1].mkdir()
        ledger = Ledger(here[-1], POLICY)
        ledger.write(book(serial=1))
        return lambda: ledger.write(book(serial=2))

    serials = [Ledger(here[-1], POLICY).book.serial for _ in every_cut(before)]
    assert set(serials) == {1, 2} and serials == sorted(serials)


def test_the_release_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "state" / "release-key.pem"
    key = load_or_make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_text(load_or_make(path)) == public_text(key)
    path.write_text("no key")
    with pytest.raises(StoreError, match=r"the release key .* cannot be read"):
        load_or_make(path)


def test_the_first_key_seen_is_trusted_and_no_other(tmp_path: Path) -> None:
    ours, other = load_or_make(tmp_path / "key.pem"), Ed25519PrivateKey.generate()
    topic, payload = "apiary/f/release/current", b'{"v":1,"serial":3}'
    sealed = seal(ours, topic, payload, 3)
    pinned = PinnedKey(None)
    assert pinned.open(topic, sealed) == payload
    assert pinned.pinned == public_text(ours)
    assert PinnedKey(public_text(ours)).open(topic, sealed) == payload
    for wrong, says in (
        (seal(other, topic, payload, 4), "signed with the release key .* this node trusts"),
        (sealed.replace(b'"serial":3', b'"serial":4'), "does not fit the message"),
        (seal(ours, "apiary/g/release/current", payload, 3), "does not fit the message"),
        (payload, "not signed: a release always is"),
        (b"", "not signed"),
        (b'{"v":1,"issued":1,"cert":"AAAA","sig":"', "its certificate cannot be read"),
        (sealed[:-1], "not signed, expected"),
    ):
        with pytest.raises(SignatureRefused, match=says):
            pinned.open(topic, wrong)
    assert pinned.pinned == public_text(ours)


def test_a_key_that_is_set_is_not_replaced_by_the_first_seen() -> None:
    other = Ed25519PrivateKey.generate()
    sealed = seal(other, "t", b'{"v":1}', 1)
    with pytest.raises(SignatureRefused, match=r"set edge.slots.release_key"):
        PinnedKey("A" * 43 + "=").open("t", sealed)


def test_what_is_asked_is_told_so_that_people_can_read_it() -> None:
    rollout = in_short(replace(begun(), why="3 of 5 nodes failed", state="halted"))
    text = render("pause", rollout)
    first, second = text.split("\n")
    assert first == "two (tflite): halted, wave 1 of 3, 0 of 2 nodes of it healthy; the rest has one"
    assert second == "  3 of 5 nodes failed"
    nodes = {
        "pi-1": {"verdict": "healthy", "here": True, "in_wave": True, "pinned": False, "current": "two",
                 "accuracy": 0.95, "accuracy_before": 0.9, "pictures": 20, "inference_ms": 7.25},
        "pi-2": {"verdict": "failed", "here": False, "in_wave": True, "pinned": False, "current": "one",
                 "why": "it crashed"},
    }  # fmt: skip
    told = {
        "rollout": rollout,
        "nodes": nodes,
        "pins": {"nodes": {}, "tags": {"site=n": "one"}},
        "history": [],
    }
    text = render("status", told)
    assert "has two" in text and "95.0% on 20 pictures (before 90.0%), 7.2 ms" in text
    assert "not here; it crashed" in text and "pinned: site=n to one" in text
    assert (
        render("status", {"rollout": None}) == render("list", {"releases": []}) == "nothing was released yet"
    )
    assert render("pin", {"nodes": {"pi-1": "one"}, "tags": {}}) == "pi-1: one"
    assert render("unpin", {"nodes": {}, "tags": {}}) == "nothing is pinned"


def test_in_use_is_what_a_node_may_be_to_have() -> None:
    assert Book().in_use() == set()
    first = replace(begun(), stable=None)
    assert Book(rollout=first).in_use() == {"two"}
    assert Book(rollout=begun()).in_use() == {"one", "two"}
    assert Book(rollout=begun()).in_use(replace(first, release=release("three"))) == {"three"}
    assert Book(pins=Pins({"pi-1": "old"}, {}, {"old": ONE})).in_use() == {"old"}
    assert not HistoryLine(0.0, "no news is no bad news").bad
