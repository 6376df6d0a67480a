"""What a party says is on its disk before it says it, bytes, sync, commit, then the word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.fleet.harness import MakeFleet
from tests.stand_ins.memory_bus import LinkFault

from apiary.bus.outlet import Outlet
from apiary.errors import StoreError
from apiary.wire.messages import Announcement, Receipt
from apiary_coordinator.journal import AcceptedRow, Journal
from apiary_coordinator.updates.spool import Spool
from apiary_edge.transfer.outbox import Outbox

Step = tuple[str, Any]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps of all parties in their order; each is done as ever."""
    noted: list[Step] = []

    def note(kind: type[Any], name: str, of: Callable[..., Any]) -> None:
        real = getattr(kind, name)

        def noting(self: Any, *args: Any, **more: Any) -> Any:
            done = real(self, *args, **more)
            noted.append((f"{kind.__name__}.{name}", of(*args, **more)))
            return done

        monkeypatch.setattr(kind, name, noting)

    note(Spool, "write", lambda slot, offset, data: slot)
    note(Spool, "sync", lambda: None)
    note(Journal, "accept", lambda run, number, rows: (number, rows))
    note(Journal, "reject", lambda run, number, node, why: (number, node))
    note(Journal, "open_round", lambda run, number, opened: number)
    note(Outbox, "set_done", lambda run, number: number)
    note(Outbox, "remove", lambda digest: digest)
    real = Outlet.send

    def send(self: Outlet, message: Any, node: Any = None) -> bool:
        # Before it is sent: what it tells must be so already.
        noted.append(("said", (message, node)))
        return real(self, message, node)

    monkeypatch.setattr(Outlet, "send", send)
    return noted


def first(steps: list[Step], after: int, found: Callable[[Step], bool]) -> int:
    """The index of the first such step from `after` on; the end where there is none."""
    return next((i for i in range(after, len(steps)) if found(steps[i])), len(steps))


def accepted(step: Step) -> bool:
    return step[0] == "said" and isinstance(step[1][0], Receipt) and step[1][0].state == "accepted"


def row_of(step: Step, node: str, number: int) -> AcceptedRow | None:
    if step[0] != "Journal.accept" or step[1][0] != number:
        return None
    return next((row for row in step[1][1] if row.node == node), None)


def test_an_update_is_synced_then_committed_then_receipted(make_fleet: MakeFleet, steps: list[Step]) -> None:
    """Power may go between any two of them: nothing that was promised is lost."""
    fleet = make_fleet(5)
    fleet.run()
    receipts = [i for i, step in enumerate(steps) if accepted(step)]
    assert len(receipts) == 15
    for at in receipts:
        receipt, node = steps[at][1]
        commit = first(steps, 0, lambda s: row_of(s, node, receipt.round) is not None)  # noqa: B023
        assert commit < at, f"{node} was told of an update that is not in the journal"
        row = row_of(steps[commit], node, receipt.round)
        assert row is not None
        written = max(i for i in range(commit) if steps[i] == ("Spool.write", row.slot))
        synced = first(steps, written, lambda s: s[0] == "Spool.sync")
        assert synced < commit, f"the update of {node} was committed before its bytes were synced"


def test_a_round_is_journaled_before_it_is_announced(make_fleet: MakeFleet, steps: list[Step]) -> None:
    fleet = make_fleet(2)
    fleet.run()
    for number in (1, 2, 3):
        opened = first(steps, 0, lambda s: s == ("Journal.open_round", number))  # noqa: B023
        told = first(
            steps,
            0,
            lambda s: s[0] == "said" and isinstance(s[1][0], Announcement) and s[1][0].round == number,  # noqa: B023
        )
        assert opened < told < len(steps)


def test_a_node_remembers_its_round_before_it_lets_go_of_the_update(
    make_fleet: MakeFleet, steps: list[Step]
) -> None:
    """Between the two it would be without its update, and train the round again."""
    fleet = make_fleet(1)
    fleet.run()
    removed = [i for i, step in enumerate(steps) if step[0] == "Outbox.remove"]
    done = [i for i, step in enumerate(steps) if step[0] == "Outbox.set_done"]
    assert len(removed) == len(done) == 3
    assert all(d < r for d, r in zip(done, removed, strict=True))


def test_an_outbox_lets_go_only_of_what_was_answered(make_fleet: MakeFleet, steps: list[Step]) -> None:
    fleet = make_fleet(4)
    fleet.run()
    answered = {step[1][0].digest for step in steps if accepted(step)}
    assert {step[1] for step in steps if step[0] == "Outbox.remove"} == answered


def test_who_did_not_hear_a_receipt_is_told_at_its_next_offer_while_the_round_is_open(
    make_fleet: MakeFleet, steps: list[Step]
) -> None:
    """Not only once the round is over: until then the node holds its update, and can do nothing else."""
    fleet = make_fleet(2, rounds=1)
    fleet.trainings["pi-01"].seconds = 30.0
    fleet.broker.script(LinkFault("drop", "apiary/+/node/pi-00/receipt", to="pi-00", times=1))
    fleet.run()
    told = [
        s[1][0].state for s in steps if s[0] == "said" and s[1][1] == "pi-00" and isinstance(s[1][0], Receipt)
    ]
    assert told == ["accepted", "duplicate"]
    done = first(steps, 0, lambda s: s[0] == "Outbox.set_done")
    slow = first(steps, 0, lambda s: accepted(s) and s[1][1] == "pi-01")
    assert done < slow
    assert sorted(fleet.results()[0]["contributors"]) == ["pi-00", "pi-01"]


BAD = "pi-01"


def rejected(step: Step) -> bool:
    return step[0] == "said" and isinstance(step[1][0], Receipt) and step[1][0].state == "rejected"


def test_a_refusal_is_committed_then_receipted_also_where_the_disk_refuses_it_at_first(
    make_fleet: MakeFleet, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that heard of its refusal drops its update: after a restart it could not be told again."""
    fleet = make_fleet(3, rounds=1)
    fleet.trainings[BAD].spoil = lambda document: document[:-1]
    real, left = Journal.reject, [3]

    def reject(journal: Journal, *args: Any) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise StoreError("the journal refused a commit: database or disk is full")
        real(journal, *args)

    monkeypatch.setattr(Journal, "reject", reject)
    fleet.run()
    assert left == [0]
    (commit,) = [i for i, step in enumerate(steps) if step == ("Journal.reject", (1, BAD))]
    said = [i for i, step in enumerate(steps) if rejected(step)]
    assert said and commit < said[0], "the node was told of a refusal that is not in the journal"
    (result,) = fleet.results()
    assert list(result["rejected"]) == [BAD] and sorted(result["contributors"]) == ["pi-00", "pi-02"]


def test_a_refusal_is_known_after_a_restart_and_its_node_not_waited_for(
    make_fleet: MakeFleet, steps: list[Step]
) -> None:
    fleet = make_fleet(4, rounds=2, cohort_size=3, min_nodes=3, deadline_s=600)
    runner = fleet.until(lambda: fleet.runner)
    first_of_all, slow = runner.round.cohort[0], runner.round.cohort[1]
    fleet.trainings[first_of_all].spoil = lambda document: document[:-1]
    fleet.trainings[slow].seconds = 100.0
    why = fleet.until(lambda: fleet.runner and fleet.runner.round.rejected.get(first_of_all))
    cohort = fleet.runner.round.cohort if fleet.runner else ()
    assert len(cohort) == 4, "another has its place"
    fleet.kill_coordinator()
    fleet.start_coordinator()
    resumed = fleet.until(lambda: fleet.runner)
    assert resumed.round.rejected == {first_of_all: why}
    assert resumed.round.cohort == cohort and not resumed.round.awaits(first_of_all)
    fleet.trainings[first_of_all].spoil = lambda document: document
    fleet.run()
    result = fleet.results()[0]
    assert result["rejected"] == {first_of_all: why} and len(result["contributors"]) == 3
    assert result["missing"] == {}
    assert first_of_all not in result["contributors"]
    assert [s for s in steps if s[0] == "Journal.reject"] == [("Journal.reject", (1, first_of_all))]
