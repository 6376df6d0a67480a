from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.stand_ins.inline_worker import InlineWorker
from tests.stand_ins.slow_worker import SlowWorker

from apiary_coordinator.worker import Done, Lane, LaneWorker, ThreadWorker, Worker


def ignore(_: Any) -> None:
    pass


def until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def threaded() -> Iterator[tuple[ThreadWorker, list[int]]]:
    woken: list[int] = []
    worker = ThreadWorker("test-worker", lambda: woken.append(threading.get_ident()))
    yield worker, woken
    worker.close(5.0)


@pytest.fixture(params=["inline", "thread", "slow"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    ticks = itertools.count()
    makers: dict[str, Callable[[], Worker]] = {
        "inline": InlineWorker,
        "thread": lambda: ThreadWorker("test", lambda: None),
        "slow": lambda: SlowWorker(lambda: next(ticks) / 10, seed=3),
    }
    made = makers[request.param]()
    yield made
    made.close(5.0)


def collected(worker: Worker, count: int) -> list[Done]:
    done: list[Done] = []
    end = time.monotonic() + 60
    while len(done) < count:
        assert time.monotonic() < end
        done += worker.collect()
    return done


def test_jobs_run_in_order_and_give_their_values(worker: Worker) -> None:
    ran: list[int] = []

    def square(i: int) -> int:
        ran.append(i)
        return i * i

    for i in range(50):
        worker.submit(partial(square, i), ignore)
    done = collected(worker, 50)
    assert ran == list(range(50))
    assert [d.value for d in done] == [i * i for i in range(50)]
    assert all(d.then is ignore and d.error is None for d in done)
    assert worker.pending == 0


def test_an_error_comes_back_with_its_job_and_the_next_one_runs(worker: Worker) -> None:
    def fail() -> None:
        raise OSError("no room")

    worker.submit(fail, ignore)
    worker.submit(lambda: 7, ignore)
    first, second = collected(worker, 2)
    assert isinstance(first.error, OSError) and first.job is fail
    assert (second.value, second.error) == (7, None)


def test_each_job_that_ended_shows_that_the_worker_is_not_stuck(worker: Worker) -> None:
    assert (worker.pending, worker.ended) == (0, 0)
    for _ in range(3):
        worker.submit(lambda: 1, ignore)
    assert worker.pending == 3
    collected(worker, 3)
    until(lambda: worker.ended == 3)
    assert worker.pending == 0


def test_the_jobs_of_an_owner_are_known_by_their_lane(worker: Worker) -> None:
    lane = Lane()
    LaneWorker(worker, lane).submit(lambda: 1, ignore)
    worker.submit(lambda: 2, ignore)
    assert [(d.lane, d.value) for d in collected(worker, 2)] == [(lane, 1), (None, 2)]
    assert not lane.left


def test_then_is_left_to_the_collector(worker: Worker) -> None:
    got: list[int] = []
    worker.submit(lambda: 1, got.append)
    (done,) = collected(worker, 1)
    assert got == []
    done.then(done.value)
    assert got == [1]


def test_a_slow_job_does_not_hold_up_whoever_collects(threaded: tuple[ThreadWorker, list[int]]) -> None:
    worker, woken = threaded
    go = threading.Event()
    worker.submit(lambda: go.wait(60), ignore)
    assert worker.collect() == []  # it would have waited for the job's end otherwise
    assert (worker.pending, woken) == (1, [])
    go.set()
    until(lambda: bool(woken))
    assert woken != [threading.get_ident()]
    assert [d.value for d in worker.collect()] == [True]


def test_close_lets_the_running_job_end(threaded: tuple[ThreadWorker, list[int]]) -> None:
    worker, _ = threaded
    ended: list[bool] = []

    def slow() -> None:
        time.sleep(0.1)
        ended.append(True)

    worker.submit(slow, ignore)
    worker.close(5.0)
    assert ended == [True]


def test_close_waits_no_longer_than_allowed() -> None:
    worker = ThreadWorker("test", lambda: None)
    go = threading.Event()
    ended: list[bool] = []
    worker.submit(lambda: ended.append(go.wait(60)), ignore)
    worker.close(0.1)
    assert ended == [], "the job works on"
    go.set()
