"""Power goes after any step of writing a file: what is found then is the old state or the new one.

Each case runs in a forked child whose calls to the system are counted; at call number `k` the child ends at
once, with no chance to tidy up. Of a write, only a first part has then happened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from apiary.blobs import BlobStore
from apiary.files import write_atomic
from apiary.wire.chunks import count, digest_of, encode, span
from apiary.wire.messages import BlobRef, Offer, TrainMetrics
from apiary_coordinator.updates.spool import Spool
from apiary_edge.transfer.outbox import Outbox

CALLS = (
    "fsync",
    "fdatasync",
    "replace",
    "rename",
    "unlink",
    "pwrite",
    "posix_fallocate",
    "open",
    "close",
    "mkdir",
)
DEAD, DONE, BROKEN = 9, 0, 1


class Countdown:
    """Ends the process before call number `left`; the trace of the calls lets a test look at their order."""

    def __init__(self, left: int):
        self.left = left
        self.trace: list[tuple[str, str]] = []

    def step(self, name: str, what: str) -> None:
        if self.left == 0:
            os._exit(DEAD)
        self.left -= 1
        self.trace.append((name, what))


class TornFile:
    """A file whose writes are two steps."""

    def __init__(self, file: IO[bytes], countdown: Countdown):
        self._file = file
        self._countdown = countdown

    def write(self, data: bytes | memoryview) -> int:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self._countdown.step("write", str(len(part)))
            self._file.write(part)
            self._file.flush()
        return len(data)

    def __enter__(self) -> TornFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def arm(countdown: Countdown) -> None:
    """Count every call that changes the disk. For a child only: nothing is put back."""
    for name in CALLS:
        real = getattr(os, name)

        def counted(*args: Any, _real: Any = real, _name: str = name, **more: Any) -> Any:
            countdown.step(_name, _of(args[0]))
            if _name == "pwrite":
                fd, data, offset = args
                half = len(data) // 2
                _real(fd, data[:half], offset)
                countdown.step(_name, "rest")
                return half + _real(fd, data[half:], offset + half)
            return _real(*args, **more)

        setattr(os, name, counted)
    fdopen: Any = os.fdopen
    os.fdopen = lambda *args, **more: TornFile(fdopen(*args, **more), countdown)  # type: ignore[assignment]  # in a child only


def _of(what: object) -> str:
    if isinstance(what, int):
        try:
            return Path(f"/proc/self/fd/{what}").readlink().name
        except OSError:
            return str(what)
    return Path(str(what)).name


def cut_at(k: int, act: Callable[[], object]) -> int:
    """Run `act` in a child that dies at call `k`; how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            arm(Countdown(k))
            act()
        except BaseException:
            os._exit(BROKEN)
        os._exit(DONE)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def every_cut(before: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """Cut at the first call, then at the second, ... until nothing is left to cut; `before` sets up anew."""
    k = 0
    while True:
        code = cut_at(k, before())
        assert code in (DEAD, DONE), f"the child broke at call {k}"
        yield code
        if code == DONE:
            assert k > 0
            return
        k += 1
        assert k < 500


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


DATA = bytes(range(251)) * 1500
DIGEST = digest_of(DATA)


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


def download_all(store: BlobStore) -> None:
    download = store.begin(DIGEST, len(DATA))
    for i in range(count(len(DATA))):
        start, end = span(i, len(DATA))
        download.accept(i, encode(DIGEST, i, DATA[start:end]))
    if not download.finish():
        raise AssertionError


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


def offer(data: bytes, number: int) -> Offer:
    ref = BlobRef(digest=digest_of(data), bytes=len(data))
    return Offer(
        run="r", round=number, update=ref, codec="raw_f32", samples=5, metrics=TrainMetrics(loss=1.0)
    )


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
        spool = Spool(here[-1])
        spool.write(spool.allocate(len(first)), 0, first)
        spool.sync()

        def act() -> None:
            slot = spool.allocate(len(second))
            for start in range(0, len(second), 10_000):
                spool.write(slot, start, second[start : start + 10_000])
            spool.sync()

        return act

    for _ in every_cut(before):
        spool = Spool(here[-1])
        with spool.view(0, len(first)) as view:
            assert view == first
        # A slot given after the restart touches nothing that was journaled before it.
        slot = spool.allocate(len(second))
        assert slot >= 8192
        spool.write(slot, 0, second)
        with spool.view(0, len(first)) as view:
            assert view == first
        spool.close()
