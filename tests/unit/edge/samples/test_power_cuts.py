"""The sample store when power goes at any step, when the disk is really full, and when it is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.places import ROOT
from tests.stand_ins.power_cuts import BROKEN, DEAD, DONE, Countdown, arm
from tests.unit.edge.samples.parts import picture

from apiary.errors import StoreError
from apiary.learn.cache import ArrayCache
from apiary.settings import StoreSettings
from apiary_edge.samples import schema
from apiary_edge.samples.model import Added, Incoming, SampleId
from apiary_edge.samples.store import SampleStore

ROOMY = StoreSettings(min_free_mb=0)
PICTURES = [picture(seed) for seed in range(6)]


def opened(folder: Path, bounds: StoreSettings = ROOMY) -> SampleStore:
    return SampleStore(folder / "samples", folder / "cache", bounds, time.time)


def arm_sql(countdown: Countdown) -> None:
    """Count each SQL statement as well, the transaction's beginning and end among them."""
    real = schema.connect

    def connect(file: Path) -> sqlite3.Connection:
        db = real(file)
        db.set_trace_callback(lambda text: countdown.step("sql", text.strip()[:20]))
        return db

    schema.connect = connect


def every_cut(tmp_path: Path, template: Path, act: Callable[[SampleStore], object]) -> list[Path]:
    """`act` on copies of a store, each in a child that dies one step later; the folders that are left."""
    left: list[Path] = []
    k = 0
    while True:
        here = tmp_path / str(k)
        shutil.copytree(template, here)
        pid = os.fork()
        if pid == 0:
            try:
                countdown = Countdown(k)
                arm_sql(countdown)
                store = opened(here)
                # Opening is cut as well, but only in its SQL: its folders are there.
                arm(countdown)
                act(store)
            except BaseException:
                os._exit(BROKEN)
            os._exit(DONE)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (DEAD, DONE), f"the child broke at step {k}"
        left.append(here)
        if code == DONE:
            assert k > 5
            return left
        k += 1
        assert k < 400


def check(folder: Path) -> list[SampleId]:
    """Open it as after the power cut: rows and files agree, and every file is whole. The ids there are."""
    store = opened(folder)
    store.reconcile()
    ids = [s.id for s in store.page().samples]
    files = sorted(p.name for p in (folder / "samples" / "pictures").rglob("*") if not p.is_dir())
    assert [f.split(".")[0] for f in files] == sorted(ids)
    for sample in ids:
        path = store.path(sample)
        assert path is not None
        import hashlib

        assert hashlib.sha256(path.read_bytes()).hexdigest() == sample
    counts = store.counts()
    assert counts.total == len(ids) and counts.bytes == sum(s.bytes for s in store.page().samples)
    store.close()
    return ids


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: hundreds of copies, each synced."""
    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder in it
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A store with three pictures, two of them labelled, whose journal is in its file."""
    folder = tmp_path / "template"
    store = opened(folder)
    outcomes = list(store.add_many(Incoming(data, "camera") for data in PICTURES[:3]))
    ids = [o.id for o in outcomes if isinstance(o, Added)]
    store.label(ids[:2], "cat", "ann")
    store.close()
    return folder


def test_adding_leaves_the_picture_whole_or_not_at_all(tmp_path: Path, template: Path) -> None:
    before = set(check(template))
    found = []
    for folder in every_cut(tmp_path, template, lambda s: s.add(Incoming(PICTURES[3], "camera"))):
        ids = set(check(folder))
        assert before <= ids and len(ids) in (3, 4)
        found.append(len(ids))
    assert found == sorted(found) and set(found) == {3, 4}


def test_a_batch_is_there_as_a_whole_or_not_at_all(tmp_path: Path, template: Path) -> None:
    found = [
        len(check(folder))
        for folder in every_cut(
            tmp_path,
            template,
            lambda s: list(s.add_many(Incoming(d, "import", "cat") for d in PICTURES[3:5])),
        )
    ]
    assert found == sorted(found) and set(found) == {3, 5}


def test_adding_to_a_full_store_evicts_one_for_one(tmp_path: Path, template: Path) -> None:
    def act(store: SampleStore) -> None:
        store.bounds = StoreSettings(max_count=3, min_free_mb=0)
        assert isinstance(store.add(Incoming(PICTURES[3], "camera")), Added)

    sets = [frozenset(check(folder)) for folder in every_cut(tmp_path, template, act)]
    assert {len(s) for s in sets} == {3} and len(set(sets)) == 2


def test_a_deletion_that_was_begun_leaves_nothing_of_the_picture(tmp_path: Path, template: Path) -> None:
    sample = check(template)[0]
    ArrayCache(template / "cache", 10).put("features-abc", sample, np.zeros(5, np.float32))
    gone = []
    for folder in every_cut(tmp_path, template, lambda s: s.delete([sample])):
        gone.append(sample not in check(folder))
        traces = [p for p in folder.rglob("*") if sample in p.name]
        assert not traces if gone[-1] else len(traces) == 2
    assert gone == sorted(gone) and set(gone) == {False, True}


def test_labels_and_their_undo_are_there_or_not(tmp_path: Path, template: Path) -> None:
    ids = check(template)
    found = []
    for folder in every_cut(tmp_path, template, lambda s: s.label(ids, "dog", "ann")):
        check(folder)
        store = opened(folder)
        now = dict(store.counts().labelled)
        assert now in ({"cat": 2}, {"dog": 3})
        found.append(now)
        store.undo()
        assert store.counts().labelled == ({} if now == {"cat": 2} else {"cat": 2})
        store.close()
    assert {"cat": 2} in found and {"dog": 3} in found


def test_making_the_store_can_be_cut_anywhere(tmp_path: Path) -> None:
    for k in range(60):
        folder = tmp_path / str(k)
        pid = os.fork()
        if pid == 0:
            countdown = Countdown(k)
            real: Any = sqlite3.connect

            def connect(*args: Any, _real: Any = real, _countdown: Countdown = countdown, **more: Any) -> Any:
                db = _real(*args, **more)
                db.set_trace_callback(lambda text: _countdown.step("sql", text[:20]))
                return db

            sqlite3.connect = connect
            opened(folder)
            os._exit(DONE)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        store = opened(folder)
        assert isinstance(store.add(Incoming(PICTURES[0], "camera")), Added)
        store.close()
        if code == DONE:
            assert k > 10
            return
        assert code == DEAD
    pytest.fail("it never came to its end")


def test_the_file_is_synced_before_its_row_is_committed(tmp_path: Path, template: Path) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        countdown = Countdown(10_000)
        arm_sql(countdown)
        store = opened(template)
        arm(countdown)
        store.add(Incoming(PICTURES[3], "camera"))
        os.write(
            write_end, "\n".join(name if name != "sql" else what for name, what in countdown.trace).encode()
        )
        os._exit(0)
    os.close(write_end)
    with open(read_end) as got:  # noqa: PTH123 - a file descriptor
        steps = got.read().splitlines()
    os.waitpid(pid, 0)
    renamed = steps.index("replace")
    assert "fsync" in steps[:renamed], "the bytes before the name"
    assert "fsync" in steps[renamed : steps.index("COMMIT", renamed)], "the name before the row"


def test_killed_again_and_again_while_it_imports_and_labels(tmp_path: Path) -> None:
    """`kill -9` at random instants: what was answered is there afterwards, and rows and files agree."""
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from apiary_edge.samples.model import Incoming
from tests.unit.edge.samples.parts import ROOMY, opened, picture
store = opened(Path({str(tmp_path)!r}))
store.reconcile()
for i in range(10**6):
    start = int(sys.argv[1]) + 3 * i
    for outcome in store.add_many(Incoming(picture(start + j), "camera") for j in range(3)):
        print("added", outcome.id, flush=True)
    store.label([outcome.id], "cat", "ann")
    print("label", outcome.id, flush=True)
"""
    rng = random.Random(4)
    added: set[str] = set()
    labelled: set[str] = set()
    for turn in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(turn * 1000)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.1))
        child.send_signal(signal.SIGKILL)
        for line in [first, *child.stdout.read().splitlines()]:
            if len(line.split()) == 2 and len(line.split()[1]) == 64:
                (added if line.startswith("added") else labelled).add(line.split()[1])
        child.wait()
        store = opened(tmp_path)
        store.reconcile()
        there = {s.id for offset in range(0, 3000, 200) for s in store.page(limit=200, offset=offset).samples}
        assert added <= there
        assert labelled <= {s.digest for s in [*store.training(), *store.held_out()]}
        assert all((store.path(i) or Path()).is_file() for i in there)
        store.close()
    assert len(added) > 20 and len(labelled) > 5


FULL_DISK = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from apiary.errors import StoreError
from apiary_edge.samples.model import Incoming
from tests.unit.edge.samples.parts import ROOMY, opened, picture
folder = Path(sys.argv[1])
store = opened(folder, ROOMY.model_copy(update={{"min_free_mb": -(10**6)}}))
added = []
said = ""
for i in range(200):
    try:
        outcome = store.add(Incoming(picture(i, "PNG", (120, 100)), "camera"))
        added.append(outcome.id)
    except StoreError as e:
        said = str(e)
        break
assert "the disk is full" in said, said
assert len(added) > 5
try:
    store.label(added[:3], "cat", "ann")
    print("labelled while full")
except StoreError as e:
    print("not labelled:", e)
store.delete(added[3:6])
assert store.label(added[:3], "cat", "ann") >= 0
assert store.counts().labelled == {{"cat": 3}}
outcome = store.add(Incoming(picture(1000), "camera"))
assert type(outcome).__name__ == "Added", outcome
assert store.reconcile() == 0
files = [p for p in (folder / "samples" / "pictures").rglob("*") if p.is_file()]
assert len(files) == store.counts().total == len(added) - 3 + 1
print("went on")
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=3m tmpfs {disk} && exec {sys.executable} - {disk}"
    try:
        ran = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
            input=FULL_DISK,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if "unshare" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"this machine lets nobody mount a small disk: {ran.stderr.strip()[:100]}")
    assert ran.returncode == 0 and "went on" in ran.stdout, ran.stdout + ran.stderr


def test_a_folder_of_pictures_that_cannot_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """As after a file system check that made a file of it; the node ended with a traceback."""
    store = SampleStore(tmp_path / "samples", None, ROOMY, time.time)
    folder = tmp_path / "samples" / "pictures" / "7f"
    folder.rmdir()
    folder.write_bytes(b"lost and found")
    with pytest.raises(StoreError, match=r"pictures cannot be looked through: .*7f: Not a directory"):
        store.reconcile()
    store.close()
