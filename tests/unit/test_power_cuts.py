"""Power goes after any step of writing a file: what is found then is the old state or the new one.

Each case runs in a forked child whose calls to the system are counted; at call number `k` the child ends at
once, with no chance to tidy up. Of a write, only a first part has then happened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.stand_ins.power_cuts import (
    DEAD,
    DONE,
    Countdown,
    arm,
    every_cut,
)
from tests.unit.edge.transfer.transferred import DATA, DIGEST, download_all, offer

from apiary.blobs import BlobStore
from apiary.files import write_atomic
from apiary.wire.chunks import digest_of
from apiary_coordinator.updates.spool import Spool
from apiary_edge.transfer.outbox import Outbox


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    made: list[Path] = []

    def fresh() -> Path:
        made.append(tmp_path / str(len(made)))
        made[-1].mkdir()
        return made[-1]

    yield fresh


def test_write_atomic(folder: Callable[[], Path]) -> None:
    states: list[bytes] = []
    here: list[Path] = []

    def before() -> Callable[[], object]:
        path = folder() / "settings.json"
        path.write_bytes(b"the old state")
        here.append(path)
        return lambda: write_atomic(path, [b"the new ", b"state, longer"])

    for _ in every_cut(before):
        states.append(here[-1].read_bytes())
    assert set(states) == {b"the old state", b"the new state, longer"}
    assert states[0] == b"the old state" and states[-1] == b"the new state, longer"
    assert states == sorted(states, reverse=True)


def test_write_atomic_syncs_the_bytes_before_the_name_and_the_name_before_it_returns(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        countdown = Countdown(10_000)
        arm(countdown)
        write_atomic(tmp_path / "x", b"data")
        trace = countdown.trace.copy()
        with open(write_end, "w", closefd=False) as out:
            out.write("\n".join(f"{name} {what}" for name, what in trace))
        os._exit(0)
    os.close(write_end)
    with open(read_end) as got:  # noqa: PTH123 - a file descriptor
        lines = got.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    names = [line.split()[0] for line in lines]
    temporary = next(line.split()[1] for line in lines if line.startswith("replace"))
    synced = lines.index(f"fsync {temporary}")
    assert max(i for i, n in enumerate(names) if n == "write") < synced < names.index("replace")
    assert names.index("replace") < lines.index(f"fsync {tmp_path.name}")


def test_blob_store_put(folder: Callable[[], Path]) -> None:
    here: list[Path] = []

    def before() -> Callable[[], object]:
        here.append(folder())
        store = BlobStore(here[-1])
        return lambda: store.put(DATA)

    outcomes = []
    for code in every_cut(before):
        store = BlobStore(here[-1])
        found = DIGEST in store
        if found:
            assert store.read(DIGEST) == DATA
        assert [p.name for p in here[-1].iterdir()] == ([DIGEST] if found else [])
        outcomes.append(found)
        assert found or code == DEAD
    assert False in outcomes


def test_download(folder: Callable[[], Path]) -> None:
    here: list[Path] = []

    def before() -> Callable[[], object]:
        here.append(folder())
        store = BlobStore(here[-1])
        return lambda: download_all(store)

    outcomes = []
    for code in every_cut(before):
        store = BlobStore(here[-1])
        outcomes.append(DIGEST in store)
        assert outcomes[-1] or code == DEAD
        if not outcomes[-1]:
            assert list(here[-1].iterdir()) == []
            download_all(store)
        assert store.read(DIGEST) == DATA
    assert outcomes == sorted(outcomes)


def test_outbox_put_keeps_the_earlier_update_and_the_new_one_is_whole_or_not_there(
    folder: Callable[[], Path],
) -> None:
    here: list[Path] = []

    def before() -> Callable[[], object]:
        here.append(folder())
        outbox = Outbox(here[-1] / "outbox")
        for number, data in ((1, b"old" * 999), (2, DATA)):
            (here[-1] / "update.blob").write_bytes(data)
            if number == 1:
                outbox.put(here[-1] / "update.blob", offer(data, 1))
        return lambda: outbox.put(here[-1] / "update.blob", offer(DATA, 2))

    outcomes = []
    for code in every_cut(before):
        outbox = Outbox(here[-1] / "outbox")
        rounds = [o.round for o in outbox.waiting()]
        assert rounds in ([1], [1, 2])
        assert rounds == [1, 2] or code == DEAD
        for waiting in outbox.waiting():
            data = outbox.read_part(
                digest_of(DATA if waiting.round == 2 else b"old" * 999), 0, waiting.update.bytes
            )
            assert data == (DATA if waiting.round == 2 else b"old" * 999)
        # Nothing that no offer names is left behind.
        assert len(list((here[-1] / "outbox").iterdir())) == 2 * len(rounds)
        outcomes.append(len(rounds))
    assert outcomes == sorted(outcomes) and set(outcomes) == {1, 2}


def test_an_answered_update_is_offered_once_more_or_never_and_its_round_is_not_trained_again(
    folder: Callable[[], Path],
) -> None:
    """As the service does it: done first, then removed."""
    here: list[Path] = []

    def before() -> Callable[[], object]:
        here.append(folder())
        outbox = Outbox(here[-1] / "outbox")
        (here[-1] / "update.blob").write_bytes(DATA)
        outbox.put(here[-1] / "update.blob", offer(DATA, 3))
        outbox.set_done("r", 2)

        def act() -> None:
            outbox.set_done("r", 3)
            outbox.remove(DIGEST)

        return act

    outcomes = set()
    for code in every_cut(before):
        outbox = Outbox(here[-1] / "outbox")
        waiting, done = [o.round for o in outbox.waiting()], outbox.done()
        assert done in (("r", 2), ("r", 3))
        assert (waiting, done) != ([], ("r", 2)), "an update was lost without being done"
        outcomes.add((tuple(waiting), done))
        if code == DONE:
            assert (waiting, done) == ([], ("r", 3))
    assert len(outcomes) == 3


def test_spool_what_was_synced_before_stays(folder: Callable[[], Path]) -> None:
    here: list[Path] = []
    first, second = b"first " * 1000, b"second" * 5000

    def before() -> Callable[[], object]:
        here.append(folder() / "r-1.spool")
        spool = Spool(here[-1], len(second))
        spool.write(spool.allocate(1), 0, first)
        spool.sync()

        def act() -> None:
            slot = spool.allocate(2)
            for start in range(0, len(second), 10_000):
                spool.write(slot, start, second[start : start + 10_000])
            spool.sync()

        return act

    for _ in every_cut(before):
        spool = Spool(here[-1], len(second))
        with spool.view(0, len(first)) as view:
            assert view == first
        # A slot given after the restart touches nothing that was journaled before it.
        slot = spool.allocate(3)
        assert slot >= 8192
        spool.write(slot, 0, second)
        with spool.view(0, len(first)) as view:
            assert view == first
        spool.close()
