"""The child that tests a release on the node's own held-out pictures, with real models and programs."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.places import COLOURS
from tests.stand_ins.eim_program import write_program

from apiary.errors import ModelError
from apiary.settings import StoreSettings
from apiary.wire.messages import BlobRef, PictureShape, Release
from apiary_edge.releases.compatibility import Host, check_file, why_unfit
from apiary_edge.releases.job import TrialJob, TrialModel
from apiary_edge.releases.selftest import run
from apiary_edge.releases.selftest_process import TrialProcess
from apiary_edge.releases.state import TrialCrashed, TrialDone
from apiary_edge.samples.model import Incoming
from apiary_edge.samples.store import SampleStore

LABELS = {"red": (250, 20, 10), "green": (0, 220, 30), "blue": (10, 20, 240)}
SHAPE = PictureShape(height=8, width=10, channels=3)
runs_here = pytest.mark.skipif(platform.machine() != "x86_64", reason="the stand-in program is for x86_64")


def model(file: Path = COLOURS / "model.tflite", **more: Any) -> TrialModel:
    told: dict[str, Any] = {"kind": "tflite", "file": file, "labels": list(LABELS), "input": SHAPE, **more}
    return TrialModel(**told)


def program(folder: Path, **config: Any) -> TrialModel:
    told: dict[str, Any] = {
        "labels": list(LABELS),
        "width": 10,
        "height": 8,
        "tflite": str(COLOURS / "model.tflite"),
    }
    return model(write_program(folder / "model.eim", **told | config), kind="eim")


def job(folder: Path, which: TrialModel | None = None, **more: Any) -> TrialJob:
    told: dict[str, Any] = {
        "model": which or model(),
        "before": None,
        "store": None,
        "data_dir": folder / "pictures",
        "folder_share": 1.0,
        "max_pictures": 200,
        "threads": 1,
        "out": folder / "result.json",
        **more,
    }
    return TrialJob(**told)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for label, colour in LABELS.items():
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(5):
            image = Image.new("RGB", (20 + i, 10), (colour[0], colour[1], colour[2]))
            image.save(tmp_path / "pictures" / label / f"{i}.png")
    return tmp_path


def test_accuracy_and_time_on_the_nodes_own_pictures(here: Path) -> None:
    found = run(job(here))
    assert (found.pictures, found.right, found.right_before, found.failed) == (15, 15, None, None)
    assert found.inference_ms > 0


def test_the_present_release_is_asked_about_the_same_pictures(here: Path) -> None:
    mixed = model(labels=["blue", "red", "green"])
    found = run(job(here, mixed, before=model()))
    assert (found.right, found.right_before, found.pictures) == (0, 15, 15)
    found = run(job(here, model(), before=model(labels=["blue", "red", "green"])))
    assert (found.right, found.right_before) == (15, 0)
    found = run(job(here, before=model(labels=["other", "red", "green"])))
    assert found.right_before is None, "it knows other labels: no comparison"
    found = run(job(here, before=model(here / "gone.tflite")))
    assert (found.right, found.right_before) == (15, None)


def test_only_pictures_that_never_trained_count(here: Path) -> None:
    """Of a folder those in the share that training keeps for validation, of the store the held-out ones."""
    import hashlib

    from apiary.learn.fit import split

    files = sorted((here / "pictures").rglob("*.png"))
    held = split(tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in files), 0.4)[1]
    assert run(job(here, folder_share=0.4)).pictures == len(held) > 0
    store = SampleStore(here / "store", None, StoreSettings(), time.time)
    for f in files:
        store.add(Incoming(f.read_bytes(), "import", f.parent.name))
    kept = len(store.held_out())
    store.close()
    assert run(job(here, store=here / "store", data_dir=None)).pictures == kept > 0


def test_a_node_without_pictures_still_sees_whether_it_answers(tmp_path: Path) -> None:
    found = run(job(tmp_path, data_dir=None))
    assert (found.pictures, found.right, found.failed) == (0, 0, None)
    assert found.inference_ms > 0
    assert run(job(tmp_path)).pictures == 0, "a folder that is gone is no fault of the release"


def test_no_more_pictures_than_asked_for(here: Path) -> None:
    assert run(job(here, max_pictures=4)).pictures == 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"labels": ["a", "b"]}, "it has 3 classes, its manifest 2 labels"),
        (
            {"input": PictureShape(height=9, width=10, channels=3)},
            "it takes 10x8x3, its manifest says 10x9x3",
        ),
        ({"file": Path(__file__)}, "cannot be loaded|cannot be opened|is not"),
    ],
)
def test_a_model_that_is_not_what_its_manifest_says(here: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        run(job(here, model(**more)))


@runs_here
@pytest.mark.parametrize("shm", [False, True])
def test_a_program_is_tested_as_a_model_is(here: Path, *, shm: bool) -> None:
    found = run(job(here, program(here, shm=shm)))
    assert (found.pictures, found.right) == (15, 15)


@runs_here
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"mode": "wrong_labels"}, "has the labels somebody, else"),
        ({"mode": "crash"}, "was ended by SIGABRT"),
        ({"mode": "die_at_start"}, "ended with code 127"),
        ({"mode": "garbage"}, "expected JSON"),
        ({"mode": "not_finite"}, "expected 0 to 1"),
        ({"height": 9}, "it takes 10x9x3, its manifest says 10x8x3"),
    ],
)
def test_a_program_that_misbehaves(here: Path, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        run(job(here, program(here, **config)))


# -- the child -------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[TrialProcess]:
    process = TrialProcess(60.0, nice=0)
    yield process
    process.stop()


def ended(process: TrialProcess, within_s: float = 60.0) -> TrialDone | TrialCrashed:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if (told := process.poll()) is not None:
            assert process.poll() is None, "told once"
            return told
        time.sleep(0.02)
    raise AssertionError("the test did not end")


def test_the_child_tells_what_it_found(here: Path, child: TrialProcess) -> None:
    child.start(job(here))
    told = ended(child)
    assert isinstance(told, TrialDone) and told.tested is not None
    assert (told.tested.pictures, told.tested.right, told.failed) == (15, 15, None)
    child.start(job(here, model(labels=["a", "b"])))
    told = ended(child)
    assert isinstance(told, TrialDone) and told.failed == "it has 3 classes, its manifest 2 labels"


@runs_here
def test_a_test_that_hangs_is_ended_at_its_limit_and_so_is_the_program(here: Path) -> None:
    hanging = program(here, mode="hang", state=str(here / "state"))
    process = TrialProcess(3.0, nice=0)
    process.start(job(here, hanging))
    told = ended(process)
    assert isinstance(told, TrialCrashed) and "took longer than 3 s (edge.slots.test_s)" in told.why
    end = time.monotonic() + 60
    while _running(str(hanging.file)):  # the kernel kills it with its parent, in its own time
        assert time.monotonic() < end, "its program works on"
        time.sleep(0.02)


def test_a_child_that_dies_is_a_crash(
    here: Path, child: TrialProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = here / "sitecustomize.py"
    bad.write_text("import os, sys\nif 'apiary_edge.releases.selftest' in sys.orig_argv: os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", f"{here}:{':'.join(__import__('sys').path)}")
    child.start(job(here))
    told = ended(child)
    assert isinstance(told, TrialCrashed) and "its test was ended by signal 6" in told.why


def test_a_child_that_is_stopped_tells_nothing(here: Path, child: TrialProcess) -> None:
    child.start(job(here))
    child.stop()
    assert child.poll() is None
    assert not (here / "result.json").exists()


def _running(what: str) -> bool:
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if what in line.read_text():
                return True
        except OSError:
            continue
    return False


# -- before it is fetched, and before it is run ------------------------------------------------------------


def release(**more: Any) -> Release:
    told: dict[str, Any] = {
        "name": "two",
        "file": BlobRef(digest="2" * 64, bytes=1000),
        "kind": "tflite",
        "labels": ["a", "b"],
        "input": SHAPE,
        **more,
    }
    return Release(**told)


HOST = Host("aarch64", "0.3.1", 64 * 2**20)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, None),
        ({"expires": 1_000_000}, None),
        ({"expires": 999_999}, "it expired 0.0 days ago by this node's clock"),
        ({"min_version": "0.3.1"}, None),
        ({"min_version": "0.3.2"}, "it needs Apiary 0.3.2, this node has 0.3.1: upgrade it"),
        ({"min_version": "0.10"}, "it needs Apiary 0.10"),
        ({"kind": "eim", "machine": "aarch64"}, None),
        ({"kind": "eim", "machine": "armv7"}, "it is a program for armv7, this node is aarch64"),
        ({"file": BlobRef(digest="2" * 64, bytes=64 * 2**20)}, None),
        ({"file": BlobRef(digest="2" * 64, bytes=64 * 2**20 + 1)}, "edge.slots.max_mb"),
    ],
)
def test_a_release_is_for_this_node_or_not(more: dict[str, Any], says: str | None) -> None:
    why = why_unfit(release(**more), HOST, 1_000_000.0)
    assert (why is None) if says is None else (why is not None and says in why)


def test_a_file_is_looked_at_before_it_is_run(tmp_path: Path) -> None:
    eim = write_program(tmp_path / "x.eim", machine="armv7")
    ref = BlobRef(digest="2" * 64, bytes=eim.stat().st_size)
    check_file(eim, release(file=ref, kind="eim", machine="armv7"))
    with pytest.raises(ModelError, match="is a 32 bit program for armv7, expected 64 bit for aarch64"):
        check_file(eim, release(file=ref, kind="eim", machine="aarch64"))
    with pytest.raises(ModelError, match="65536 bytes, its manifest says 1000"):
        check_file(eim, release(kind="eim", machine="armv7"))
    with pytest.raises(ModelError, match=r"is no .tflite file: it begins 7f 45 4c 46"):
        check_file(eim, release(file=ref))
    size = (COLOURS / "model.tflite").stat().st_size
    check_file(COLOURS / "model.tflite", release(file=BlobRef(digest="2" * 64, bytes=size)))
