"""Updates of one round from their offers to their receipts: each step, and what may come between two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.coordinator.round.collecting import (
    IDLE_S,
    MOST,
    SHAPES,
    Collecting,
    document_of,
    offer_of,
    update_of,
)

from apiary.errors import ChunkError, StoreError
from apiary.wire import NodeId, blob
from apiary.wire.chunks import CHUNK_BYTES, digest_of, encode
from apiary.wire.messages import Grant
from apiary_coordinator.journal import Journal
from apiary_coordinator.round.collector import (
    MAX_DAMAGED,
    clear_spools,
    intact,
    receipt,
    spool_path,
)
from apiary_coordinator.updates.spool import Spool

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def test_an_update_from_its_offer_to_its_receipt(tmp_path: Path) -> None:
    one = Collecting(tmp_path, "ab")
    document = document_of("a", samples=7)
    offer = one.offer(document)
    ((node, grant),) = one.sent()
    assert isinstance(grant, Grant)
    assert (node, grant.digest, grant.missing, grant.one_topic) == ("a", digest_of(document), [(0, 2)], True)
    assert one.collector.uploading == (1, 0)
    one.send(document)
    assert one.sent() == [], "nothing is answered before the worker has looked at it"
    one.work()
    assert one.receipts() == [("a", "accepted", None)]
    (row,) = one.journal.accepted("r", 1)
    assert (row.node, row.digest, row.bytes, row.samples, row.seconds, row.offer) == (
        "a",
        digest_of(document),
        len(document),
        7,
        1.5,
        offer,
    )
    assert one.round.accepted == {"a": row.contributor} and one.capped_at == []
    assert one.collector.uploading == (0, 0)
    assert len(document) < one.collector.bytes_up < len(document) + 200
    assert sum(one.collector.counted.samples) == 7
    mean = one.collector.counted.mean()["a"]
    assert np.abs(mean - update_of("a")["a"]).max() <= 2.0**-one.terms.bits
    assert one.collector.counted.by_node[A].norm == pytest.approx(update_of("a").norm())
    one.close()


def test_an_offer_is_answered_by_what_became_of_its_nodes_update(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    document = one.counted("a")
    one.sent()
    one.offer(document)
    assert one.receipts() == [("a", "duplicate", None)]
    one.offer(document_of("a", value=2.0))
    assert one.receipts() == [("a", "duplicate", "another update was counted")]
    one.offer(document_of("b"), "b", codec="int8")
    why = "the update comes in the codec 'int8', the plan says 'raw_f32'"
    assert one.receipts() == [("b", "rejected", why)]
    assert one.journal.rejected("r", 1) == one.round.rejected == {"b": why}
    one.offer(document_of("b"), "b")
    assert one.receipts() == [("b", "rejected", why)]
    one.offer(document_of("x"), "x")
    assert one.receipts() == [("x", "closed", "not drawn for this round")]
    one.over()
    one.offer(document_of("c"), "c")
    assert one.receipts() == [("c", "closed", "the round is over")]
    one.close()


def test_while_an_update_is_in_hand_its_nodes_offers_change_nothing(tmp_path: Path) -> None:
    """At every step of the worker: the update that came whole is the one that is answered."""
    one = Collecting(tmp_path)
    one.counted("b")  # so that a sync is nothing new
    document = document_of("a")
    one.offer(document)
    one.send(document)
    one.sent()
    steps = 0
    while A not in one.round.accepted:
        for other in (document, document_of("a", value=2.0)):
            one.offer(other)
        one.collector.chunk(A, digest_of(document), 0, b"whatever", 0.0)
        assert one.sent() == [] and one.collector.uploading[1] == 0
        one.worker.step()
        steps += 1
    assert steps == 2, "screened, then synced"
    assert one.receipts() == [("a", "accepted", None)]
    one.close()


def test_updates_that_come_during_a_sync_share_the_next(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    for node in "abc":
        document = document_of(node)
        one.offer(document, node)
        one.send(document, node)
    one.sent()
    for _ in range(3):
        one.worker.step()  # a is screened, then b and c behind its sync
    assert one.sent() == []
    for node in "bc":
        one.offer(document_of(node, value=2.0), node)
    assert one.sent() == []
    one.worker.step()
    assert one.receipts() == [("a", "accepted", None)]
    one.work()
    assert one.receipts() == [("b", "accepted", None), ("c", "accepted", None)]
    assert len(one.collector.counted.nodes) == 3
    one.close()


def test_another_offer_replaces_an_update_that_has_not_come_whole(tmp_path: Path) -> None:
    """Its place in the spool is the other's: there is one for each node of the cohort."""
    one = Collecting(tmp_path, "a")
    first, second = document_of("a"), document_of("a", value=2.0)
    one.offer(first)
    one.send(first, only=(0,))
    one.offer(second)
    assert [missing for _, missing in one.grants()] == [[(0, 2)], [(0, 2)]]
    one.send(first, only=(1,))
    one.send(second)
    one.work()
    assert one.receipts() == [("a", "accepted", None)]
    assert one.journal.accepted("r", 1)[0].digest == digest_of(second)
    assert one.path.stat().st_size < 2 * len(first)
    one.close()


def test_chunks_that_nobody_was_granted_are_dropped(tmp_path: Path) -> None:
    one = Collecting(tmp_path, max_uploads=1)
    granted, waits = document_of("a"), document_of("b")
    one.offer(granted)
    one.offer(waits, "b")
    assert one.grants() == [("a", [(0, 2)])] and one.collector.uploading == (1, 1)
    one.send(waits, "b")
    one.send(document_of("c"), "c")
    one.send(granted, only=(0,))
    one.send(granted, only=(0,))
    one.over()
    before = one.collector.bytes_up
    one.send(granted)
    assert CHUNK_BYTES < before == one.collector.bytes_up < CHUNK_BYTES + 64
    assert not one.worker.jobs
    one.close()


class Refusing(Spool):
    """Refuses so many writes and slots, as a full disk does."""

    writes = slots = 0

    def write(self, slot: int, offset: int, data: bytes | memoryview) -> None:
        if self.writes:
            self.writes -= 1
            raise StoreError("no room to write")
        super().write(slot, offset, data)

    def allocate(self, max_slots: int) -> int:
        if self.slots:
            self.slots -= 1
            raise StoreError("no room for a slot")
        return super().allocate(max_slots)


def test_what_the_disk_refuses_of_an_upload_is_had_again(tmp_path: Path) -> None:
    spool = Refusing(spool_path(tmp_path, "r", 1), blob.most_bytes(SHAPES, "raw_f32"), sync=False)
    one = Collecting(tmp_path, spool=spool, max_uploads=1)
    document = document_of("a")
    spool.slots = 1
    with pytest.raises(StoreError, match="slot"):
        one.offer(document)
    assert one.sent() == [] and one.collector.uploading == (0, 0)
    one.offer(document)
    assert one.grants() == [("a", [(0, 2)])]
    spool.writes = 1
    with pytest.raises(StoreError, match="write"):
        one.send(document, only=(0,))
    one.send(document, only=(1,))
    one.now = IDLE_S
    one.collector.tick(one.now)
    assert one.grants() == [("a", [(0, 1)])]
    one.send(document, only=(0,))
    one.work()
    assert one.receipts() == [("a", "accepted", None)]
    one.close()


def test_a_stalled_upload_is_granted_again_on_one_topic_and_on_the_old_ones_in_turn(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    document = document_of("a")
    one.offer(document)
    one.sent()
    one.collector.tick(IDLE_S / 2)
    assert one.sent() == []
    topics = []
    for i in range(1, 4):
        one.collector.tick(i * IDLE_S)
        topics += [grant.one_topic for _, grant in one.sent() if isinstance(grant, Grant)]
    assert topics == [None, True, None]
    assert one.path.stat().st_size < 2 * len(document), "it keeps its slot"
    one.over()
    one.collector.tick(100 * IDLE_S)
    assert one.sent() == []
    one.close()


def test_a_damaged_chunk_is_asked_for_again_and_verified_when_it_comes(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    document = document_of("a")
    digest = digest_of(document)
    good = encode(digest, 0, document[:CHUNK_BYTES])
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    one.offer(document)
    one.send(document, only=(1,))
    one.chunk(digest, 0, damaged)
    one.sent()
    one.work()
    assert one.grants() == [("a", [(0, 1)])]
    with pytest.raises(ChunkError, match="damaged"):
        one.chunk(digest, 0, damaged)
    one.chunk(digest, 0, good)
    one.work()
    assert one.receipts() == [("a", "accepted", None)]
    one.close()


def test_good_chunks_that_do_not_give_the_digest_are_refused_after_a_few_times(tmp_path: Path) -> None:
    one = Collecting(tmp_path, "ab")
    promised, sent = document_of("a"), document_of("a", value=2.0)
    one.offer(promised)
    for _ in range(MAX_DAMAGED + 1):
        assert one.grants() == [("a", [(0, 2)])]
        one.send(sent, digest=digest_of(promised))
        assert one.sent() == []
        one.work()
    why = "node a: the update's bytes do not give the digest it offered"
    assert one.receipts() == [("a", "rejected", why)]
    assert one.journal.rejected("r", 1) == {"a": why} and len(one.collector.counted.nodes) == 0
    assert one.collector.uploading == (0, 0)
    one.counted("b")  # in the slot that is free again
    assert one.path.stat().st_size < 2 * len(sent)
    one.close()


def test_a_damaged_upload_of_a_node_that_has_left_is_not_asked_for_again(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    promised = document_of("a")
    one.offer(promised)
    one.send(document_of("a", value=2.0), digest=digest_of(promised))
    one.sent()
    one.collector.left(A, one.now)
    one.work()
    assert [state for _, state, _ in one.receipts()] == ["rejected"]
    one.close()


def test_an_update_that_is_not_as_offered_is_refused_and_its_slot_freed(tmp_path: Path) -> None:
    one = Collecting(tmp_path, "ab")
    document = document_of("a", samples=8)
    one.offer(document, samples=9)
    one.send(document)
    one.sent()
    one.work()
    why = "node a: the blob says samples '8', the offer said 9"
    assert one.receipts() == [("a", "rejected", why)]
    assert one.round.rejected == {"a": why}
    one.counted("b")
    assert one.path.stat().st_size < 2 * len(document)
    one.close()


@pytest.mark.parametrize(("samples", "capped"), [(MOST, []), (MOST + 1, [("a", MOST + 1)])])
def test_more_samples_than_the_cap_count_as_the_cap(
    tmp_path: Path, samples: int, capped: list[tuple[str, int]]
) -> None:
    one = Collecting(tmp_path)
    one.counted("a", samples=samples)
    assert one.receipts() == [("a", "accepted", None)]
    assert (one.journal.accepted("r", 1)[0].samples, sum(one.collector.counted.samples)) == (MOST, MOST)
    assert one.capped_at == capped
    assert one.round.accepted[A].trained == (samples if capped else None)
    one.close()


def test_what_comes_after_the_goal_is_turned_away(tmp_path: Path) -> None:
    """In one sync with the last that counts, and later."""
    one = Collecting(tmp_path, "abcd", goal=2)
    for node in "abcd":
        one.offer(document_of(node), node)
    for node in "abc":
        one.send(document_of(node), node)
    one.sent()
    one.work()
    enough = "the round had enough"
    assert one.receipts() == [("a", "accepted", None), ("c", "closed", enough), ("b", "accepted", None)]
    assert [row.node for row in one.journal.accepted("r", 1)] == ["a", "b"]
    assert len(one.collector.counted.nodes) == 2
    one.close()


def test_what_was_screened_when_the_round_is_over_is_turned_away(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    document = document_of("a")
    one.offer(document)
    one.send(document)
    one.sent()
    one.over()
    one.work()
    assert one.receipts() == [("a", "closed", "the round had enough")]
    assert one.journal.accepted("r", 1) == []
    one.close()


def test_a_row_that_the_journal_does_not_take_costs_its_node_and_gives_another_its_place(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "state")
    journal._db.execute(
        "CREATE TRIGGER no BEFORE INSERT ON accepted WHEN NEW.node = 'b' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    one = Collecting(tmp_path, "abcd", goal=3, journal=journal)
    for node in "abcd":
        one.offer(document_of(node), node)
        one.send(document_of(node), node)
    one.sent()
    one.work()
    refused = "node b: the journal refuses its update"
    # The first was synced alone; of the three behind it there was room for two.
    assert one.receipts() == [
        ("a", "accepted", None),
        ("c", "accepted", None),
        ("b", "rejected", refused),
        ("d", "accepted", None),
    ]
    assert one.round.rejected == {"b": refused}
    assert len(one.collector.counted.nodes) == 3
    one.close()


class Balking(Journal):
    """Refuses so many commits of updates, as a full disk does."""

    refusals = 0

    def accept(self, *args: Any) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise StoreError("the journal refused a commit")
        return super().accept(*args)


def test_a_commit_that_the_disk_refused_is_done_again_with_the_same_updates(tmp_path: Path) -> None:
    journal = Balking(tmp_path / "state")
    one = Collecting(tmp_path, journal=journal)
    document = document_of("a")
    one.offer(document)
    one.send(document)
    one.sent()
    one.worker.step()
    journal.refusals = 2
    for _ in range(2):
        with pytest.raises(StoreError):
            one.work()
        one.offer(document_of("a", value=2.0))
        assert one.sent() == [], "no receipt before the commit, and no other update in its place"
    one.work()
    assert one.receipts() == [("a", "accepted", None)]
    assert len(one.collector.counted.nodes) == 1
    one.close()


def test_what_the_disk_refuses_behind_a_receipt_costs_the_others_nothing(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    one.refuses = {"b"}
    for node in "abc":
        one.offer(document_of(node), node)
        one.send(document_of(node), node)
    one.sent()
    one.work()
    assert one.receipts() == [(n, "accepted", None) for n in "abc"]
    assert set(one.round.accepted) == {"a", "c"}
    one.close()


def test_a_node_that_leaves_gives_its_place_to_the_next(tmp_path: Path) -> None:
    one = Collecting(tmp_path, "abc", max_uploads=1)
    for node in "ab":
        one.offer(document_of(node), node)
    assert one.grants() == [("a", [(0, 2)])]
    one.collector.left(A, one.now)
    assert one.grants() == [("b", [(0, 2)])]
    assert one.path.stat().st_size < 2 * len(document_of("a")), "and its slot"
    one.offer(document_of("c"), "c")
    one.over()
    one.collector.left(B, one.now)
    assert one.sent() == []
    one.close()


def test_an_upload_that_is_refused_gives_its_place_to_the_next(tmp_path: Path) -> None:
    one = Collecting(tmp_path, max_uploads=1)
    for node in "abc":
        one.offer(document_of(node), node, **({"samples": 9} if node == "a" else {}))
    one.send(document_of("a"))
    assert one.grants() == [("a", [(0, 2)]), ("b", [(0, 2)])], "what came whole takes no place on the wire"
    one.send(document_of("b"), "b")
    assert one.grants() == [], "two wait to be screened"
    one.worker.step()
    assert [node for node, _ in one.grants()] == ["c"]
    one.close()


def test_after_a_restart_what_was_journaled_is_counted_again(tmp_path: Path) -> None:
    before = Collecting(tmp_path, "abc")
    documents = {node: before.counted(node) for node in "ab"}
    bits = before.mean()
    before.collector.close(remove=False)
    before.close()
    one = Collecting(tmp_path, "abc")
    rows = one.journal.accepted("r", 1)
    one.collector.restore(rows)
    for row in rows:
        one.accepted(row)
    one.work()
    assert one.mean() == bits and set(one.collector.counted.nodes) == {"a", "b"}
    one.offer(documents["b"], "b")
    assert one.receipts() == [("b", "duplicate", None)]
    one.counted("c")
    assert one.journal.accepted("r", 1)[-1].slot not in {row.slot for row in rows}
    assert intact(one.path, one.journal.accepted("r", 1)) == {"a", "b", "c"}
    one.close()


def test_an_update_is_taken_out_of_the_sum_and_put_back_to_the_bit(tmp_path: Path) -> None:
    one = Collecting(tmp_path)
    for node in "ac":
        one.counted(node)
    without = one.mean()
    one.counted("b", samples=9)
    whole = one.mean()
    with one.collector.counted.without(frozenset({B})):
        assert one.mean() == without and sum(one.collector.counted.samples) == 20
    assert one.mean() == whole and sum(one.collector.counted.samples) == 29
    one.close()


@pytest.mark.parametrize("remove", [False, True])
def test_the_spool_of_a_round_that_is_over(tmp_path: Path, remove: bool) -> None:
    one = Collecting(tmp_path)
    document = document_of("a")
    one.offer(document)
    one.send(document)
    one.worker.step()
    one.worker.step()  # journaled, and not in the sum yet
    one.collector.close(remove=remove)
    assert one.path.exists()
    if remove:
        assert open_files(one.path), "the worker may be looking into it"
    one.work()
    assert one.path.exists() is not remove and not open_files(one.path)
    assert not one.collector.counted.nodes
    one.close()


def open_files(path: Path) -> list[str]:
    """This process's descriptors of a file."""
    links = (str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())
    return [link for link in links if link.startswith(str(path))]


def test_which_journaled_updates_are_whole(tmp_path: Path) -> None:
    one = Collecting(tmp_path, "abc")
    for node in "abc":
        one.counted(node)
    rows = one.journal.accepted("r", 1)
    one.collector.close(remove=False)
    with one.path.open("r+b") as file:
        file.seek(rows[1].slot + 5)
        file.write(b"?")
    cut = [*rows[:2], replace(rows[2], slot=1000 * 4096)]
    assert intact(one.path, rows) == {"a", "c"}
    assert intact(one.path, cut) == {"a"}
    one.close()


def test_spools_of_rounds_that_are_over_are_cleared(tmp_path: Path) -> None:
    paths = [spool_path(tmp_path, "r", number) for number in (1, 2, 3)]
    paths[0].parent.mkdir()
    for path in paths:
        path.touch()
    clear_spools(tmp_path, paths[1])
    assert [path.exists() for path in paths] == [False, True, False]
    clear_spools(tmp_path, None)
    assert not paths[1].exists()


def test_a_receipt_says_why_in_what_a_message_may_hold() -> None:
    offer = offer_of(document_of("a"))
    made = receipt(offer, "rejected", "x" * 501)
    assert made.why == "x" * 500
    assert (made.digest, made.run, made.round, made.state) == (offer.update.digest, "r", 1, "rejected")
    assert receipt(offer, "accepted").why is None
