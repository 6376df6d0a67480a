"""One node of a fleet sends what it must not: refused with the reason, and the others' run goes on.

The node is a real one; only what its training hands over, or a message on its way, is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.fleet.harness import SHAPES, FakeTraining, Fleet, MakeFleet, samples_of
from tests.stand_ins.memory_bus import LinkFault, MemoryBus

from apiary.blobs import Download
from apiary.bus.bus import Received
from apiary.errors import StoreError
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.chunks import CHUNK_BYTES, digest_of, encode, span
from apiary.wire.messages import BlobRef, NodeStatus, Offer, TrainMetrics
from apiary.wire.topics import TopicKind, Topics
from apiary_edge.training.job import TrainingEvent

BAD = "pi-01"
OTHERS = ["pi-00", "pi-02", "pi-03"]


def rebuilt(change: Callable[[dict[str, NDArray[Any]], dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Change an update's tensors and header in place, and encode it again."""

    def spoil(document: bytes) -> bytes:
        found = blob.decode(document, who="test")
        tensors, about = {n: t.copy() for n, t in found.weights.items()}, dict(found.about)
        change(tensors, about)
        return blob.encode(Weights(tensors), codec_name=found.codec, about=about)

    return spoil


def shape(tensors: dict[str, NDArray[Any]], _: dict[str, Any]) -> None:
    tensors["a/kernel"] = tensors["a/kernel"][:, :100]


def not_finite(tensors: dict[str, NDArray[Any]], _: dict[str, Any]) -> None:
    tensors["a/bias"][7] = np.nan


def huge(tensors: dict[str, NDArray[Any]], _: dict[str, Any]) -> None:
    tensors["a/bias"][7] = -65.0


def boosted(tensors: dict[str, NDArray[Any]], _: dict[str, Any]) -> None:
    tensors["a/kernel"][:] = 50.0


def stolen(_: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    about["node"] = "pi-00"


def old(_: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    about["round"] = 0


def counted_up(_: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    about["samples"] += 1


def other_header(document: bytes) -> bytes:
    unpacker = msgpack.Unpacker()
    unpacker.feed(document[1:])
    header = unpacker.unpack()
    changed: bytes = msgpack.packb({**header, "v": 2})
    return b"\x92" + changed + document[1 + unpacker.tell() :]


def assert_refused(fleet: Fleet, why: str) -> None:
    """Every round closed with the others, `BAD` refused; it was told, and keeps nothing."""
    results = fleet.results()
    assert [r["state"] for r in results] == ["closed", "closed"]
    for result in results:
        assert sorted(result["contributors"]) == OTHERS
        assert list(result["rejected"]) == [BAD]
        assert why in result["rejected"][BAD]
        assert result["missing"] == {}
    node = fleet.nodes[BAD]
    for _ in range(30):
        fleet.turn()
    assert node._stores.outbox.waiting() == []
    assert node.session.offer is None
    assert node._stores.outbox.done() == ("run", 2)


@pytest.mark.parametrize(
    ("spoil", "run", "why"),
    [
        (rebuilt(shape), {}, "node pi-01: tensor 'a/kernel' has shape [300, 100], expected [300, 200]"),
        (rebuilt(not_finite), {}, "node pi-01: tensor 'a/bias' holds a number that is not finite"),
        (rebuilt(huge), {}, "node pi-01: tensor 'a/bias' holds 65, allowed are +-64"),
        (rebuilt(boosted), {"bounds": {"max_norm": 40}}, "the update's norm is 1.225e+04, allowed is 40"),
        (rebuilt(stolen), {}, "node pi-01: the blob says node 'pi-00', the offer said 'pi-01'"),
        (rebuilt(old), {}, "node pi-01: the blob says round '0', the offer said"),
        (rebuilt(counted_up), {}, "node pi-01: the blob says samples"),
        (lambda d: d + b"\0", {}, "node pi-01: the weights blob does not hold"),
        (lambda d: b"\x93" + d[1:], {}, "node pi-01: not a weights blob"),
        (other_header, {}, "the weights blob does not hold: ValueError: its header is not of version 1"),
        (lambda d: b"x", {}, "node pi-01: not a weights blob"),
        (
            lambda d: d + bytes(10_000),
            {"bounds": {"max_bytes": 241_500}},
            "bytes, allowed are 241500",
        ),
    ],
    ids=[
        "shape", "nan", "magnitude", "norm", "owner", "round", "samples",
        "trailing", "form", "header version", "tiny", "bytes",
    ],
)  # fmt: skip
def test_a_bad_update_is_refused_and_costs_nobody_else_anything(
    make_fleet: MakeFleet, spoil: Callable[[bytes], bytes], run: dict[str, Any], why: str
) -> None:
    fleet = make_fleet(4, rounds=2, **run)
    fleet.trainings[BAD].spoil = spoil
    fleet.run()
    assert_refused(fleet, why)


def test_a_refused_update_leaves_no_trace_in_the_model(make_fleet: MakeFleet) -> None:
    models = set()
    for bad in (not_finite, huge, stolen, shape):
        fleet = make_fleet(4, rounds=2)
        fleet.trainings[BAD].spoil = rebuilt(bad)
        models.add(fleet.run()["model_sha256"])
    assert len(models) == 1


class Claiming(FakeTraining):
    """Says of its update what is not so."""

    claim: dict[str, Any]

    def collect(self) -> list[TrainingEvent]:
        return [told.model_copy(update=self.claim) for told in super().collect()]


def claiming(fleet: Fleet, **claim: Any) -> None:
    training = Claiming(fleet.broker, 2.0)
    training.claim = claim
    fleet.trainings[BAD] = training
    fleet.kill_node(BAD)
    fleet.start_node(BAD)


def test_samples_that_the_blob_does_not_confirm_are_refused(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=2)
    claiming(fleet, samples=64)
    fleet.run()
    assert_refused(fleet, f"node pi-01: the blob says samples '{samples_of(BAD)}', the offer said 64")


def talk(fleet: Fleet) -> tuple[MemoryBus, Topics]:
    """A client that speaks as it likes, where a broker's rights would let it speak for `BAD`."""
    bus = fleet.broker.bus("liar")
    bus.poll(0)
    return bus, Topics()


def raw_offer(data: bytes, **more: Any) -> dict[str, Any]:
    told = Offer(
        run="run",
        round=1,
        update=BlobRef(digest=digest_of(data), bytes=len(data)),
        codec="raw_f32",
        samples=5,
        metrics=TrainMetrics(loss=1.0),
    )
    return {**json.loads(told.encode()), **more}


def until_round(fleet: Fleet) -> None:
    for _ in range(100):
        fleet.turn()
        if fleet.runner is not None:
            return
    raise AssertionError("no round was opened")


def without(fleet: Fleet, node: str) -> None:
    """The node stays silent, so that another may speak in its place."""
    fleet.trainings[node].seconds = 1e9


def test_bytes_that_never_give_the_digest_are_asked_for_twice_more_then_refused(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(4, rounds=1)
    without(fleet, BAD)
    until_round(fleet)
    bus, topics = talk(fleet)
    bus.subscribe(topics.pattern(TopicKind.NODE_GRANT, node=NodeId(BAD)))
    bus.subscribe(topics.pattern(TopicKind.NODE_RECEIPT, node=NodeId(BAD)))
    digest, size = Digest("ab" * 32), CHUNK_BYTES + 10
    offer = raw_offer(b"x", update={"digest": digest, "bytes": size})
    bus.publish(topics.build(TopicKind.NODE_OFFER, node=NodeId(BAD)), json.dumps(offer).encode())
    grants = 0
    receipts: list[dict[str, Any]] = []

    def answer(_: int) -> None:
        nonlocal grants
        for event in bus.poll(0):
            told = json.loads(event.payload)  # type: ignore[union-attr] # only messages come here
            if "state" in told:
                receipts.append(told)
                continue
            grants += 1
            assert told["missing"] == [[0, 2]]
            for i in range(2):
                start, end = span(i, size)
                topic = topics.build(TopicKind.CHUNK_UP, node=NodeId(BAD), digest=digest, index=i)
                bus.publish(topic, encode(digest, i, bytes(end - start)))

    fleet.run(each=answer)
    assert grants == 3
    (result,) = fleet.results()
    why = "node pi-01: the update's bytes do not give the digest it offered"
    assert result["rejected"] == {BAD: why}
    assert [(r["state"], r["why"]) for r in receipts] == [("rejected", why)]
    assert sorted(result["contributors"]) == OTHERS


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps(raw_offer(b"x", v=2)).encode(),
        json.dumps({k: v for k, v in raw_offer(b"x").items() if k != "v"}).encode(),
        json.dumps(raw_offer(b"x", samples=0)).encode(),
        json.dumps(raw_offer(b"x", samples=2**24 + 1)).encode(),
        json.dumps(raw_offer(b"x", update={"digest": "0" * 64, "bytes": 2**40})).encode(),
        json.dumps(raw_offer(b"x", update={"digest": "../../etc", "bytes": 5})).encode(),
        b"not json",
        b"",
        b"[" * 100_000,
        b"x" * 300_000,
    ],
    ids=[
        "another version",
        "no version",
        "no samples",
        "too many samples",
        "huge",
        "path",
        "text",
        "empty",
        "deep",
        "long",
    ],
)
def test_an_offer_that_is_none_is_said_once_and_the_node_still_counts(
    make_fleet: MakeFleet, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(4, rounds=1)
    until_round(fleet)
    bus, topics = talk(fleet)

    def shout(turn: int) -> None:
        if turn < 20:
            bus.publish(topics.build(TopicKind.NODE_OFFER, node=NodeId(BAD)), payload)

    fleet.run(each=shout)
    (result,) = fleet.results()
    assert len(result["contributors"]) == 4
    said = [r.levelname for r in caplog.records if "node pi-01: offer" in r.getMessage()]
    assert said.count("WARNING") == 1


def test_another_version_is_told_apart_from_nonsense(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(3, rounds=1)
    until_round(fleet)
    bus, topics = talk(fleet)
    for v in (2, "x" * 100):
        offer = json.dumps(raw_offer(b"x", v=v)).encode()
        bus.publish(topics.build(TopicKind.NODE_OFFER, node=NodeId("pi-01")), offer)
    fleet.run()
    said = [r.getMessage() for r in caplog.records]
    assert "node pi-01: offer has protocol version 2, expected 1: upgrade the older party" in said


def test_chunks_that_nobody_asked_for_take_no_room(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=1)
    until_round(fleet)
    bus, topics = talk(fleet)
    for i in range(50):
        data = bytes([i]) * 1000
        digest = digest_of(data)
        for node in ("pi-01", "stranger"):
            topic = topics.build(TopicKind.CHUNK_UP, node=NodeId(node), digest=digest, index=0)
            bus.publish(topic, encode(digest, 0, data))
    fleet.turn()
    fleet.turn()
    (spool,) = (fleet.folder / "coordinator" / "spool").iterdir()
    assert spool.stat().st_size == 0
    assert len(fleet.run()["contributors"]["1"]) == 3


def test_of_an_update_that_came_damaged_only_the_bad_chunks_are_asked_for_again(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice: the second time each chunk is looked at as it comes, and nothing whole is hashed for it."""
    undisturbed = make_fleet(3, rounds=1).run()
    fleet = make_fleet(3, rounds=1)
    monkeypatch.setattr(fleet.broker, "_spoil", lambda payload: payload[:-1] + bytes([payload[-1] ^ 1]))
    bad = f"apiary-blob/+/up/{BAD}"
    fleet.broker.script(LinkFault("corrupt", bad, skip=1, times=1))
    fleet.broker.script(LinkFault("corrupt", bad, skip=3, times=1))
    bus, topics = talk(fleet)
    bus.subscribe(topics.pattern(TopicKind.NODE_GRANT, node=NodeId(BAD)))
    grants: list[Any] = []

    def listen(_: int) -> None:
        grants.extend(json.loads(e.payload)["missing"] for e in bus.poll(0) if isinstance(e, Received))

    summary = fleet.run(each=listen)
    assert grants == [[[0, 3]], [[1, 2]], [[1, 2]]]
    said = [r.getMessage() for r in caplog.records]
    assert said.count(f"node={BAD} 1 chunks of its update came damaged: asked for again") == 1
    assert sum("is damaged: its checksum does not hold" in line for line in said) == 1
    assert summary["model_sha256"] == undisturbed["model_sha256"]


def test_a_node_that_changes_its_offer_again_and_again_takes_one_place_on_the_disk(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(3, rounds=1)
    without(fleet, "pi-01")
    until_round(fleet)
    bus, topics = talk(fleet)
    for i in range(200):
        offer = raw_offer(b"x", update={"digest": f"{i:064x}", "bytes": 200_000})
        bus.publish(topics.build(TopicKind.NODE_OFFER, node=NodeId("pi-01")), json.dumps(offer).encode())
        fleet.turn()
    (spool,) = (fleet.folder / "coordinator" / "spool").iterdir()
    assert spool.stat().st_size < 3 * 250_000


def test_a_stranger_and_a_node_that_was_not_drawn_are_sent_away(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=1, cohort_size=2)
    until_round(fleet)
    bus, topics = talk(fleet)
    bus.subscribe(topics.pattern(TopicKind.NODE_RECEIPT, node=NodeId("stranger")))
    offer = json.dumps(raw_offer(b"x")).encode()
    bus.publish(topics.build(TopicKind.NODE_OFFER, node=NodeId("stranger")), offer)
    for _ in range(3):
        fleet.turn()
    (event,) = bus.poll(0)
    told = json.loads(event.payload)  # type: ignore[union-attr] # only messages come here
    assert (told["state"], told["why"]) == ("closed", "not drawn for this round")
    fleet.run()
    assert "stranger" not in fleet.results()[0]["contributors"]


@pytest.mark.parametrize(
    "kind", [TopicKind.ROUND_CURRENT, TopicKind.NODE_NOTICE, TopicKind.NODE_GRANT, TopicKind.NODE_RECEIPT]
)
def test_nonsense_from_a_coordinator_does_not_end_a_node(make_fleet: MakeFleet, kind: TopicKind) -> None:
    fleet = make_fleet(3, rounds=1)
    until_round(fleet)
    bus, topics = talk(fleet)
    payloads = [b"", b"{", b'{"v": 9}', b'{"v": 1}', b"\xff" * 50, b'{"v": 1, "digest": 3}']

    def shout(turn: int) -> None:
        if turn < 30:
            bus.publish(topics.build(kind, node=NodeId("pi-01")), payloads[turn % len(payloads)])

    fleet.run(each=shout)
    assert len(fleet.results()[0]["contributors"]) == 3


def test_a_status_with_a_wrong_form_keeps_only_its_sender_out(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(3, rounds=1)
    bus, topics = talk(fleet)
    topic = topics.build(TopicKind.NODE_STATUS, node=NodeId("odd"))
    bus.publish(topic, b'{"v": 1, "state": "dancing"}', retain=True)
    assert len(fleet.run()["contributors"]["1"]) == 3
    assert "node odd: nodestatus: state is 'dancing'" in caplog.text


def test_a_node_that_declines_says_why_and_takes_part_in_the_next_round(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=2, deadline_s=300)
    statuses: list[NodeStatus] = []
    declining = True

    class Declining(FakeTraining):
        def collect(self) -> list[TrainingEvent]:
            told = super().collect()
            return [TrainingEvent(kind="declined", text="too few pictures")] if told and declining else told

    fleet.trainings[BAD] = Declining(fleet.broker, 2.0)
    for node in OTHERS:
        fleet.trainings[node].seconds = 70.0  # longer than its pause
    fleet.kill_node(BAD)
    fleet.start_node(BAD)

    def watch(_: int) -> None:
        nonlocal declining
        declining = not fleet.results()
        payload = fleet.broker.retained.get(Topics().build(TopicKind.NODE_STATUS, node=NodeId(BAD)))
        if payload:
            statuses.append(NodeStatus.decode(payload, who="test"))

    fleet.run(each=watch)
    first, second = fleet.results()
    assert first["missing"] == {BAD: "too few pictures"}
    assert sorted(first["contributors"]) == OTHERS
    assert BAD in second["contributors"]
    declined = [s for s in statuses if s.declined]
    assert {(s.run, s.round, s.why, s.state) for s in declined} == {("run", 1, "too few pictures", "ready")}
    # What was declined once is not said for ever.
    for _ in range(20):
        fleet.turn()
    watch(0)
    assert not statuses[-1].declined and statuses[-1].why is None


def test_training_that_takes_too_long_is_stopped_and_declined(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(3, rounds=1)
    real = fleet.settings

    def limited(node: str = "x") -> Settings:
        settings = real(node)
        edge = settings.edge.model_copy(update={"train_timeout_s": 30.0})
        return settings.model_copy(update={"edge": edge})

    monkeypatch.setattr(fleet, "settings", limited)
    fleet.kill_node(BAD)
    fleet.start_node(BAD)
    fleet.trainings[BAD].seconds = 1e9
    fleet.run()
    (result,) = fleet.results()
    assert result["missing"] == {BAD: "training took longer than 30 s (edge.train_timeout_s)"}


@pytest.mark.parametrize("when", ["collecting", "sealed", "twice", "node away"])
def test_a_damaged_update_in_the_spool_is_trained_again_and_the_model_is_the_same(
    make_fleet: MakeFleet, when: str
) -> None:
    """The disk turned an accepted update bad while the coordinator was down; its node had its receipt."""
    undisturbed = make_fleet(4, rounds=2, deadline_s=120).run()
    fleet = make_fleet(4, rounds=2, deadline_s=120)
    done = False
    victim = ""

    def disturb(_: int) -> None:
        nonlocal done, victim
        runner = fleet.runner
        if done or runner is None or len(runner.round.accepted) != (4 if when == "sealed" else 2):
            return
        done = True
        victim = next(iter(runner.round.accepted))
        if when == "sealed":
            assert fleet.journal.rounds("run")[0].opened["sealed"]
        for _ in range(5):  # its receipt is on its way
            fleet.nodes[victim].step(0)
        assert fleet.nodes[victim]._stores.outbox.done() == ("run", 1)
        slot = next(r.slot for r in fleet.journal.accepted("run", 1) if r.node == victim)
        fleet.kill_coordinator()
        (spool,) = (fleet.folder / "coordinator" / "spool").iterdir()
        data = bytearray(spool.read_bytes())
        data[slot + 1000] ^= 1
        spool.write_bytes(data)
        if when == "node away":
            fleet.kill_node(victim)
        fleet.start_coordinator()
        if when == "twice":
            for _ in range(8):
                fleet.turn()
            fleet.kill_coordinator()
            fleet.kill_node(victim)
            fleet.start_node(victim)
            fleet.start_coordinator()
        if when == "node away":
            fleet.start_node(victim)

    summary = fleet.run(each=disturb)
    assert done
    assert summary["model_sha256"] == undisturbed["model_sha256"]
    assert summary["contributors"] == undisturbed["contributors"]
    assert fleet.trainings[victim].started >= 3
    assert [t.started for n, t in fleet.trainings.items() if n != victim] == [2, 2, 2]


def test_an_update_that_the_node_cannot_read_is_trained_again(make_fleet: MakeFleet) -> None:
    undisturbed = make_fleet(3, rounds=1, deadline_s=300).run()
    fleet = make_fleet(3, rounds=1, deadline_s=300)
    done = False

    def disturb(_: int) -> None:
        nonlocal done
        found = list((fleet.folder / "pi-01" / "outbox").glob("*.update"))
        if found and not done:
            done = True
            found[0].write_bytes(found[0].read_bytes()[:1000])

    assert fleet.run(each=disturb)["model_sha256"] == undisturbed["model_sha256"]
    assert done
    assert fleet.trainings["pi-01"].started == 2


def test_no_room_for_one_blob_ends_the_other_downloads_of_the_round(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(2, rounds=1, min_nodes=1, quorum=0.5, deadline_s=60)
    node = fleet.nodes["pi-01"]
    asked: list[Digest] = []
    begin = node.downloads.blobs.begin

    def full(digest: Digest, size: int) -> Download:
        asked.append(digest)
        if len(asked) == 2:
            raise StoreError(f"no room for blob {digest[:12]}")
        return begin(digest, size)

    monkeypatch.setattr(node.downloads.blobs, "begin", full)
    fleet.run()
    assert len(asked) == 2
    assert list((fleet.folder / "pi-01" / "blobs").glob("*.download")) == []
    (result,) = fleet.results()
    assert sorted(result["contributors"]) == ["pi-00"]
    assert "no room for blob" in result["missing"]["pi-01"]


def test_an_update_struck_out_of_the_journal_is_taken_when_it_comes_again(make_fleet: MakeFleet) -> None:
    """As above, and the node had not yet got its receipt: it offers the same update once more."""
    fleet = make_fleet(4, rounds=1, deadline_s=120)
    fleet.broker.script(LinkFault("drop", "apiary/+/node/+/receipt", times=2))
    done = False

    def disturb(_: int) -> None:
        nonlocal done
        runner = fleet.runner
        if done or runner is None or len(runner.round.accepted) != 2:
            return
        done = True
        fleet.kill_coordinator()
        (spool,) = (fleet.folder / "coordinator" / "spool").iterdir()
        spool.write_bytes(bytes(spool.stat().st_size))
        fleet.start_coordinator()

    fleet.run(each=disturb)
    (result,) = fleet.results()
    assert done and len(result["contributors"]) == 4
    assert {n: c["samples"] for n, c in result["contributors"].items()} == {
        n: samples_of(n) for n in fleet.nodes
    }


def test_the_harness_sends_what_the_bounds_speak_of() -> None:
    assert 4 * sum(int(np.prod(s)) for s in SHAPES.values()) == 240_800
