"""Real models on a node: opened, renewed, refused, tuned to its pictures, and asked for suggestions."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.builds import LABELS, built_once, small
from tests.stand_ins.eim_program import write_program

from apiary.errors import ApiaryError, ModelError
from apiary.learn import images
from apiary.learn.runtimes import litert
from apiary.process.child import light_environment
from apiary.settings import EdgeSettings, StoreSettings
from apiary.tensors import Weights
from apiary.wire import blob
from apiary.wire.chunks import digest_of
from apiary_coordinator.export.client import Built
from apiary_edge.predicting import model_files, models, personal, suggesting
from apiary_edge.predicting.job import BackgroundJob
from apiary_edge.predicting.live import Bytes
from apiary_edge.predicting.model_files import ModelFile
from apiary_edge.samples.model import Incoming
from apiary_edge.samples.store import SampleStore
from apiary_edge.training.job import TrainingEvent

pytestmark = pytest.mark.tensorflow


def shade(label: str, seed: int, size: int = 20) -> Bytes:
    rng = np.random.default_rng(seed)
    low, high = (0, 90) if label == "dark" else (160, 255)
    return rng.integers(low, high, (size, size, 3), np.uint8)


def encoded(pixels: Bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module", params=["edge_cnn", "mobilenet_v2"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_once(small(request.param, tmp_path_factory), tmp_path_factory)


class Node:
    """A node's folder with the build's parts as blobs, and a store."""

    def __init__(self, folder: Path, built: Built):
        self.folder = folder
        self.built = built
        self.blobs = folder / "blobs"
        self.blobs.mkdir()
        edge = EdgeSettings.model_validate(
            {"state_dir": folder, "personal": {"enabled": True, "epochs": 6, "learning_rate": 0.02}}
        )
        self.job = BackgroundJob(edge=edge, store=folder / "samples")
        bounds = StoreSettings(min_free_mb=0, held_out=0.3)
        self.store = SampleStore(folder / "samples", folder / "cache", bounds, time.time)

    def keep(self, data: bytes) -> Path:
        path = self.blobs / digest_of(data)
        path.write_bytes(data)
        return path

    def model(self, weights: Weights, name: str = "round 1 of run r") -> ModelFile:
        built = self.built
        file = self.keep(blob.encode(weights))
        base = self.keep(built.base.read_bytes()) if built.base else None
        found = ModelFile(
            kind="trainer",
            name=name,
            digest=file.name,
            file=file,
            labels=LABELS,
            manifest=self.keep(built.manifest.encode()),
            trainer=self.keep(built.trainer.read_bytes()),
            base=base,
            base_digest=base.name if base else None,
        )
        model_files.folder(self.folder).mkdir(exist_ok=True)
        model_files.newest_file(self.folder).write_text(found.model_dump_json())
        return found

    def fill(self, count: int, labelled: bool = True) -> None:
        for i in range(count):
            label = LABELS[i % 2]
            self.store.add(Incoming(encoded(shade(label, i)), "test", label if labelled else None))


@pytest.fixture
def node(tmp_path: Path, built: Built) -> Iterator[Node]:
    made = Node(tmp_path, built)
    yield made
    made.store.close()


def moved(weights: Weights, by: float) -> Weights:
    return Weights({name: t + np.float32(by) for name, t in weights.items()})


def test_it_answers_as_the_trainer_does_on_the_same_pixels(node: Node) -> None:
    model = models.open_model(node.model(node.built.initial))
    models.check(model, LABELS)
    pixels = shade("dark", 7, 200)
    answered = model.predict(pixels)
    manifest = node.built.manifest
    trainer = litert.open_trainer(manifest, node.built.trainer)
    trainer.set_weights(node.built.initial)
    x = images.decode(encoded(pixels), manifest.input).astype(np.float32)
    if node.built.base is not None:
        x = litert.open_base(node.built.base).features(x)
    assert list(answered.probabilities) == list(LABELS)
    assert np.array_equal(
        np.array(list(answered.probabilities.values()), np.float32), trainer.infer(x[None])[0]
    )
    assert answered.inference_ms > 0


def test_newer_weights_are_taken_and_bad_ones_change_nothing(node: Node) -> None:
    first = node.model(node.built.initial)
    model = models.open_model(first)
    pixels = shade("light", 1)
    before = model.predict(pixels).probabilities
    assert model.renew(node.model(moved(node.built.initial, 0.3)))
    after = model.predict(pixels).probabilities
    assert after != before
    nan = node.model(moved(node.built.initial, np.nan))
    other = node.model(Weights({"a": np.zeros(3, np.float32)}))
    torn = node.model(node.built.initial, "torn")
    torn.file.write_bytes(torn.file.read_bytes()[:-4])
    for bad, why in ((nan, "NaN"), (other, "another model"), (torn, "is damaged")):
        with pytest.raises(ApiaryError, match=why):
            model.renew(bad)
        assert model.predict(pixels).probabilities == after
        with pytest.raises(ApiaryError, match=why):
            models.open_model(bad)


def test_torn_parts_are_refused_before_the_runtime_sees_them(node: Node) -> None:
    found = node.model(node.built.initial)
    assert found.trainer is not None
    found.trainer.write_bytes(found.trainer.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="is damaged"):
        models.open_model(found)


def test_only_the_head_is_tuned_and_it_is_used_where_it_is_better(node: Node) -> None:
    found = node.model(node.built.initial)
    node.fill(60)
    said: list[str] = []
    result = personal.tune(node.job, found, said.append)
    assert result.of == found.digest and result.samples + result.held_out == 60 and result.held_out > 8
    assert result.accuracy_global is not None and result.accuracy_personal is not None
    assert result.file is not None
    tuned = blob.decode(result.file.read_bytes(), who="test").weights
    changed = {name for name, t in tuned.items() if not np.array_equal(t, node.built.initial[name])}
    if node.built.base is None:
        assert changed == {"classes/kernel", "classes/bias"} == personal.last_layer(node.built.manifest)
    else:
        assert changed == set(tuned), "behind a frozen base all of the trainer is the head"
    chosen = model_files.chosen(node.folder)
    assert chosen is not None and chosen.personal == result.better
    if node.built.base is None:  # a base of random weights tells nothing apart
        assert result.accuracy_personal > 0.9 > result.accuracy_global
        assert chosen.accuracy == result.accuracy_personal
        model = models.open_model(chosen)
        assert [model.predict(shade(label, 500)).label for label in LABELS] == list(LABELS)
    again = personal.tune(node.job, found, said.append)
    assert again == result, "the same pictures give the same head"
    assert [p.name for p in model_files.folder(node.folder).glob("*.blob")] == [result.file.name]


def test_too_few_pictures_are_said_and_the_federations_model_stays(node: Node) -> None:
    found = node.model(node.built.initial)
    node.fill(10)
    result = personal.tune(node.job, found, lambda text: None)
    assert "edge.personal.min_samples" in result.why and not result.better
    assert model_files.chosen(node.folder) == found


def test_suggestions_come_for_all_that_wait_and_once(node: Node) -> None:
    found = node.model(node.built.initial)
    node.fill(40, labelled=False)
    victim = node.store.page().samples[0].id
    path = node.store.path(victim)
    assert path is not None
    path.write_bytes(b"torn on the disk")
    said: list[str] = []
    assert suggesting.suggest(node.folder / "samples", StoreSettings(), found, said.append) == (39, 1)
    assert len(said) == 1 and victim[:12] in said[0]
    counts = node.store.counts()
    assert sum(counts.suggested.values()) == 39 and set(counts.suggested) <= set(LABELS)
    assert suggesting.suggest(node.folder / "samples", StoreSettings(), found, said.append) == (0, 1)
    newer = node.model(moved(node.built.initial, 0.1), "round 2")
    assert suggesting.suggest(node.folder / "samples", StoreSettings(), newer, said.append) == (39, 1)


def test_the_chores_child_tunes_and_suggests_and_ends(node: Node) -> None:
    node.model(node.built.initial)
    node.fill(60)
    for i in range(5):
        node.store.add(Incoming(encoded(shade("light", 900 + i)), "camera"))
    node.job.out.mkdir()
    file = node.job.out / "job.json"
    file.write_text(node.job.model_dump_json())

    def chores() -> list[TrainingEvent]:
        command = [sys.executable, "-m", "apiary_edge.predicting.background_worker", str(file)]
        done = subprocess.run(command, check=True, capture_output=True, timeout=120, env=light_environment())
        return [t for line in done.stdout.splitlines() if (t := TrainingEvent.parse(line)) is not None]

    told = chores()
    assert told[-1].kind == "done" and told[-1].samples == 5
    assert any("held-out pictures the federation's model is right in" in t.text for t in told)
    assert sum(node.store.counts().suggested.values()) == 5
    if node.built.base is None:
        assert node.store.counts().suggested == {"light": 5}
    assert [t.kind for t in chores()] == ["done"]
    assert json.loads(model_files.personal_file(node.folder).read_text())["samples"] > 20


def test_an_eim_program_predicts_and_is_ended(tmp_path: Path) -> None:
    program = write_program(tmp_path / "model.eim", labels=["dark", "light"])
    found = ModelFile(
        kind="eim", name="release 1", digest=digest_of(program.read_bytes()), file=program, labels=LABELS
    )
    model = models.open_model(found)
    try:
        models.check(model, LABELS)
        red = np.zeros((40, 60, 3), np.uint8)
        red[..., 0] = 255
        answered = model.predict(red)
        assert answered.label == "light" and answered.probability > 0.99
        assert not model.renew(found)
    finally:
        model.close()
    wrong = found.model_copy(update={"labels": ("a", "b")})
    with pytest.raises(ModelError, match="expected a, b"):
        models.open_model(wrong)
    with pytest.raises(ModelError, match="is damaged"):
        models.open_model(found.model_copy(update={"digest": "0" * 64}))
