"""Releases over the bus: waves, bad releases of every kind, forgery, repetition, kills at any moment."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.fleet.release_fleet import BAD, CRASH, GOOD, HANG, TOPICS, ReleaseFleet, all_have, finished_run
from tests.stand_ins.memory_bus import LinkFault

from apiary.bus.bus import Received
from apiary.errors import RequestRefused, StoreError
from apiary.identity.release_key import seal
from apiary.identity.roles import Role
from apiary.wire.messages import ReleaseCurrent
from apiary.wire.topics import TopicKind
from apiary_coordinator.releases.ledger import current
from apiary_edge.releases.slot import Findings
from apiary_edge.releases.state import TrialDone

COLOURS = Path(__file__).parents[2] / "stand_ins" / "colours"
CURRENT = TOPICS.build(TopicKind.RELEASE_CURRENT)


@pytest.fixture
def fleet(tmp_path: Path) -> ReleaseFleet:
    return ReleaseFleet(tmp_path)


def test_two_waves_reach_every_node_and_the_first_is_the_canary(fleet: ReleaseFleet) -> None:
    fleet.hq.releasing.begin(fleet.make("one"))
    had = []
    for _ in range(100):
        fleet.turn()
        had.append(len(fleet.ever_had("one")))
    assert fleet.state == "done" and all_have(fleet, "one")
    assert set(had[: had.index(5)]) >= {0, 1}
    assert had.count(1) * 0.5 >= 5.0, "the canary soaked before the others were asked"
    blobs = [node.blobs.path(fleet.made["one"].file.digest) for node in fleet.nodes.values()]  # type: ignore[arg-type]
    assert not any(path.exists() for path in blobs), "the file is kept once"


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (BAD, "5 of 20 held-out pictures here right, 19 by the present release"),
        (CRASH, "its test ended by signal 11"),
        (TrialDone(None, failed="the program has the labels x, y, expected a, b"), "has the labels x, y"),
        (HANG, "reported healthy within 120 s"),
    ],
    ids=["worse", "crashes", "wrong-labels", "hangs"],
)
def test_a_bad_release_never_gets_past_the_canary(
    fleet: ReleaseFleet, verdict: TrialDone | None, why: str
) -> None:
    assert fleet.roll_out("good") == "done"
    assert fleet.roll_out("bad", verdict) == "halted"
    rollout = fleet.hq.releasing.standing.rollout
    assert rollout is not None and why in rollout.why
    assert fleet.ever_had("bad") == set(), "it was not even current on the canary"
    tested = {name for name, node in fleet.nodes.items() if "bad" in node.testing.tests}
    assert len(tested) == 1
    assert all_have(fleet, "good")
    assert fleet.files(tested.pop()) == {"good"}, "nothing of it is left on the disk"
    assert fleet.roll_out("better") == "done" and all_have(fleet, "better")


def test_named_canaries_are_the_first_and_go_back_as_everyone_does(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path, canaries=["pi-3", "pi-4"])
    assert fleet.roll_out("good") == "done" and all_have(fleet, "good")
    first = min(range(len(fleet.nodes["pi-0"].seen)), key=lambda i: fleet.nodes["pi-0"].seen[i] != "good")
    assert fleet.nodes["pi-3"].seen[first - 10] == fleet.nodes["pi-4"].seen[first - 10] == "good"
    fleet.hq.releasing.begin(fleet.make("shaky"))
    for _ in range(100):
        fleet.turn()
        if fleet.ever_had("shaky") == {"pi-3", "pi-4"}:
            break
    node, digest = fleet.nodes["pi-3"], fleet.made["shaky"].file.digest
    for _ in range(3):
        node.releases.complained(digest, "was ended by SIGSEGV")
    assert fleet.finish() == "halted"
    assert fleet.ever_had("shaky") == {"pi-3", "pi-4"}
    assert all_have(fleet, "good"), "the other canary, where it did well, too"


def test_where_nothing_may_be_lost_one_picture_less_on_the_nodes_takes_it_back(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path, waves=[0.5, 1.0], max_accuracy_drop=0.0)
    assert fleet.roll_out("good") == "done"
    worse = TrialDone(Findings(pictures=20, right=18, right_before=19, inference_ms=5.0))
    assert fleet.roll_out("worse", worse) == "halted"
    rollout = fleet.hq.releasing.standing.rollout
    assert rollout is not None and "5.0 points worse, by the median node" in rollout.why
    assert all_have(fleet, "good")
    assert fleet.roll_out("same") == "done" and all_have(fleet, "same")


def test_what_the_disk_refuses_is_not_said_to_the_fleet(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("good") == "done"
    record = fleet.folder / "coordinator" / "releases.json"
    kept = record.read_bytes()
    record.unlink()
    record.mkdir()
    with pytest.raises(StoreError):
        fleet.hq.releasing.begin(fleet.make("better"))
    fleet.turn(40)
    standing = fleet.hq.releasing.standing
    assert standing.rollout is not None and standing.rollout.release.name == "good"
    assert not any("better" in node.testing.tests for node in fleet.nodes.values())
    record.rmdir()
    record.write_bytes(kept)
    fleet.hq.releasing.begin(fleet.made["better"])
    assert fleet.finish() == "done" and all_have(fleet, "better")


def test_the_first_release_of_all_may_be_bad(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("bad", CRASH) == "halted"
    assert all_have(fleet, None)


def test_a_release_that_fails_in_use_is_taken_back_everywhere(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("good") == "done"
    fleet.hq.releasing.begin(fleet.make("shaky"))
    while not fleet.ever_had("shaky"):
        fleet.turn()
    (canary,) = fleet.ever_had("shaky")
    node = fleet.nodes[canary]
    digest = fleet.made["shaky"].file.digest
    for _ in range(3):
        assert node.current == "shaky"
        node.releases.complained("0" * 64, "another model, not the release")
        node.releases.complained(digest, "was ended by SIGSEGV")
    assert node.current == "good", "at once, without asking anybody"
    assert fleet.finish() == "halted"
    assert all_have(fleet, "good") and fleet.ever_had("shaky") == {canary}
    assert "it fails in use: was ended by SIGSEGV" in fleet.hq.releasing.standing.book.history[-1].text


def test_a_crash_now_and_then_is_an_accident(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("good") == "done"
    node, digest = fleet.nodes["pi-0"], fleet.made["good"].file.digest
    for _ in range(10):
        node.releases.complained(digest, "was ended by SIGKILL")
        fleet.broker.now += 1801.0
    assert node.current == "good"


def test_bytes_that_are_not_those_signed_never_become_current(fleet: ReleaseFleet) -> None:
    """Somebody changes the file where the coordinator keeps it."""
    assert fleet.roll_out("good") == "done"
    release = fleet.make("spoiled")
    path = fleet.folder / "coordinator" / "blobs" / release.file.digest
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    fleet.hq.releasing.begin(release)
    assert fleet.finish() == "halted"
    rollout = fleet.hq.releasing.standing.rollout
    assert rollout is not None and "is not the one that was signed (sha256 differs)" in rollout.why
    assert fleet.ever_had("spoiled") == set() and all_have(fleet, "good")


def forged(fleet: ReleaseFleet, name: str, serial: int) -> ReleaseCurrent:
    rollout = fleet.hq.releasing.standing.rollout
    assert rollout is not None
    return current(replace(rollout, release=fleet.make(name), share=1.0, state="done"), serial)


def test_what_another_key_signed_is_not_followed(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("good") == "done"
    told = forged(fleet, "evil", 2**50)
    attacker = fleet.broker.bus("attacker")
    attacker.poll(0)
    for payload in (
        seal(Ed25519PrivateKey.generate(), CURRENT, told.encode(), told.serial),
        told.encode(),
        b"",
        b"{",
        b"\xff" * 5000,
    ):
        attacker.publish(CURRENT, payload, retain=True)
        fleet.turn(10)
    assert all_have(fleet, "good")
    complaints = fleet.nodes["pi-0"].complaints
    assert any("signed with the release key" in c for c in complaints)
    assert any("not signed" in c for c in complaints)
    assert fleet.roll_out("better") == "done" and all_have(fleet, "better")


def test_a_foreign_message_that_the_broker_keeps_is_replaced_by_ours(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("good") == "done"
    fleet.turn(30)
    attacker = fleet.broker.bus("attacker")
    attacker.poll(0)
    attacker.publish(CURRENT, b"{}", retain=True)
    fleet.turn(4)
    fleet.start_node("pi-new")
    fleet.turn(30)
    assert all_have(fleet, "good"), "one that comes now finds what to follow"


def test_a_signed_message_on_another_topic_or_changed_is_not_followed(fleet: ReleaseFleet) -> None:
    from apiary.identity.release_key import load_or_make

    assert fleet.roll_out("good") == "done"
    key = load_or_make(fleet.folder / "coordinator" / "release-key.pem")
    told = forged(fleet, "evil", 2**50)
    attacker = fleet.broker.bus("attacker")
    attacker.poll(0)
    attacker.publish(CURRENT, seal(key, "apiary/other/release/current", told.encode(), told.serial))
    sealed = seal(key, CURRENT, told.encode(), told.serial)
    attacker.publish(CURRENT, sealed.replace(b'"share":1.0', b'"share":0.9'))
    fleet.turn(20)
    assert all_have(fleet, "good")
    assert sum("does not fit the message" in c for c in fleet.nodes["pi-0"].complaints) == 2


def test_yesterdays_message_is_not_followed_though_it_was_signed(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("old") == "done"
    attacker = fleet.broker.bus("attacker")
    attacker.subscribe(CURRENT)
    attacker.poll(0)
    fleet.turn()
    recorded = [event.payload for event in attacker.poll(0) if isinstance(event, Received)]
    assert len(recorded) == 1
    assert fleet.roll_out("new") == "done"
    attacker.publish(CURRENT, recorded[0], retain=True)
    fleet.turn(20)
    assert all_have(fleet, "new")
    fleet.kill_node("pi-3")
    fleet.start_node("pi-3")
    fleet.turn(20)
    assert all_have(fleet, "new"), "one that starts finds yesterday's retained, and remembers today's"


def test_nodes_that_were_off_catch_up_and_new_ones_begin_with_what_is_out(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("one") == "done"
    fleet.kill_node("pi-2")
    assert fleet.roll_out("two") == "done"
    fleet.start_node("pi-2")
    fleet.start_node("pi-9")
    fleet.turn(30)
    assert all_have(fleet, "two")


def test_a_node_without_room_says_so_and_goes_on_when_there_is(
    fleet: ReleaseFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apiary.blobs import BlobStore

    full = True
    real = BlobStore.begin

    def begin(store: BlobStore, *args: Any) -> object:
        if full:
            raise StoreError("no room: the disk is full")
        return real(store, *args)

    monkeypatch.setattr(BlobStore, "begin", begin)
    fleet.hq.releasing.begin(fleet.make("one"))
    fleet.turn(30)
    rollout = fleet.hq.releasing.standing.rollout
    assert rollout is not None
    (canary,) = rollout.members
    report = rollout.about(canary)
    assert report is not None and (report.state, report.why) == ("fetching", "no room: the disk is full")
    full = False
    assert fleet.finish() == "done" and all_have(fleet, "one")


def test_a_pinned_node_keeps_its_release_and_takes_the_fleets_when_unpinned(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path)
    assert fleet.roll_out("one") == "done"
    fleet.kill_node("pi-1")
    fleet.tags["pi-1"] = {"site": "north"}
    fleet.start_node("pi-1")
    fleet.turn(4)
    fleet.hq.releasing.pin(node="pi-0", rule=None, name="one")
    fleet.hq.releasing.pin(node=None, rule="site=north", name="one")
    assert fleet.roll_out("two") == "done"
    assert fleet.currents() == {"pi-0": "one", "pi-1": "one", "pi-2": "two", "pi-3": "two", "pi-4": "two"}
    fleet.hq.releasing.pin(node="pi-0", rule=None, name=None)
    fleet.turn(40)
    assert fleet.currents()["pi-0"] == "two" and fleet.currents()["pi-1"] == "one"
    with pytest.raises(RequestRefused, match="pi-0 is not pinned"):
        fleet.hq.releasing.pin(node="pi-0", rule=None, name=None)
    with pytest.raises(RequestRefused, match="no release 'three'; there are: one, two"):
        fleet.hq.releasing.pin(node="pi-0", rule=None, name="three")


def test_operators_stop_it_go_on_and_go_back(fleet: ReleaseFleet) -> None:
    for name in ("one", "two"):
        assert fleet.roll_out(name) == "done"
    fleet.hq.releasing.begin(fleet.make("three"))
    fleet.hq.releasing.pause()
    fleet.turn(100)
    assert len(fleet.ever_had("three")) == 1 and fleet.state == "paused"
    with pytest.raises(RequestRefused, match="three is paused: wait for it, or apiary release abort"):
        fleet.hq.releasing.begin(fleet.make("four"))
    fleet.hq.releasing.resume()
    assert fleet.finish() == "done" and all_have(fleet, "three")
    fleet.hq.releasing.rollback(None)
    fleet.turn(40)
    assert all_have(fleet, "two")
    fleet.hq.releasing.rollback("one")
    fleet.turn(60)
    assert all_have(fleet, "one")
    with pytest.raises(RequestRefused, match="there is a release 'three' already"):
        fleet.hq.releasing.begin(fleet.made["three"])
    for act in (fleet.hq.releasing.pause, fleet.hq.releasing.abort, fleet.hq.releasing.resume):
        with pytest.raises(RequestRefused, match="one is done, not"):
            act()


def test_an_aborted_release_leaves_the_canary_too(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("one") == "done"
    fleet.hq.releasing.begin(fleet.make("two"))
    while not fleet.ever_had("two"):
        fleet.turn()
    fleet.hq.releasing.abort()
    fleet.turn(20)
    assert all_have(fleet, "one")
    fleet.hq.releasing.resume()
    assert fleet.finish() == "done" and all_have(fleet, "two")


def test_a_release_for_another_machine_is_no_failure(fleet: ReleaseFleet) -> None:
    fleet.hq.releasing.begin(fleet.make("program", kind="eim", machine="armv7"))
    fleet.turn(30)
    rollout = fleet.hq.releasing.standing.rollout
    assert rollout is not None and rollout.state == "rolling"
    assert rollout.having("unfit") == sorted(rollout.having("unfit")) != []
    assert all_have(fleet, None)


def test_files_of_old_releases_go_and_those_in_use_stay(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path, 2, keep=2)
    for name in ("r1", "r2", "r3", "r4"):
        assert fleet.roll_out(name) == "done"
        if name == "r1":
            fleet.hq.releasing.pin(node="pi-0", rule=None, name="r1")
    kept = {n for n, r in fleet.made.items() if r.file.digest in fleet.hq.blobs}
    assert kept == {"r1", "r3", "r4"}
    with pytest.raises(RequestRefused, match=r"the file of r2 is no longer kept \(release.keep\)"):
        fleet.hq.releasing.rollback("r2")


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_over_a_bad_link_it_ends_on_the_good_release(tmp_path: Path, seed: int) -> None:
    fleet = ReleaseFleet(tmp_path, seed=seed, wave_s=600.0)
    for kind in ("drop", "duplicate", "reorder", "delay"):
        fleet.broker.script(LinkFault(kind, probability=0.05, times=60, seconds=3.0))
    rng = random.Random(seed)
    fleet.verdicts["bad"] = BAD
    for name, ends in (("one", "done"), ("bad", "halted"), ("two", "done")):
        fleet.hq.releasing.begin(fleet.make(name))
        for _ in range(4000):
            fleet.turn()
            if rng.random() < 0.06:
                fleet.restart_hq()
            if rng.random() < 0.06 and fleet.nodes:
                victim = rng.choice(sorted(fleet.nodes))
                fleet.kill_node(victim)
                fleet.start_node(victim)
            if fleet.state == ends:
                break
        assert fleet.state == ends, fleet.hq.releasing.standing.rollout
    fleet.broker.heal()
    fleet.turn(1400)
    assert all_have(fleet, "two")
    assert fleet.ever_had("bad") == set()


def test_other_labels_than_before_must_be_meant(fleet: ReleaseFleet) -> None:
    assert fleet.roll_out("good") == "done"
    with pytest.raises(RequestRefused, match="it has the labels x, y, good has a, b; if that is meant"):
        fleet.hq.releasing.begin(fleet.make("other", labels=["x", "y"]))
    assert fleet.roll_out("meant", labels=["x", "y"], relabels=True) == "done"
    assert all_have(fleet, "meant")
    fleet.hq.releasing.rollback("good")
    fleet.turn(40)
    assert all_have(fleet, "good"), "back to what was good is no mistake either"


def test_where_the_fleet_has_an_authority_only_the_coordinators_certificate_releases(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path, certified=True)
    assert fleet.party is not None
    assert fleet.roll_out("good") == "done" and all_have(fleet, "good")
    told = forged(fleet, "evil", 2**50)
    attacker = fleet.broker.bus("attacker")
    attacker.poll(0)
    node = fleet.party.keys.signer("pi-0", Role.NODE)
    for payload in (
        seal(Ed25519PrivateKey.generate(), CURRENT, told.encode(), told.serial),
        node.seal(CURRENT, told.encode()),
        told.encode(),
    ):
        attacker.publish(CURRENT, payload, retain=True)
        fleet.turn(10)
    assert all_have(fleet, "good")
    complaints = " ".join(fleet.nodes["pi-0"].complaints)
    for said in ("not this fleet's authority", "signed by node 'pi-0', expected", "not signed, expected"):
        assert said in complaints
    with pytest.raises(RequestRefused, match="signed with the coordinator's certificate"):
        fleet.hq.releasing.key()
    assert fleet.roll_out("bad", BAD) == "halted" and all_have(fleet, "good")


@pytest.mark.parametrize(("program", "kind"), [(True, "eim"), (False, "tflite")])
def test_what_a_run_published_goes_out_by_itself_and_the_model_where_no_program_was_built(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, program: bool, kind: str
) -> None:
    fleet = ReleaseFleet(tmp_path, 2, after_publish="eim")
    fleet.hq.releasing.finished(finished_run(tmp_path, program=program))
    release = fleet.hq.releasing._ready[0]
    fleet.made[release.name] = release
    assert fleet.finish() == "done"
    assert all_have(fleet, f"autumn-{kind}")
    told = "autumn has no program (.eim): its .tflite is released instead"
    assert (told in caplog.text) != program


def test_a_run_that_cannot_be_released_is_said_and_one_that_need_not_be_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished_run(tmp_path, program=False)
    fleet = ReleaseFleet(tmp_path, 1)
    fleet.hq.releasing.finished(run)
    fleet.turn(10)
    assert fleet.state == "none"
    fleet = ReleaseFleet(tmp_path / "other", 1, after_publish="tflite")
    (run / "labels.txt").unlink()
    fleet.hq.releasing.finished(run)
    fleet.turn(10)
    assert fleet.state == "none"
    assert "run=autumn is not released: " in caplog.text and "apiary release create autumn" in caplog.text


@pytest.mark.parametrize("refusing", ["current.json", "ledger.json"])
def test_a_swap_that_the_disk_refuses_is_made_once_it_takes_it(fleet: ReleaseFleet, refusing: str) -> None:
    """The node called itself healthy, predicted with the one before, and never said a word."""
    assert fleet.roll_out("good") == "done"
    fleet.verdicts["better"] = HANG
    fleet.hq.releasing.begin(fleet.make("better"))
    while not (tested := [node for node in fleet.nodes.values() if "better" in node.testing.tests]):
        fleet.turn()
    (node,) = tested
    mend = refuse(node.shelf.folder / refusing)
    fleet.verdicts["better"] = GOOD
    fleet.turn(20)
    assert node.current == "good"
    rollout = fleet.hq.releasing.standing.rollout
    assert rollout is not None and (report := rollout.about(node.name)) is not None
    assert report.state == "testing" and refusing in (report.why or "")
    mend()
    assert fleet.finish() == "done" and all_have(fleet, "better")


def test_a_release_that_was_told_while_the_disk_refused_is_followed_once_it_does_not(
    fleet: ReleaseFleet,
) -> None:
    """Its serial number could not be noted, and nobody says it again to a node that is connected."""
    assert fleet.roll_out("good") == "done"
    mend = [refuse(node.shelf.folder / "ledger.json") for node in fleet.nodes.values()]
    fleet.hq.releasing.begin(fleet.make("better"))
    fleet.turn(10)
    for one in mend:
        one()
    assert fleet.finish() == "done" and all_have(fleet, "better")


def refuse(path: Path) -> Callable[[], None]:
    """Have every write to this file fail, as on a full disk; returns what mends it."""
    before = path.with_name("aside")
    path.rename(before)
    path.mkdir()

    def mend() -> None:
        path.rmdir()
        before.rename(path)

    return mend
