"""A real training child on a sample store: labelled samples train, held-out and unlabelled ones never."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.builds import LABELS, built_once, small
from tests.stand_ins.disk_trace import unsynced

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.manifest import PictureInput
from apiary.process.child import light_environment
from apiary.settings import StoreSettings
from apiary.wire import blob
from apiary.wire.held_out import encode
from apiary.wire.messages import Plan
from apiary_coordinator.export.client import Built
from apiary_edge.samples.model import Incoming
from apiary_edge.samples.store import SampleStore
from apiary_edge.training import pictures
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.training.process import scratch
from apiary_edge.training.supervisor import OUT_OF_ADDRESSES
from apiary_edge.training.worker import train

TO = PictureInput(height=16, width=16, channels=3)


def shade(label: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    low, high = (0, 90) if label == "dark" else (160, 255)
    out = io.BytesIO()
    Image.fromarray(rng.integers(low, high, (20, 20, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    made = SampleStore(
        tmp_path / "samples", tmp_path / "cache", StoreSettings(min_free_mb=0, held_out=0.3), time.time
    )
    yield made
    made.close()


def job(tmp_path: Path, **more: object) -> TrainJob:
    fields = {
        "run": "r",
        "round": 1,
        "node": "pi-1",
        "plan": Plan(epochs=6, batch_size=8, learning_rate=0.01),
        "manifest": tmp_path,
        "trainer": None,
        "base": None,
        "base_digest": None,
        "model": tmp_path,
        "store": tmp_path / "samples",
        "cache_dir": tmp_path / "cache",
        "cache_mb": 10,
        "out": scratch(tmp_path),
        "runtime": "litert",
        "threads": 1,
    }
    return TrainJob.model_validate({**fields, **more})


def fill(store: SampleStore, count: int) -> None:
    for i in range(count):
        label = LABELS[i % 2]
        store.add(Incoming(shade(label, i), "import", label))


def test_only_labelled_samples_that_are_not_held_out_are_found(tmp_path: Path, store: SampleStore) -> None:
    fill(store, 40)
    store.add(Incoming(shade("dark", 900), "camera"))
    store.add(Incoming(shade("dark", 901), "import", "fox"))
    found = pictures.find(job(tmp_path), LABELS, TO)
    trained = {s.digest for s in store.training() if s.label != "fox"}
    assert {r.path.stem for r in found.records} == trained and 15 < len(trained) < 40
    data = images.load(found, TO)
    assert set(data.digests) == trained
    tests = pictures.held_out(tmp_path / "samples", LABELS)
    assert len(tests.records) + len(trained) == 40


def test_a_folder_adds_to_the_store_but_not_what_is_held_out_there(
    tmp_path: Path, store: SampleStore
) -> None:
    fill(store, 30)
    for i in range(40):
        path = tmp_path / "data" / LABELS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shade(LABELS[i % 2], i))
    both = job(tmp_path, data_dir=tmp_path / "data")
    found = pictures.find(both, LABELS, TO)
    data = pictures.without_held_out(both, found, images.load(found, TO))
    held = {s.digest for s in store.held_out()}
    assert len(held) > 3 and not held & set(data.digests)
    assert len(data) == len(set(data.digests)) == len(store.training()) + 10
    only = job(tmp_path, store=None, data_dir=tmp_path / "data")
    alone = pictures.find(only, LABELS, TO)
    assert len(alone.records) == 40 and pictures.without_held_out(only, alone, data) is data


def test_what_the_server_holds_out_too_is_counted_by_the_files_that_came_in(
    tmp_path: Path, store: SampleStore
) -> None:
    out = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(io.BytesIO(shade("dark", 99))).save(out, "JPEG", exif=turned)
    for one in (out.getvalue(), shade("light", 1), shade("light", 2)):
        store.add(Incoming(one, "import", "light", held_out=False))
    both = job(tmp_path)
    data = images.load(pictures.find(both, LABELS, TO), TO)
    ours = [hashlib.sha256(f).hexdigest() for f in (out.getvalue(), shade("light", 2), shade("dark", 5))]
    (tmp_path / "held-out").write_bytes(encode(ours))
    assert pictures.also_held_out(tmp_path / "held-out", tmp_path / "samples", data) == 2
    assert pictures.also_held_out(None, tmp_path / "samples", data) is None


def test_a_store_without_a_label_declines_and_says_what_to_do(tmp_path: Path, store: SampleStore) -> None:
    with pytest.raises(DataError, match="may be trained yet: 0 wait for a label"):
        pictures.find(job(tmp_path), LABELS, TO)
    store.add(Incoming(shade("dark", 1), "camera"))
    store.add(Incoming(shade("dark", 2), "import", "fox"))
    with pytest.raises(DataError, match=r"1 wait for a label(.|\n)*1 pictures of label 'fox' are left out"):
        pictures.find(job(tmp_path), LABELS, TO)
    with pytest.raises(DataError, match="neither a data folder nor a sample store is set"):
        pictures.find(job(tmp_path, store=None), LABELS, TO)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_once(small("edge_cnn", tmp_path_factory), tmp_path_factory)


def files_of(tmp_path: Path, built: Built) -> dict[str, Path]:
    """What a node has fetched for a round."""
    (tmp_path / "manifest").write_bytes(built.manifest.encode())
    (tmp_path / "model").write_bytes(blob.encode(built.initial))
    return {
        "manifest": tmp_path / "manifest",
        "model": tmp_path / "model",
        "trainer": built.folder / "trainer.tflite",
    }


@pytest.mark.tensorflow
def test_an_update_that_a_child_tells_of_survives_the_power(
    tmp_path: Path, store: SampleStore, built: Built
) -> None:
    """The outbox takes it over by its name, and offers it."""
    fill(store, 20)
    todo = job(
        tmp_path,
        **files_of(tmp_path, built),
        plan=Plan(epochs=1, batch_size=8),
    )
    told: list[TrainingEvent] = []
    scratch(tmp_path).mkdir()
    assert unsynced(scratch(tmp_path), lambda: train(todo, told.append)) == set()
    assert (scratch(tmp_path) / "update.blob").is_file()


@pytest.mark.tensorflow
def test_a_child_trains_from_the_store(tmp_path: Path, store: SampleStore, built: Built) -> None:
    fill(store, 60)
    store.add(Incoming(shade("dark", 900), "camera"))
    trained = len(store.training())
    files = files_of(tmp_path, built)
    told: list[TrainingEvent] = []
    same = [hashlib.sha256(shade(LABELS[i % 2], i)).hexdigest() for i in range(60)]
    (tmp_path / "held-out").write_bytes(encode(same))
    train(job(tmp_path, **files, held_out=tmp_path / "held-out"), told.append)
    done = told[-1]
    assert done.also_held_out == trained
    assert any(f"{trained} pictures are in the server's held-out set as well" in e.text for e in told)
    # What is held out and what validates are drawn apart, so such a node still has a validation split.
    assert done.kind == "done" and 0 < done.samples < trained < 60
    assert done.metrics is not None and done.metrics.loss < 0.2, "it learned what the pictures show"
    assert done.metrics.accuracy is not None and done.metrics.accuracy > 0.9
    # What it cached goes with the picture.
    victim = store.training()[0].digest
    assert list((tmp_path / "cache").rglob(victim))
    store.delete([victim])
    assert not list((tmp_path / "cache").rglob(victim))
    train(job(tmp_path, **files), told.append)
    assert told[-1].samples in (done.samples, done.samples - 1)


@pytest.mark.tensorflow
def test_under_any_limit_of_its_address_space_a_child_trains_or_says_why(
    tmp_path: Path, store: SampleStore, built: Built
) -> None:
    fill(store, 20)
    asked = job(
        tmp_path,
        **files_of(tmp_path, built),
    )
    (tmp_path / "job.json").write_text(asked.model_dump_json())

    def word(limit_mb: int) -> str | None:
        code, told = under(limit_mb, tmp_path / "job.json")
        if told is None:
            # The runtime's own code failed at an allocation, or Python did not even start: the service
            # gives up the round where a child ends so under a limit.
            assert -code in OUT_OF_ADDRESSES or code == 1
            return None
        assert told.kind in {"done", "failed"} or (told.kind == "declined" and "RLIMIT_AS" in told.text), told
        return told.kind

    # Between what cannot even start and what is done lie some twenty megabytes: they are tried one by one.
    coarse = dict[int, str | None]()
    for limit_mb in range(92, 400, 8):
        coarse[limit_mb] = word(limit_mb)
        if coarse[limit_mb] == "done":
            break
    silent = max(mb for mb, kind in coarse.items() if kind is None)
    words = [word(mb) for mb in range(silent + 1, max(coarse)) if mb not in coarse]
    assert "done" in coarse.values() and "declined" in [*words, *coarse.values()], (coarse, words)


def under(limit_mb: int, file: Path) -> tuple[int, TrainingEvent | None]:
    """A child's exit code under a limit of its address space, and its last word."""
    done = subprocess.run(
        [
            "prlimit",
            f"--as={limit_mb * 10**6}",
            sys.executable,
            "-m",
            "apiary_edge.training.worker",
            str(file),
        ],
        env=light_environment(MALLOC_ARENA_MAX="1"),
        capture_output=True,
        timeout=120,
        check=False,
    )
    told = [word for line in done.stdout.splitlines() if (word := TrainingEvent.parse(line)) is not None]
    return done.returncode, told[-1] if told else None
