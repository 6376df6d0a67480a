"""One round from its opening to its end, and over restarts: what is journaled, and what its run has to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.coordinator.round.collecting import START, document_of, offer_of, update_of
from tests.unit.coordinator.round.running import Running, status

from apiary.errors import StoreError
from apiary.wire import NodeId, blob
from apiary.wire.messages import Receipt
from apiary_coordinator.journal import Journal
from apiary_coordinator.round.collector import spool_path
from apiary_coordinator.round.deadline import SPREAD
from apiary_coordinator.round.state import Phase
from apiary_coordinator.updates.exact_sum import grid_bits

A, B, C, D = (NodeId(n) for n in "abcd")


def test_what_a_round_decides_when_it_opens_is_journaled_before_anything_else(tmp_path: Path) -> None:
    one = Running(
        tmp_path, "abcd", cohort_size=3, plan={"validation_share": 0.1}, first_deadline_s=600
    ).open()
    round_, terms = one.runner.round, one.runner.terms
    assert (len(round_.cohort), len(round_.reserve), round_.goal, round_.quorum) == (3, 1, 3, 2)
    assert (round_.run, round_.number, round_.deadline_at) == ("r", 1, 700.0)
    # Each trains on 27 of 30: of three equal nodes each weighs at most half of the others.
    assert (terms.bounds.max_samples, terms.plan.seed, terms.deadline_s) == (27, 7, 600.0)
    assert terms.bounds.max_norm == pytest.approx(3 * START.norm(), rel=1e-5)
    assert terms.bounds.max_bytes == blob.most_bytes(terms.shapes, "raw_f32")
    assert terms.bits == grid_bits(terms.bounds, 3)
    share = {"samples": 30, "labels": {"a": 20, "b": 10}, "runtime": "fake"}
    assert one.opened() == {
        "cohort": list(round_.cohort),
        "reserve": list(round_.reserve),
        "goal": 3,
        "plan": terms.plan.model_dump(mode="json"),
        "bounds": terms.bounds.model_dump(mode="json"),
        "bits": terms.bits,
        "deadline_s": 600.0,
        "shares": dict.fromkeys(round_.cohort, share),
        "sealed": False,
        "again": [],
    }
    assert (one.announced, one.invited, one.worker.jobs) == ([], [], type(one.worker.jobs)())
    one.now = 103.0
    assert one.runner.elapsed_s == 3.0
    one.leave()


def test_bounds_are_within_the_settings_and_follow_the_last_round(tmp_path: Path) -> None:
    tight = {"max_samples": 5, "max_bytes": 1000, "max_norm": 1e6}
    one = Running(tmp_path, "ab", bounds=tight, clip=2).open(last_norm=4.0, recent=[[100.0]])
    bounds = one.runner.terms.bounds
    assert (bounds.max_samples, bounds.max_bytes, bounds.max_norm) == (5, 1000, 8.0)
    assert one.runner.terms.deadline_s == 300.0
    one.leave()


def test_a_node_that_says_nothing_of_its_samples_bears_one(tmp_path: Path) -> None:
    one = Running(tmp_path, "a")
    bare = status(samples=None, labels=None, runtimes=[])
    one.roster.update(A, bare, 0.0)
    one.open()
    assert one.runner.terms.bounds.max_samples == 3
    assert one.opened()["shares"] == {"a": {"samples": 0, "labels": {}, "runtime": ""}}
    one.leave()


@pytest.mark.parametrize(
    ("quorum", "nodes", "least"),
    [(0.5, 4, 2), (0.5, 5, 3), (0.2, 5, 1), (0.1, 3, 1), (1.0, 3, 3), (0.3, 10, 3)],
)
def test_the_quorum_is_a_share_of_the_goal(tmp_path: Path, quorum: float, nodes: int, least: int) -> None:
    one = Running(tmp_path, "abcdefghij"[:nodes], quorum=quorum).open()
    assert one.runner.round.quorum == least
    one.leave()


def test_from_the_first_update_to_the_end(tmp_path: Path) -> None:
    one = Running(tmp_path, "abc").open()
    for node in "ab":
        one.send(node)
    one.work()
    assert one.announced == ["collecting"] and not one.opened()["sealed"]
    one.now = 105.5
    one.send("c", samples=99)
    one.work()
    assert one.announced == ["collecting", "aggregating", "evaluating"]
    assert one.opened()["sealed"], "what is aggregated is fixed before"
    assert one.capped_at == [("c", 99, 27, 30)]
    (closed,) = one.closed
    result = closed.result
    assert (result.run, result.round, result.state, result.why) == ("r", 1, "closed", None)
    assert (result.n_contributors, result.n_rejected, result.n_missing, result.n_samples) == (3, 0, 0, 47)
    assert list(result.contributors) == ["a", "b", "c"] and result.contributors["c"].trained == 99
    assert (result.accuracy, result.tested_on, result.seconds) == (0.5, 100, 5.5)
    assert result.loss is not None and result.loss > 0 and result.left_out is None
    assert result.bytes_up == one.runner.collector.bytes_up > 3 * 160_000
    made = closed.made
    assert made is not None and result.model == made.model.digest
    assert closed.details["median_norm"] == made.median_norm == pytest.approx(update_of("b").norm())
    assert closed.details["bounds"] == one.runner.terms.bounds.model_dump(mode="json")
    assert set(closed.details["shares"]) == set(closed.details["node_metrics"]) == {"a", "b", "c"}
    assert closed.details["confusion"] == [[1, 0], [0, 1]] and closed.details["per_class"] == {}
    assert one.runner.round.phase is Phase.CLOSED
    one.leave()


def test_who_stalls_does_not_keep_a_first_round_open_for_hours(tmp_path: Path) -> None:
    one = Running(tmp_path, "abcd", first_deadline_s=14_400).open()
    for node in "ab":
        one.now += 10
        one.send(node)
        one.work()
    assert one.runner.round.deadline_at == 100.0 + 14_400, "of two neither is known to be the late one"
    one.send("c")
    one.work()
    assert one.runner.round.deadline_at == 100.0 + SPREAD * 20
    one.now = 100.0 + SPREAD * 20
    for _ in range(3):  # while it aggregates, too
        one.runner.tick(one.now)
    assert one.context.rests.resting(NodeId("d"), status("ready"), one.now) is None, "missed once"
    one.work()
    assert one.closed[0].result.missing == {"d": "no update in time"}
    one.leave()


def test_a_fixed_deadline_stays(tmp_path: Path) -> None:
    one = Running(tmp_path, "abcd", deadline_s=5000).open()
    for node in "abc":
        one.send(node)
    one.work()
    assert one.runner.round.deadline_at == 100.0 + 5000
    one.leave()


def test_what_nodes_measured_is_told_as_its_mean(tmp_path: Path) -> None:
    one = Running(tmp_path, "abc").open()
    for node, accuracy in (("a", 0.5), ("b", 0.8), ("c", None)):
        document = document_of(node)
        made = offer_of(document)
        metrics = made.metrics.model_copy(update={"accuracy": accuracy})
        one.runner.collector.offered(NodeId(node), made.model_copy(update={"metrics": metrics}), one.now)
        one.send(node)
    one.work()
    assert one.closed[0].result.node_accuracy == 0.65
    one.leave()


def test_who_is_left_out_is_not_among_those_who_contributed(tmp_path: Path) -> None:
    one = Running(tmp_path, "abcde", loss_before=0.3, leave_out_gain=0.25).open()
    for node in "abcde":
        document = document_of(node, value=20.0 if node == "e" else 1.0)
        made = offer_of(document)
        metrics = made.metrics.model_copy(update={"accuracy": 0.9 if node == "e" else 0.5})
        one.runner.collector.offered(NodeId(node), made.model_copy(update={"metrics": metrics}), one.now)
        one.send(node, value=20.0 if node == "e" else 1.0)
    one.work()
    (closed,) = one.closed
    assert list(closed.result.left_out or ()) == ["e"]
    assert closed.result.node_accuracy == 0.5, "what it says of itself does not count, either"
    assert list(closed.result.contributors) == ["a", "b", "c", "d"]
    assert (closed.result.n_contributors, closed.result.n_samples) == (4, 40)
    one.leave()


def test_a_round_that_fails_says_why_and_changes_no_model(tmp_path: Path) -> None:
    one = Running(tmp_path, "abc", quorum=1.0).open()
    one.send("a")
    one.runner.collector.offered(B, offer_of(document_of("b"), codec="int8"), one.now)
    one.work()
    one.now = one.runner.round.deadline_at
    one.runner.tick(one.now)
    (closed,) = one.closed
    assert (closed.result.state, closed.made, closed.result.model) == ("failed", None, None)
    assert (closed.result.why or "").startswith("1 of 3 nodes sent a good update, the quorum is 3")
    assert (closed.result.accuracy, closed.result.loss, closed.result.tested_on) == (None, None, None)
    assert (closed.result.n_rejected, closed.result.missing) == (1, {"c": "no update in time"})
    assert "the codec 'int8'" in closed.result.rejected["b"]
    assert set(closed.details["shares"]) == {"a", "b", "c"}
    one.leave()


def test_a_round_that_is_given_up(tmp_path: Path) -> None:
    one = Running(tmp_path, "ab").open()
    one.runner.abandon("the operator stopped it")
    assert [c.result.why for c in one.closed] == ["the operator stopped it"]
    one.runner.tick(one.now)
    assert len(one.closed) == 1
    one.leave()


def test_an_end_that_the_disk_refused_comes_with_a_later_tick(tmp_path: Path) -> None:
    one = Running(tmp_path, "ab").open()
    one.refuses = 2
    with pytest.raises(StoreError):
        one.runner.abandon("no more")
    with pytest.raises(StoreError):
        one.runner.tick(one.now)
    assert one.closed == []
    one.runner.tick(one.now)
    assert len(one.closed) == 1
    one.leave()


def test_only_a_round_that_collects_asks_stalled_uploads_again(tmp_path: Path) -> None:
    one = Running(tmp_path, "ab").open()
    one.runner.collector.offered(A, offer_of(document_of("a")), one.now)
    one.sent()
    one.now += one.settings.coordinator.upload_idle_s
    one.runner.tick(one.now)
    assert [node for node, _ in one.sent()] == ["a"]
    one.leave()


# -- nodes that come and go


def test_a_node_that_declines_gives_its_place_to_another(tmp_path: Path) -> None:
    one = Running(tmp_path, "abcd", cohort_size=3).open()
    (reserve,) = one.runner.round.reserve
    gone = one.runner.round.cohort[0]
    declined = {"run": "r", "round": 1, "declined": True, "why": "too few pictures"}
    one.says(gone, status("ready", **declined))
    assert one.invited == [reserve] and reserve in one.opened()["cohort"], "journaled, then invited"
    assert one.runner.round.gone == {gone: "too few pictures"}
    rest = one.context.rests.resting(gone, status("ready"), one.now)
    assert rest is not None and rest.why == "declined: too few pictures" and rest.times == 1
    one.says(gone, status("ready", **declined))
    rest = one.context.rests.resting(gone, status("ready"), one.now)
    assert rest is not None and rest.times == 1, "once a round"
    one.runner.collector.offered(gone, offer_of(document_of(gone)), one.now)
    one.leave()


@pytest.mark.parametrize("elsewhere", [{"run": "q"}, {"round": 2}, {"declined": None}])
def test_what_a_node_declined_elsewhere_is_no_matter_here(tmp_path: Path, elsewhere: dict[str, Any]) -> None:
    one = Running(tmp_path, "ab").open()
    one.says("a", status("ready", **{"run": "r", "round": 1, "declined": True, **elsewhere}))
    assert one.runner.round.awaits(A)
    assert one.context.rests.resting(A, status("ready"), one.now) is None
    one.leave()


def test_a_node_that_declines_frees_its_place_on_the_wire(tmp_path: Path) -> None:
    one = Running(tmp_path, "ab", coordinator={"max_uploads": 1}).open()
    for node in (A, B):
        one.runner.collector.offered(node, offer_of(document_of(node)), one.now)
    assert [node for node, _ in one.sent()] == ["a"]
    one.says("a", status("ready", run="r", round=1, declined=True))
    assert [node for node, _ in one.sent()] == ["b"]
    assert one.runner.round.gone == {"a": "ready"}
    one.leave()


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (status("lost"), "lost the connection"),
        (status("lost", why="power"), "power"),
        (status("paused"), "paused"),
        (status("paused", why="too hot"), "too hot"),
    ],
)
def test_a_node_that_vanishes_keeps_its_place_for_a_while(tmp_path: Path, told: Any, why: str) -> None:
    one = Running(tmp_path, "ab", lost_grace_s=30).open()
    one.says("a", told)
    assert one.runner.round.lost == {"a": (100.0, why)}
    one.now += 29.9
    one.runner.tick(one.now)
    assert one.runner.round.awaits(A)
    one.now += 0.1
    one.runner.tick(one.now)
    assert one.runner.round.gone == {"a": why}
    one.says("a", status())
    assert one.invited == [] and one.runner.round.gone == {}, "invited with the next tick"
    one.runner.tick(one.now)
    assert one.invited == ["a"]
    one.leave()


def test_a_silent_node_is_one_that_vanished(tmp_path: Path) -> None:
    one = Running(tmp_path, "ab").open()
    one.roster.update(A, status(repeat_s=1.0), one.now)
    one.now += 10.0
    assert one.roster.look(one.now) == [A]
    one.runner.node_status(A, status(repeat_s=1.0), one.roster, one.now)
    assert one.runner.round.lost == {"a": (110.0, one.roster.silent[A])}
    one.leave()


@pytest.mark.parametrize(
    ("told", "joins"),
    [
        (status(), True),
        (status(samples=0, labels={}), False),
        (status(capabilities=[]), False),
        (status("init"), False),
        (status(declined=True), False),
    ],
)
def test_a_newcomer_takes_a_free_place_if_it_is_fit(tmp_path: Path, told: Any, joins: bool) -> None:
    one = Running(tmp_path, "abc").open()
    one.says("b", status("ready", run="r", round=1, declined=True))
    one.says("d", told)
    one.runner.tick(one.now)
    assert one.invited == (["d"] if joins else [])
    assert (D in one.runner.round.cohort) is joins is ("d" in one.opened()["cohort"])
    assert ("d" in one.opened()["shares"]) is joins
    one.leave()


def test_neither_who_rests_nor_who_is_not_known_takes_a_free_place(tmp_path: Path) -> None:
    one = Running(tmp_path, "abc").open()
    one.says("b", status("ready", run="r", round=1, declined=True))
    one.context.rests.declined(D, status(), "no", one.now)
    one.says("d", status())
    one.runner.node_status(NodeId("e"), status(), one.roster, one.now)
    one.runner.tick(one.now)
    assert one.invited == []
    one.leave()


def test_many_newcomers_are_journaled_together(tmp_path: Path) -> None:
    class Counting(Journal):
        rounds_opened = 0

        def open_round(self, *args: Any) -> None:
            self.rounds_opened += 1
            super().open_round(*args)

    journal = Counting(tmp_path / "state")
    one = Running(tmp_path, "abc", journal=journal).open()
    for node in "ab":
        one.says(node, status("ready", run="r", round=1, declined=True))
    before = journal.rounds_opened
    for node in "de":
        one.says(node, status())
    one.runner.tick(one.now)
    assert one.invited == ["d", "e"] and journal.rounds_opened == before + 1
    assert one.opened()["cohort"][-2:] == ["d", "e"]
    one.leave()


def test_a_node_may_be_asked_again(tmp_path: Path) -> None:
    one = Running(tmp_path, "abc").open()
    one.says("b", status("ready", run="r", round=1, declined=True))
    one.runner.ask_again(B)
    assert one.invited == ["b"] and one.runner.round.awaits(B)
    assert one.context.rests.resting(B, status("ready"), one.now) is None
    one.leave()


def test_an_update_ends_its_nodes_rest(tmp_path: Path) -> None:
    one = Running(tmp_path, "ab").open()
    one.context.rests.declined(A, status(), "no", one.now)
    one.send("a")
    one.work()
    assert one.context.rests.resting(A, status(), one.now) is None
    one.leave()


# -- over restarts


def again(tmp_path: Path, nodes: str = "abc", **run: Any) -> Running:
    return Running(tmp_path, nodes, **run)


def test_a_round_goes_on_with_what_was_decided_and_accepted(tmp_path: Path) -> None:
    before = Running(tmp_path, "abc", max_weight_ratio=2).open(last_norm=5.0)
    before.send("a")
    before.work()
    before.runner.collector.offered(B, offer_of(document_of("b"), codec="int8"), before.now)
    terms, cohort = before.runner.terms, before.runner.round.cohort
    before.leave()
    one = again(tmp_path, max_weight_ratio=1, clip=9)
    one.now = 500.0
    one.resume()
    assert one.runner.terms == terms, "decided once"
    round_ = one.runner.round
    assert (round_.phase, round_.cohort, set(round_.accepted)) == (Phase.COLLECTING, cohort, {"a"})
    assert list(round_.rejected) == ["b"]
    assert round_.deadline_at == 500.0 + terms.deadline_s, "with its full time"
    one.runner.begin(one.now)
    assert one.invited == []
    one.send("c")
    one.work()
    assert one.closed[0].result.n_contributors == 2
    one.leave()


def test_a_round_without_updates_is_open_after_a_restart(tmp_path: Path) -> None:
    Running(tmp_path, "abc").open().leave()
    one = again(tmp_path).resume()
    assert one.runner.round.phase is Phase.OPEN and one.announced == []
    one.leave()


def test_a_bound_of_the_model_holds_for_a_round_of_the_version_before(tmp_path: Path) -> None:
    before = Running(tmp_path, "abc").open()
    opened = before.opened()
    before.journal.open_round("r", 1, {**opened, "bounds": {**opened["bounds"], "max_bytes": 2**28}})
    before.leave()
    one = again(tmp_path).resume()
    assert one.runner.terms == before.runner.terms
    one.leave()


def sealed(tmp_path: Path) -> None:
    """A round of four that reached its deadline with the updates of a and b, and stopped before its end."""
    before = Running(tmp_path, "abcd").open()
    for node in "ab":
        before.send(node)
    before.work()
    before.now = before.runner.round.deadline_at
    before.runner.tick(before.now)
    assert before.opened()["sealed"]
    before.leave()


def test_a_round_that_had_begun_to_aggregate_keeps_exactly_its_updates(tmp_path: Path) -> None:
    sealed(tmp_path)
    one = again(tmp_path, "abcd").resume()
    one.runner.begin(one.now)
    assert one.runner.round.phase is Phase.AGGREGATING
    one.runner.collector.offered(C, offer_of(document_of("c")), one.now)
    one.work()
    (closed,) = one.closed
    assert list(closed.result.contributors) == ["a", "b"]
    assert [m.state for _, m in one.sent() if isinstance(m, Receipt)] == ["closed"]
    one.leave()


def test_an_update_that_the_disk_damaged_is_struck_out_and_had_again(tmp_path: Path) -> None:
    before = Running(tmp_path, "abc").open()
    for node in "ab":
        before.send(node)
    before.work()
    before.leave()
    one = again(tmp_path).resume(lambda node: node != "a")
    assert one.opened()["again"] == ["a"]
    assert [row.node for row in one.journal.accepted("r", 1)] == ["b"]
    assert set(one.runner.round.accepted) == {"b"} and one.runner.again == {"a"}
    one.runner.begin(one.now)
    assert one.invited == ["a"]
    one.leave()
    # It is waited for over a further restart, too.
    last = again(tmp_path).resume()
    assert last.runner.again == {"a"}
    last.send("a")
    last.work()
    assert last.runner.again == set() and set(last.runner.round.accepted) == {"a", "b"}
    last.leave()


def test_a_sealed_round_waits_for_what_was_damaged_and_for_nothing_else(tmp_path: Path) -> None:
    sealed(tmp_path)
    one = again(tmp_path, "abcd").resume(lambda node: node != "b")
    round_ = one.runner.round
    assert (tuple(round_.cohort), round_.reserve, round_.goal) == (("a", "b"), (), 2)
    assert round_.deadline_at > one.now
    one.runner.begin(one.now)
    assert one.invited == ["b"] and one.closed == []
    one.send("b")
    one.work()
    assert list(one.closed[0].result.contributors) == ["a", "b"]
    one.leave()


class Refusing(Journal):
    """Refuses to write rounds down, as a full disk does."""

    refuses = False

    def open_round(self, *args: Any) -> None:
        if self.refuses:
            raise StoreError("the journal refused a commit")
        super().open_round(*args)


def open_files(path: Path) -> list[Path]:
    links = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return [link for link in links if str(link).startswith(str(path))]


def test_a_round_that_cannot_be_journaled_is_not_opened_and_leaves_no_descriptor(tmp_path: Path) -> None:
    journal = Refusing(tmp_path / "state")
    one = Running(tmp_path, "abc", journal=journal)
    journal.refuses = True
    with pytest.raises(StoreError):
        one.open()
    assert open_files(spool_path(tmp_path / "state", "r", 1)) == []
    journal.refuses = False
    one.open().leave()


def test_no_deadline_passes_while_the_disk_refuses_what_came_before_it(tmp_path: Path) -> None:
    journal = Refusing(tmp_path / "state")
    one = Running(tmp_path, "abcd", journal=journal).open()
    for node in "ab":
        one.send(node)
        one.work()
    one.says("c", status("ready", run="r", round=1, declined=True))
    one.says("e", status())  # takes the place of c with the next tick
    journal.refuses = True
    one.now = one.runner.round.deadline_at
    with pytest.raises(StoreError):
        one.runner.tick(one.now)
    assert one.runner.round.collecting
    journal.refuses = False
    one.runner.tick(one.now)
    one.work()
    assert one.closed[0].result.missing["d"] == "no update in time"
    one.context.rests.missed(NodeId("d"), 10.0, one.now)
    assert one.context.rests.resting(NodeId("d"), status(), one.now) is not None, "its second miss"
    one.leave()


def test_a_damaged_update_that_cannot_be_struck_out_is_struck_out_later(tmp_path: Path) -> None:
    before = Running(tmp_path, "abc").open()
    before.send("a")
    before.work()
    before.leave()
    journal = Refusing(tmp_path / "state")
    journal.refuses = True
    one = Running(tmp_path, "abc", journal=journal)
    with pytest.raises(StoreError):
        one.resume(lambda _: False)
    assert open_files(spool_path(tmp_path / "state", "r", 1)) == []
    assert journal.counted("r", 1, A), "first it is written down that its node is to train again"
    journal.refuses = False
    one.resume(lambda _: False)
    assert not journal.counted("r", 1, A) and one.runner.again == {"a"}
    one.leave()


def test_how_many_send_at_once(tmp_path: Path) -> None:
    one = Running(tmp_path, "ab").open()
    assert one.runner.max_uploads == 4
    one.leave()
    free = {"max_uploads": None, "queue_messages": 10}
    other = Running(tmp_path, "ab", coordinator=free)
    other.context.server.model = other.context.server.model.model_copy(update={"bytes": 240_001})
    other.open()
    assert other.runner.max_uploads == 2  # three chunks each, three quarters of ten messages
    other.leave()
