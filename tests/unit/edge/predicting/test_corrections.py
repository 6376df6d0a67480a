"""A wrong prediction corrected: the very picture goes to the store, once, with the label of its owner."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.stand_ins.browser import Browser, Clock
from tests.unit.edge.predicting.scene import Scene, frame, model_file, predictions_site

from apiary.settings.edge import StoreSettings
from apiary_edge.capture.worker import encode
from apiary_edge.predicting.corrections import LookedAt
from apiary_edge.samples.model import Incoming, check_id
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import OwnerGate

TOKEN = "a-token-of-the-owner-that-is-long-enough"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    made.publish(model_file("round 1"))
    made.turn(frame(200, 10))
    return made


@pytest.fixture
def store(scene: Scene) -> Iterator[SampleStore]:
    made = SampleStore(scene.folder / "samples", None, StoreSettings(min_free_mb=0), time.time)
    yield made
    made.close()


def owner_of(scene: Scene, kept: int = 2**20, max_count: int = 10_000) -> Browser:
    clock = Clock()
    gate = OwnerGate(TOKEN, 4912, clock, clock.pauses.append)
    made = Browser(predictions_site(scene, gate, kept=kept, max_count=max_count), TOKEN)
    made.login()
    return made


@pytest.fixture
def owner(scene: Scene, store: SampleStore) -> Browser:
    return owner_of(scene)


def look(owner: Browser) -> str:
    return str(owner.get("/api/now?look=1")["shown"]["digest"])


def correct(owner: Browser, digest: str, label: str, **more: Any) -> tuple[int, Any]:
    return owner.post("/api/correct", {"digest": digest, "label": label, **more})


def test_the_picture_that_was_predicted_on_is_stored_with_the_label(
    scene: Scene, store: SampleStore, owner: Browser
) -> None:
    digest = look(owner)
    scene.turn(frame(1, 200))
    assert look(owner) != digest, "the live picture has moved on"
    status, answer = correct(owner, digest, "dog")
    assert status == 200 and answer == {**answer, "label": "dog", "before": None, "added": True}
    (sample,) = store.page().samples
    assert (sample.id, sample.label, sample.labelled_by) == (answer["id"], "dog", "predictions")
    assert sample.source == "usb 0"
    path = store.path(sample.id)
    assert path is not None
    files = path.read_bytes(), encode(frame(200, 10), 90)
    stored, shown = (np.asarray(Image.open(io.BytesIO(data))) for data in files)
    assert np.array_equal(stored, shown), "the very pixels, of the JPEG that capture would keep"


def test_a_frame_that_was_captured_too_is_labelled_and_not_stored_twice(
    store: SampleStore, owner: Browser
) -> None:
    store.add(Incoming(encode(frame(200, 10), 90), "usb 0", automatic=True))
    status, answer = correct(owner, look(owner), "dog")
    assert status == 200 and not answer["added"]
    (sample,) = store.page().samples
    assert sample.label == "dog"


def test_tapping_twice_is_one_picture(store: SampleStore, owner: Browser) -> None:
    digest = look(owner)
    assert [correct(owner, digest, "dog")[0] for _ in range(2)] == [200, 200]
    assert correct(owner, digest, "dog")[1]["before"] == "dog"
    assert store.counts().total == 1


def test_a_label_that_somebody_else_gave_is_a_question_and_not_overwritten(
    store: SampleStore, owner: Browser
) -> None:
    digest = look(owner)
    correct(owner, digest, "fox")
    status, answer = correct(owner, digest, "dog")
    assert status == 409 and answer["label"] == "fox" and "'fox'" in answer["error"]
    assert store.page().samples[0].label == "fox"
    assert correct(owner, digest, "dog", was="fox")[0] == 200
    assert store.page().samples[0].label == "dog"
    store.label([store.page().samples[0].id], None, "ann")
    status, answer = correct(owner, digest, "fox", was="dog")
    assert status == 409 and answer["label"] is None, "who took it away had a reason"
    assert correct(owner, digest, "fox")[0] == 200


def test_taking_it_back_gives_the_label_of_before(store: SampleStore, owner: Browser) -> None:
    digest = look(owner)
    first, second = correct(owner, digest, "fox")[1], correct(owner, digest, "dog", was="fox")[1]
    assert owner.post("/api/undo", second) == (200, {"id": first["id"], "label": "fox"})
    assert owner.post("/api/undo", second)[0] == 200, "a request that came twice"
    (sample,) = store.page().samples
    store.label([sample.id], "cat", "ann")
    assert owner.post("/api/undo", first)[1]["error"].startswith("this picture has the label 'cat'")
    store.label([sample.id], "fox", "ann")
    assert owner.post("/api/undo", first)[0] == 200
    (sample,) = store.page().samples
    assert sample.label is None
    store.delete([sample.id])
    assert owner.post("/api/undo", first)[0] == 410


def test_a_picture_that_is_no_longer_kept_is_gone_and_nothing_is_labelled(
    scene: Scene, store: SampleStore
) -> None:
    owner = owner_of(scene, kept=1)
    digest = look(owner)
    scene.turn(frame(1, 200))
    newest = look(owner)
    status, answer = correct(owner, digest, "dog")
    assert status == 410 and "no longer kept" in answer["error"] and store.counts().total == 0
    assert correct(owner, newest, "dog")[0] == 200, "the newest is always kept"


@pytest.mark.parametrize(
    ("digest", "label"), [("x" * 64, "dog"), ("", "dog"), (None, "wolf"), (None, ""), (None, "../dog")]
)
def test_what_is_no_digest_or_no_label_of_the_model_is_refused(
    store: SampleStore, owner: Browser, digest: str | None, label: str
) -> None:
    known = look(owner)
    assert correct(owner, known if digest is None else digest, label)[0] == 400
    assert store.counts().total == 0


def test_a_stranger_and_another_sites_page_correct_nothing(store: SampleStore, owner: Browser) -> None:
    digest = look(owner)
    assert owner.post("/api/correct", {"digest": digest, "label": "dog"}, HTTP_X_APIARY="")[0] == 403
    owner.cookie = ""
    assert correct(owner, digest, "dog")[0] == 401
    assert store.counts().total == 0


def test_a_full_store_takes_nothing_and_says_so(scene: Scene, owner: Browser) -> None:
    digest = look(owner)
    full = SampleStore(scene.folder / "samples", None, StoreSettings(min_free_mb=0, max_count=1), time.time)
    full.add(Incoming(encode(frame(7, 7), 90), "import", label="cat"))
    full.close()
    tight = owner_of(scene, max_count=1)
    assert look(tight) == digest
    status, answer = correct(tight, digest, "dog")
    assert status == 507 and "was not taken" in answer["error"]


def test_only_a_page_that_looks_makes_the_node_keep_pictures(scene: Scene, owner: Browser) -> None:
    assert owner.get("/api/now")["shown"]["digest"] is None


def test_pictures_are_kept_up_to_a_bound_and_the_one_in_use_longest(scene: Scene) -> None:
    shown = scene.live.newest
    assert shown is not None
    size = len(encode(shown.frame, 90))
    looked = LookedAt(90, 4 * size)
    first = looked.keep(shown)
    rng = np.random.default_rng(1)
    for _ in range(6):
        scene.turn(rng.integers(0, 9, (8, 8, 3), np.uint8))
        assert scene.live.newest is not None
        newest = looked.keep(scene.live.newest)
        assert looked.get(first) is not None, "somebody holds it"
    kept = list(looked._kept)
    assert newest in kept and sum(len(looked._kept[d].data) for d in kept) <= 4 * size
    assert check_id(first) == first
