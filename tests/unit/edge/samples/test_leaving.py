"""What leaves the sample store: when it is full, and when its owner deletes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.edge.samples.parts import ROOMY, added, fill, opened, picture

from apiary.errors import DataError
from apiary.learn.cache import ArrayCache
from apiary_edge.samples.clean import clean
from apiary_edge.samples.model import (
    Added,
    Filter,
    Incoming,
    SampleId,
    SampleRefused,
    is_held_out,
)
from apiary_edge.samples.store import SampleStore


def test_when_full_the_oldest_unlabelled_go_first_then_suggested_and_labelled_never(tmp_path: Path) -> None:
    store = opened(tmp_path, ROOMY.model_copy(update={"max_count": 6}))
    ids = fill(store, 6)
    store.label(ids[:2], "cat", "ann")
    store.set_suggestions("m", [(ids[2], "cat", 0.9)])
    gone: list[SampleId] = []
    for i in range(4):
        outcome = store.add(Incoming(picture(100 + i), "camera"))
        assert isinstance(outcome, Added)
        gone += outcome.evicted
    assert gone[:3] == ids[3:6], "the oldest unlabelled first"
    assert store.get(ids[2]) is not None, "a suggested one stays while there are unlabelled ones"
    rest = [s.id for s in store.page(Filter(labelled=False)).samples]
    store.set_suggestions("m", [(i, "cat", 0.5) for i in rest])
    outcome = store.add(Incoming(picture(200), "camera"))
    assert isinstance(outcome, Added) and outcome.evicted == (ids[2],)
    store.label([s.id for s in store.page(Filter(labelled=False)).samples], "dog", "ann")
    outcome = store.add(Incoming(picture(300), "camera"))
    assert isinstance(outcome, SampleRefused) and outcome.full
    assert "full of labelled pictures: 6 of 6" in outcome.why and "edge.store.max_count" in outcome.why
    files = [p for p in (tmp_path / "samples" / "pictures").rglob("*") if p.is_file()]
    assert len(files) == store.counts().total == 6
    store.close()


def test_the_bound_in_megabytes_counts_the_files(tmp_path: Path) -> None:
    one = len(clean(picture(0, "PNG")).data)
    store = opened(tmp_path, ROOMY.model_copy(update={"max_mb": (one * 3 + one // 2) / 2**20}))
    for i in range(6):
        assert isinstance(store.add(Incoming(picture(i, "PNG"), "camera")), Added)
    counts = store.counts()
    assert counts.total == 3 and counts.bytes <= one * 3.5
    assert isinstance(store.add(Incoming(picture(9, "PNG", (200, 200)), "camera")), SampleRefused)
    assert store.counts().total == 3, "nothing leaves for a picture that does not fit anyway"
    store.close()


def test_a_full_label_lets_go_of_what_was_labelled_longest_ago_but_not_of_held_out(tmp_path: Path) -> None:
    store = opened(tmp_path, ROOMY.model_copy(update={"max_per_label": 10}))
    ids = fill(store, 30)
    for sample in ids[:15]:
        store.label([sample], "cat", "ann")
    tests = [i for i in ids[:15] if is_held_out(i, 0.2)]
    trained = [i for i in ids[:15] if not is_held_out(i, 0.2)]
    left = {s.id for s in store.page(Filter(label="cat")).samples}
    assert len(left) == 10 and left == {*tests, *trained[-(10 - len(tests)) :]}
    refused = store.add(Incoming(picture(500), "import", "cat"))
    assert (
        isinstance(refused, SampleRefused)
        and "label 'cat' has 10 pictures" in refused.why
        and not refused.full
    )
    with pytest.raises(DataError, match=r"11 pictures at once, but a label keeps 10 "):
        store.label(ids[15:26], "dog", "ann")
    store.close()


def test_no_picture_is_taken_where_the_disk_is_nearly_full(tmp_path: Path) -> None:
    store = opened(tmp_path, ROOMY.model_copy(update={"min_free_mb": 2**40}))
    refused = store.add(Incoming(picture(1), "camera"))
    assert isinstance(refused, SampleRefused) and refused.full and "edge.store.min_free_mb" in refused.why
    store.close()


def test_deleting_takes_the_file_and_what_the_caches_made_of_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep, gone = fill(store, 2)
    cache = ArrayCache(tmp_path / "cache", 10)
    for sample in (keep, gone):
        cache.put("pictures-8x8x3", sample, np.zeros((8, 8, 3), np.uint8))
        cache.put("features-abc", sample, np.zeros(5, np.float32))
    path = store.path(gone)
    assert path is not None and store.delete([gone, gone]) == 1
    assert not path.exists() and store.get(gone) is None and store.path(gone) is None
    for space, shape, dtype in (("pictures-8x8x3", (8, 8, 3), np.uint8), ("features-abc", (5,), np.float32)):
        assert cache.get(space, gone, shape, dtype) is None
        assert cache.get(space, keep, shape, dtype) is not None
    assert not [p for p in tmp_path.rglob("*") if gone in p.name]
    # A training that had begun before caches it once more; the service asks for this after a training.
    cache.put("features-abc", gone, np.zeros(5, np.float32))
    assert store.forget_cached() == 1
    assert cache.get("features-abc", gone, (5,), np.float32) is None
    store.close()


def test_what_the_owner_deleted_comes_back_by_import_only(store: SampleStore) -> None:
    automatic = Incoming(picture(1), "folder", automatic=True)
    sample = added(store.add(automatic))
    store.delete([sample])
    refused = store.add(automatic)
    assert isinstance(refused, SampleRefused) and "its owner deleted this picture" in refused.why
    assert store.add(replace(automatic, automatic=False)) == Added(sample)
    store.forget_cached()
    assert store.get(sample) is not None


def test_an_evicted_picture_may_come_back(tmp_path: Path) -> None:
    store = opened(tmp_path, ROOMY.model_copy(update={"max_count": 1}))
    for seed in (1, 2, 1):
        assert isinstance(store.add(Incoming(picture(seed), "camera", automatic=True)), Added)
    store.close()
