"""A worker that hangs while the loop goes on: said, measured, and in the end given up."""

from __future__ import annotations

import pytest
from tests.fleet.harness import Fleet, MakeFleet
from tests.stand_ins.slow_worker import SlowWorker

from apiary.errors import ApiaryError
from apiary_coordinator.monitoring import watchdog
from apiary_coordinator.monitoring.watchdog import GIVE_UP_S, WARN_S, Watchdog
from apiary_coordinator.worker import Done


def watchdog_of(fleet: Fleet) -> Watchdog:
    assert fleet.coordinator is not None
    (watchdog,) = [f for f in fleet.coordinator.features if isinstance(f, Watchdog)]
    return watchdog


def pass_(fleet: Fleet, seconds: float) -> None:
    """In large steps; nodes and coordinator each have their turn."""
    until = fleet.broker.now + seconds
    while fleet.broker.now < until:
        fleet.broker.now += 30
        fleet.turn()


def test_a_job_that_does_not_end(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(2, stay=True, more={"publish": {"after_run": ["directory"], "timeout_s": 1000}})
    pass_(fleet, WARN_S + 60)
    assert watchdog_of(fleet).busy_s < WARN_S / 2
    assert not [r for r in caplog.records if r.name == watchdog.__name__]

    def hangs(worker: SlowWorker) -> list[Done]:
        return []

    monkeypatch.setattr(SlowWorker, "collect", hangs)
    fleet.ask("run.start", name="run")
    began = fleet.broker.now
    pass_(fleet, WARN_S + 60)
    assert WARN_S < watchdog_of(fleet).busy_s < WARN_S + 200
    (said,) = [m for m in caplog.messages if m.startswith("the worker has been at one job for 15 minutes")]
    assert said.endswith("at 2.3 hours the coordinator ends, to be started again")
    with pytest.raises(ApiaryError, match=r"at one job for 2\.3 hours"):
        pass_(fleet, 2 * GIVE_UP_S)
    # A job may have been under way when the worker began to hang: a result comes some steps late.
    assert GIVE_UP_S + 940 <= fleet.broker.now - began < GIVE_UP_S + 1300


def test_many_jobs_that_end_are_no_reason(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(2, stay=True)
    monkeypatch.setattr(SlowWorker, "pending", property(lambda worker: 5))
    for _ in range(20):
        assert fleet.coordinator is not None
        fleet.coordinator.resources.worker.submit(lambda: None, lambda _: None)
        pass_(fleet, WARN_S / 2)
    assert watchdog_of(fleet).busy_s < WARN_S
