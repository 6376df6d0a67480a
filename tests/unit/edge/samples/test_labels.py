"""Labels, undo, what is held out, suggestions and pages of the sample store."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.edge.samples.parts import ROOMY, fill, opened, picture

from apiary.errors import DataError
from apiary_edge.samples.model import (
    Filter,
    Incoming,
    Order,
    SampleId,
    SampleRefused,
    SampleState,
    check_label,
    is_held_out,
)
from apiary_edge.samples.store import MAX_UNDO, SampleStore


def test_labels_and_undo(store: SampleStore) -> None:
    ids = fill(store, 6)
    assert store.label(ids[:4], "cat", "ann") == 4
    assert store.label([*ids[2:5], ids[2]], "dog", "bob") == 3
    assert store.label(ids[:1], None, "ann") == 1
    assert store.counts().labelled == {"cat": 1, "dog": 3}
    assert [store.get(i).labelled_by for i in ids[:5]] == [None, "ann", "bob", "bob", "bob"]  # type: ignore[union-attr]  # they are there
    undone = store.undo()
    assert undone is not None and (undone.who, undone.ids) == ("ann", (ids[0],))
    undone = store.undo()
    assert undone is not None and undone.who == "bob" and set(undone.ids) == set(ids[2:5])
    assert store.counts().labelled == {"cat": 4}
    assert store.undo() is not None
    assert store.counts().labelled == {} and store.counts().unlabelled == 6
    assert store.undo() is None


def test_a_labelling_that_changes_nothing_is_no_step_of_undo(store: SampleStore) -> None:
    ids = fill(store, 1)
    store.label(ids, "cat", "ann")
    assert store.label(ids, "cat", "ann") == 0
    assert store.label([SampleId("0" * 64)], "cat", "ann") == 0
    assert store.undo() is not None and store.counts().labelled == {}


def test_undo_passes_over_what_was_deleted_meanwhile(store: SampleStore) -> None:
    ids = fill(store, 2)
    store.label(ids, "cat", "ann")
    store.delete(ids[:1])
    undone = store.undo()
    assert undone is not None and undone.ids == (ids[1],)
    assert store.counts().total == 1


def test_undo_is_bounded(store: SampleStore) -> None:
    (sample,) = fill(store, 1)
    for i in range(MAX_UNDO + 20):
        store.label([sample], f"l{i}", "ann")
    steps = 0
    while store.undo() is not None:
        steps += 1
    assert steps == MAX_UNDO


@pytest.mark.parametrize(
    "label", ["", " cat", "cat ", ".cat", "a/b", "..", "a\nb", "a\x00b", "x" * 65, "\ud800"]
)
def test_a_label_must_be_fit_for_a_folder_and_a_message(store: SampleStore, label: str) -> None:
    (sample,) = fill(store, 1)
    with pytest.raises(DataError, match="cannot be a label: expected 1 to 64 printable characters"):
        store.label([sample], label, "ann")
    refused = store.add(Incoming(picture(99), "import", label)) if label else SampleRefused("")
    assert isinstance(refused, SampleRefused)
    assert check_label("Schutz Helm (gelb) Ü") == "Schutz Helm (gelb) Ü"


@pytest.mark.parametrize("text", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "/..", "é" * 64])
def test_an_id_from_outside_is_never_a_path(store: SampleStore, text: str) -> None:
    bad = SampleId(text)
    for act in (store.get, store.path, lambda i: store.delete([i]), lambda i: store.label([i], "cat", "me")):
        with pytest.raises(DataError, match="is no sample id: expected 64 characters"):
            act(bad)


def test_held_out_is_a_fixed_share_by_digest_and_never_trained(tmp_path: Path) -> None:
    store = opened(tmp_path)
    ids = fill(store, 300, "cat")
    trained, tests = store.training(), store.held_out()
    assert {s.digest for s in trained} | {s.digest for s in tests} == set(ids)
    assert not {s.digest for s in trained} & {s.digest for s in tests}
    assert 30 < len(tests) < 90
    assert all(is_held_out(s.digest, 0.2) for s in tests)
    counts = store.counts()
    assert (counts.labelled, counts.held_out) == ({"cat": 300}, {"cat": len(tests)})
    assert counts.trainable == {"cat": len(trained)}
    assert trained == sorted(trained, key=lambda s: s.digest)
    assert all(Path(s.file).stat().st_size == s.bytes for s in trained)
    # A share that is changed later concerns newcomers: what was trained does not become a test.
    store.close()
    later = opened(tmp_path, ROOMY.model_copy(update={"held_out": 0.9}))
    assert [s.digest for s in later.held_out()] == [s.digest for s in tests]
    later.close()


def test_unlabelled_and_suggested_pictures_are_never_trained(store: SampleStore) -> None:
    ids = fill(store, 20)
    store.set_suggestions("m", [(i, "cat", 0.99) for i in ids])
    assert store.training() == [] and store.held_out() == []


def test_suggestions_most_uncertain_first(store: SampleStore) -> None:
    ids = fill(store, 5)
    store.label(ids[4:], "dog", "ann")
    noted = store.set_suggestions(
        "m1", [(ids[0], "cat", 0.9), (ids[1], "dog", 0.55), (ids[2], "cat", 0.7), (ids[4], "cat", 1.0)]
    )
    assert noted == 3, "a labelled picture needs no suggestion"
    page = store.page(Filter(labelled=False), Order.UNCERTAIN)
    assert [s.id for s in page.samples] == [ids[1], ids[2], ids[0], ids[3]]
    first = page.samples[0]
    assert first.state is SampleState.SUGGESTED and first.suggestion is not None
    assert (first.suggestion.label, first.suggestion.probability, first.suggestion.model) == (
        "dog",
        0.55,
        "m1",
    )
    assert store.awaiting_suggestion("m1", 10) == [ids[3]]
    assert store.awaiting_suggestion("m2", 10) == [ids[3], ids[2], ids[1], ids[0]]
    assert store.counts().suggested == {"cat": 2, "dog": 1} and store.counts().unlabelled == 1
    store.label(ids[:1], "dog", "ann")
    kept = store.get(ids[0])
    assert kept is not None and kept.label == "dog" and kept.suggestion is not None


def test_pages(store: SampleStore) -> None:
    ids = fill(store, 25)
    store.label(ids[:5], "cat", "ann")
    newest = store.page(limit=10)
    assert [s.id for s in newest.samples] == ids[::-1][:10] and newest.total == 25
    assert [s.id for s in store.page(order=Order.OLDEST, limit=3, offset=24).samples] == ids[24:]
    assert store.page(Filter(label="cat")).total == 5
    assert (
        store.page(Filter(state=SampleState.LABELLED)).total == store.page(Filter(labelled=True)).total == 5
    )
    assert store.page(Filter(state=SampleState.UNLABELLED)).total == 20
    halves = [store.page(Filter(held_out=h, label="cat")).total for h in (True, False)]
    assert sum(halves) == 5
    assert store.page(limit=10**9).samples == store.page(limit=200).samples
    assert store.page(limit=-1, offset=-5).samples == ()
