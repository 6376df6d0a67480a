"""A bounded number of uploads at once, none forgotten."""

from __future__ import annotations

import pytest

from apiary.wire import Digest, NodeId
from apiary.wire.chunks import CHUNK_BYTES, digest_of, encode, span
from apiary.wire.messages import BlobRef, Offer, TrainMetrics
from apiary_coordinator.updates.uploads import MAX_STALLS, Upload, Uploads

SIZE = 2 * CHUNK_BYTES + 5


def document(node: str, version: int = 0) -> bytes:
    return (f"{node}/{version}/".encode() * SIZE)[:SIZE]


def offer(node: str, version: int = 0) -> Offer:
    ref = BlobRef(digest=digest_of(document(node, version)), bytes=SIZE)
    return Offer(run="r", round=1, update=ref, codec="raw_f32", samples=5, metrics=TrainMetrics(loss=1.0))


def give(uploads: Uploads, node: str, index: int, now: float = 0.0) -> Upload:
    told = offer(node)
    digest = Digest(told.update.digest)
    start, end = span(index, SIZE)
    upload = uploads.receiving(NodeId(node), digest)
    assert upload is not None
    if upload.assembly.accept(index, encode(digest, index, document(node)[start:end])) is not None:
        uploads.came(upload, now)
    return upload


def complete(uploads: Uploads, node: str) -> list[Upload]:
    for index in range(3):
        upload = give(uploads, node, index)
    return uploads.arrived(upload, 0.0)


def nodes(grants: list[Upload]) -> list[str]:
    return [g.node for g in grants]


def offered(uploads: Uploads, node: str, now: float = 0.0, version: int = 0) -> list[Upload]:
    return uploads.offered(NodeId(node), offer(node, version), now)


def test_as_many_as_allowed_are_granted_and_the_rest_wait_in_order() -> None:
    uploads = Uploads(max_active=2, idle_s=10)
    assert nodes(offered(uploads, "a")) == ["a"]
    assert nodes(offered(uploads, "b")) == ["b"]
    assert offered(uploads, "c") == []
    assert offered(uploads, "d") == []
    assert (uploads.active, uploads.waiting) == (2, 2)
    uploads.drop(NodeId("a"))
    assert nodes(uploads.freed(1.0)) == ["c"]
    assert (uploads.active, uploads.waiting) == (2, 1)


def test_a_grant_names_all_chunks_first_and_the_missing_ones_later() -> None:
    uploads = Uploads(1, 10)
    (grant,) = offered(uploads, "a")
    assert grant.assembly.missing() == [(0, 3)]
    give(uploads, "a", 1)
    (again,) = offered(uploads, "a")
    assert again.assembly.missing() == [(0, 1), (2, 3)]
    assert again is grant


def test_an_offer_repeated_while_it_waits_does_not_lose_its_place() -> None:
    uploads = Uploads(1, 10)
    for node in "abc":
        offered(uploads, node)
    assert offered(uploads, "b") == []
    uploads.drop(NodeId("a"))
    assert nodes(uploads.freed(0.0)) == ["b"]


def test_a_complete_upload_is_not_granted_again() -> None:
    uploads = Uploads(1, 10)
    offered(uploads, "a")
    complete(uploads, "a")
    assert offered(uploads, "a") == []
    assert uploads.tick(100.0) == []


def test_what_has_come_whole_gives_its_place_on_the_wire_to_the_next() -> None:
    uploads = Uploads(max_active=2, idle_s=10)
    for node in "abcdef":
        offered(uploads, node)
    assert nodes(complete(uploads, "a")) == ["c"]
    assert nodes(complete(uploads, "b")) == ["d"]
    # Two have come and are not finished: with those on their way as many as may be here.
    assert complete(uploads, "c") == []
    assert (uploads.active, uploads.waiting) == (4, 2)
    uploads.drop(NodeId("b"))
    assert nodes(uploads.freed(0.0)) == ["e"]


def test_what_came_damaged_is_next_and_takes_nobodys_place() -> None:
    uploads = Uploads(1, 10)
    (first,) = offered(uploads, "a")
    offered(uploads, "b")
    offered(uploads, "c")
    assert nodes(complete(uploads, "a")) == ["b"]
    assert uploads.again(first, (), 0.0) == []
    (again,) = complete(uploads, "b")
    assert (again, again.assembly.missing()) == (first, [(0, 3)])


def test_what_came_damaged_is_left_where_its_node_has_another_by_now() -> None:
    uploads = Uploads(1, 10)
    (old,) = offered(uploads, "a")
    complete(uploads, "a")
    (new,) = offered(uploads, "a", version=1)
    assert uploads.again(old, (), 0.0) == []
    assert uploads.receiving(NodeId("a"), new.digest) is new


def test_another_update_of_the_same_node_replaces_the_first() -> None:
    uploads = Uploads(1, 10)
    (old,) = offered(uploads, "a")
    (new,) = offered(uploads, "a", version=1)
    assert new.digest != old.digest
    assert uploads.receiving(NodeId("a"), old.digest) is None
    assert uploads.active == 1


def test_superseded_gives_back_only_another_update() -> None:
    uploads = Uploads(1, 10)
    (grant,) = offered(uploads, "a")
    assert uploads.superseded(NodeId("a"), grant.digest) is None
    assert uploads.superseded(NodeId("b"), grant.digest) is None
    assert uploads.superseded(NodeId("a"), Digest("0" * 64)) is grant
    assert uploads.active == 0


def test_chunks_that_nobody_asked_for_have_no_upload() -> None:
    uploads = Uploads(1, 10)
    offered(uploads, "a")
    offered(uploads, "b")
    digest = Digest(offer("b").update.digest)
    assert uploads.receiving(NodeId("b"), digest) is None
    assert uploads.receiving(NodeId("z"), digest) is None


def test_what_stalls_is_asked_for_again_after_the_idle_time_and_not_before() -> None:
    uploads = Uploads(2, 10)
    offered(uploads, "a", now=0.0)
    assert uploads.tick(9.9) == []
    (grant,) = uploads.tick(10.0)
    assert grant.assembly.missing() == [(0, 3)]
    assert uploads.tick(19.9) == []
    give(uploads, "a", 0, now=19.0)
    assert uploads.tick(28.9) == []
    assert [g.assembly.missing() for g in uploads.tick(29.0)] == [[(1, 3)]]


def test_after_several_stalls_others_go_first_and_it_is_not_forgotten() -> None:
    uploads = Uploads(1, 10)
    offered(uploads, "a")
    offered(uploads, "b")
    granted = [nodes(uploads.tick(10.0 * (i + 1))) for i in range(MAX_STALLS)]
    assert granted == [["a"]] * (MAX_STALLS - 1) + [["b"]]
    uploads.drop(NodeId("b"))
    assert nodes(uploads.freed(99.0)) == ["a"]
    offered(uploads, "c", now=99.0)
    granted = [nodes(uploads.tick(99.0 + 10.0 * (i + 1))) for i in range(MAX_STALLS)]
    assert granted == [["a"]] * (MAX_STALLS - 1) + [["c"]], "its stalls are counted anew"


def test_who_stalls_alone_keeps_its_place() -> None:
    uploads = Uploads(1, 10)
    offered(uploads, "a")
    assert [nodes(uploads.tick(10.0 * (i + 1))) for i in range(6)] == [["a"]] * 6


def test_a_chunk_ends_the_count_of_stalls() -> None:
    uploads = Uploads(1, 10)
    offered(uploads, "a")
    offered(uploads, "b")
    for i in range(MAX_STALLS - 1):
        uploads.tick(10.0 * (i + 1))
    give(uploads, "a", 0, now=25.0)
    assert nodes(uploads.tick(35.0)) == ["a"]


def test_dropping_whom_nobody_knows_is_nothing() -> None:
    assert Uploads(1, 10).drop(NodeId("z")) is None


def test_an_upload_is_known_while_it_waits_and_while_it_comes() -> None:
    uploads = Uploads(max_active=1, idle_s=10)
    (coming,) = offered(uploads, "a")
    offered(uploads, "b")
    assert uploads.has(coming)
    uploads.drop(NodeId("a"))
    assert not uploads.has(coming)
    (granted,) = uploads.freed(1.0)
    offered(uploads, "c")
    waiting = uploads.superseded(NodeId("c"), Digest("0" * 64))
    assert waiting is not None and waiting.node == "c", "one that waits is forgotten, too"
    assert not uploads.has(waiting) and uploads.has(granted)
    offered(uploads, "d")
    (again,) = uploads.again(granted, [0], 2.0)
    assert again is granted and uploads.has(granted)
    assert uploads.superseded(NodeId("b"), granted.digest) is None, "the same one stays"


def test_one_that_waits_for_its_turn_is_known() -> None:
    uploads = Uploads(max_active=1, idle_s=10)
    (coming,) = offered(uploads, "a")
    for index in range(3):
        give(uploads, "a", index)
    uploads.arrived(coming, 0.0)
    offered(uploads, "b")
    assert uploads.again(coming, [1], 0.0) == [], "b has the only place"
    assert uploads.waiting == 1 and uploads.has(coming)


def test_an_offer_that_is_repeated_shows_that_its_node_is_alive() -> None:
    uploads = Uploads(max_active=1, idle_s=10)
    offered(uploads, "a", now=0.0)
    offered(uploads, "a", now=9.0)
    assert uploads.tick(12.0) == []
    assert nodes(uploads.tick(19.5)) == ["a"]


def test_of_several_the_first_to_stall_says_when_to_look() -> None:
    uploads = Uploads(max_active=3, idle_s=10)
    for node, now in (("a", 0.0), ("b", 1.0), ("c", 2.0)):
        offered(uploads, node, now=now)
    assert uploads.tick(5.0) == []
    assert nodes(uploads.tick(10.5)) == ["a"]
    give(uploads, "c", 0, now=11.0)
    assert nodes(uploads.tick(11.5)) == ["b"]


def test_what_came_damaged_is_verified_from_then_on() -> None:
    uploads = Uploads(max_active=1, idle_s=10)
    (upload,) = offered(uploads, "a")
    assert not upload.suspect
    uploads.again(upload, [1], 0.0)
    assert upload.suspect


def test_a_chunk_that_comes_makes_up_for_all_stalls() -> None:
    uploads = Uploads(max_active=1, idle_s=10)
    offered(uploads, "a")
    offered(uploads, "b")
    now = 0.0
    for index in range(3):
        for _ in range(MAX_STALLS - 1):
            now += 10.5
            assert nodes(uploads.tick(now)) == ["a"], "it keeps its place"
        give(uploads, "a", index, now=now)
    for _ in range(MAX_STALLS):
        now += 10.5
        found = nodes(uploads.tick(now))
    assert found == ["b"], "others go first"


@pytest.mark.parametrize("keeps_on", ["a chunk it had sent", "its offer"])
def test_what_brings_nothing_new_keeps_no_place(keeps_on: str) -> None:
    uploads = Uploads(max_active=1, idle_s=10)
    offered(uploads, "a")
    give(uploads, "a", 0)
    offered(uploads, "b")
    granted: list[str] = []
    now = 0.0
    while "b" not in granted and now < 80.0:
        now += 8.0
        if keeps_on == "its offer":
            granted += nodes(offered(uploads, "a", now=now))
        else:
            give(uploads, "a", 0, now=now)
        granted += nodes(uploads.tick(now))
    assert granted[-1] == "b" and uploads.waiting == 1


def test_a_chunk_now_and_then_keeps_no_place_where_others_wait() -> None:
    chunks = 100
    ref = BlobRef(digest="d" * 64, bytes=chunks * CHUNK_BYTES)
    update = Offer(run="r", round=1, update=ref, codec="raw_f32", samples=5, metrics=TrainMetrics(loss=1.0))
    uploads = Uploads(max_active=1, idle_s=10)
    (upload,) = uploads.offered(NodeId("slow"), update, 0.0)
    assert upload.assembly.chunks == chunks

    def drip(each_s: float, until: float) -> list[str]:
        now = upload.slice_at
        had = upload.slice_had = upload.assembly.received
        while now < until:
            now += each_s
            upload.assembly._left -= 1  # a chunk that was missing
            uploads.came(upload, now)
            if found := uploads.tick(now):
                return nodes(found)
        assert upload.assembly.received > had
        return []

    assert drip(8.0, 100.0) == [], "nobody waits"
    offered(uploads, "b", now=100.0)
    assert drip(6.0, 190.0) == [], "five of a hundred chunks in each slice of thirty seconds"
    assert drip(8.0, 300.0) == ["b"]
    assert uploads.waiting == 1, "and its chunks are not lost"
