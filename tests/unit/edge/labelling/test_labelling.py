"""The labelling page over HTTP: what is refused, labels, undo, bulk, filters, no growth."""

from __future__ import annotations

import gc
import io
import os
import resource
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from tests.stand_ins.browser import Browser, Clock
from tests.unit.edge.labelling.parts import BOUNDS, TOKEN, picture

from apiary.errors import DataError
from apiary_edge.labelling.app import ENOUGH, MAX_IDS, Labelling, needed, site
from apiary_edge.labelling.thumbnails import Thumbnails
from apiary_edge.samples.model import Added, Incoming, SampleId
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import OwnerGate
from apiary_edge.web.site import MAX_BODY_BYTES, Site


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/picture/small/" + "0" * 64, 404),
        ("/picture/small/" + "0" * 63, 400),
        ("/picture/small/" + "A" * 64, 400),
        ("/picture/small/" + "0" * 64 + "\n", 400),
        ("/picture/huge/" + "0" * 64, 404),
        ("/picture/small/../../samples.sqlite", 404),
        ("/picture/small/..%2f..%2fsamples.sqlite", 400),
        ("/../../etc/passwd", 404),
        ("/page/index.html", 404),
        ("//etc/passwd", 404),
        ("/app.py", 404),
    ],
)
def test_no_path_leads_out(owner: Browser, path: str, status: int) -> None:
    assert owner.ask("GET", path)[0] == status


@pytest.mark.parametrize(
    "query", ["state=x", "order=random", "limit=many", "offset=1e3", "&".join("abcdefghijkl")]
)
def test_a_filter_that_is_none(owner: Browser, query: str) -> None:
    query = query if "=" in query else query.replace("&", "=1&") + "=1"
    assert owner.ask("GET", f"/api/page?{query}")[0] == 400


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "expected JSON"),
        (b"[" * 60_000, 400, "expected JSON"),
        (b"[]", 400, "expected a JSON object"),
        (b"\xff\xfe", 400, "expected JSON"),
        ({"ids": "0" * 64, "label": "x"}, 400, "list of 1 to 500"),
        ({"ids": [], "label": "x"}, 400, "list of 1 to 500"),
        ({"ids": [7], "label": "x"}, 400, "list of 1 to 500"),
        ({"ids": ["0" * 64] * (MAX_IDS + 1), "label": "x"}, 400, "list of 1 to 500"),
        ({"ids": ["../../x"], "label": "x"}, 400, "is no sample id"),
        ({"ids": ["0" * 64], "was": None, "label": "a/b"}, 400, "cannot be a label"),
        ({"ids": ["0" * 64], "was": None, "label": ""}, 400, "cannot be a label"),
        ({"ids": ["0" * 64], "was": None, "label": ["x"]}, 400, "label: expected text"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "at most 65536 bytes"),
    ],
)
def test_a_body_that_is_none(owner: Browser, body: Any, status: int, says: str) -> None:
    got, answer = owner.post("/api/label", body)
    assert got == status
    assert says in answer["error"]


def test_other_methods_and_kinds(owner: Browser) -> None:
    assert owner.ask("PUT", "/api/label")[0] == 405
    assert owner.ask("GET", "/api/label")[0] == 404
    assert owner.ask("GET", "/api/delete?ids=x")[0] == 404
    assert owner.post("/api/nothing", {})[0] == 404
    assert owner.post("/api/label", {}, CONTENT_TYPE="text/plain")[0] == 415
    assert owner.post("/api/label", {}, CONTENT_LENGTH="-1")[0] == 400


def give(owner: Browser, ids: list[SampleId], was: Any, label: str | None, **more: Any) -> tuple[int, Any]:
    return owner.post("/api/label", {"ids": ids, "was": was, "label": label, **more})


def test_labels_in_bulk_are_one_step_of_undo(owner: Browser, store: SampleStore, ids: list[SampleId]) -> None:
    assert give(owner, ids[:1], None, "cat")[1]["changed"] == 1
    status, done = give(owner, ids[:8], ["cat", *[None] * 7], "dog")
    assert (status, done["changed"]) == (200, 8)
    assert owner.get("/api/state")["undo"] == {"step": done["step"], "who": "page", "count": 8}
    status, undone = owner.post("/api/undo", {"step": done["step"]})
    assert (status, undone["who"], len(undone["samples"])) == (200, "page", 8)
    assert store.counts().labelled == {"cat": 1}
    assert owner.post("/api/undo", {"step": done["step"]})[0] == 409, "a request that came twice"
    assert store.counts().labelled == {"cat": 1}
    assert give(owner, ids[:1], "cat", None)[1]["changed"] == 1
    assert store.counts().labelled == {}
    while (latest := owner.get("/api/state")["undo"]) is not None:
        assert owner.post("/api/undo", {"step": latest["step"]})[0] == 200
    assert owner.post("/api/undo", {"step": 1}) == (200, {"samples": [], "who": None})
    assert owner.post("/api/undo", {})[0] == 400


def test_a_label_that_somebody_else_gave_is_a_question(
    owner: Browser, store: SampleStore, ids: list[SampleId]
) -> None:
    store.label(ids[:1], "cat", "ann")
    status, answer = give(owner, ids[:3], None, "dog")
    assert status == 409 and "1 picture labelled by somebody else" in answer["error"]
    assert [(s["id"], s["label"], s["labelled_by"]) for s in answer["samples"]] == [(ids[0], "cat", "ann")]
    assert store.counts().labelled == {"cat": 1}, "all of it, or none"
    assert give(owner, ids[:1], None, "cat")[1]["changed"] == 0, "it has that label: no question"
    assert give(owner, ids[:3], ["cat", None, None], "dog")[0] == 200
    store.delete(ids[4:5])
    status, answer = give(owner, ids[4:6], None, "dog")
    assert (status, answer["gone"], answer["samples"]) == (410, ids[4:5], [])
    assert store.counts().labelled == {"dog": 3}
    assert owner.post("/api/label", {"ids": ids[:1], "label": "x"})[0] == 400, "it names no label it had"


def test_a_label_like_another_is_a_question(owner: Browser, store: SampleStore, ids: list[SampleId]) -> None:
    assert give(owner, ids[:1], None, "hardhat")[0] == 200
    status, answer = give(owner, ids[1:2], None, "Hardhat")
    assert (status, answer["alike"], answer["label"]) == (409, "hardhat", "Hardhat")
    assert give(owner, ids[1:2], None, "Hardhat", new=True)[0] == 200
    assert give(owner, ids[2:3], None, "cafe\u0301")[1]["label"] == "caf\u00e9", "one form of Unicode"
    assert give(owner, ids[3:4], None, "caf\u00e9")[0] == 200
    assert store.counts().labelled == {"Hardhat": 1, "caf\u00e9": 2, "hardhat": 1}


def test_new_labels_move_no_key(owner: Browser, store: SampleStore, ids: list[SampleId]) -> None:
    give(owner, ids[:1], None, "vest")
    owner.get("/api/state")
    give(owner, ids[1:2], None, "apron")
    state = owner.get("/api/state")
    assert (state["labels"], state["keys"]) == (["vest", "apron"], {"vest": "1", "apron": "2"})
    give(owner, ids[:1], "vest", "boot")
    assert owner.get("/api/state")["keys"] == {"apron": "2", "boot": "3"}
    give(owner, ids[:1], "boot", "vest")
    assert owner.get("/api/state")["keys"] == {"vest": "1", "apron": "2"}
    give(owner, ids[2:4], None, "2")
    assert owner.get("/api/state")["keys"] == {"vest": "1", "apron": "2"}, "a digit that comes later"
    give(owner, ids[1:2], "apron", "vest")
    assert owner.get("/api/state")["keys"] == {"vest": "1"}, "it comes back, by undo for instance"


def test_filters_and_the_least_certain_first(owner: Browser, store: SampleStore, ids: list[SampleId]) -> None:
    store.set_suggestions("m", [(ids[3], "cat", 0.9), (ids[5], "dog", 0.4), (ids[7], "cat", 0.6)])
    store.label(ids[:2], "cat", "test")

    def shown(query: str) -> list[str]:
        return [s["id"] for s in owner.get(f"/api/page?{query}")["samples"]]

    assert shown("")[:3] == [ids[5], ids[7], ids[3]]
    assert len(shown("")) == 10
    assert len(shown("state=all")) == 12
    assert set(shown("state=labelled")) == set(ids[:2])
    assert shown("state=suggested&label=cat") == [ids[7], ids[3]]
    assert len(shown("state=unlabelled")) == 7
    assert shown("state=all&order=oldest&offset=2&limit=2") == ids[2:4]
    assert len(shown("limit=100000")) == 10
    first = owner.get("/api/page")["samples"][0]
    assert first["suggestion"] == {"label": "dog", "probability": 0.4}


def test_the_state_says_how_many_more_would_help(
    owner: Browser, store: SampleStore, ids: list[SampleId]
) -> None:
    store.label(ids[:4], "cat", "test")
    store.set_suggestions("m", [(ids[5], "dog", 0.4)])
    state = owner.get("/api/state")
    trainable = store.counts().trainable["cat"]
    assert state["labels"] == ["cat", "dog"]
    assert state["labelled"] == {"cat": 4}
    assert (state["suggested"], state["unlabelled"], state["total"]) == (1, 7, 12)
    assert state["needed"] == {"cat": -(-(ENOUGH - trainable) * 10 // 8), "dog": 38}
    assert str(ENOUGH) in state["rule"]


def test_the_rule_of_thumb() -> None:
    assert needed({"a": 30, "b": 29}, ["a", "b", "c"], 0.0) == {"a": 0, "b": 1, "c": 30}
    assert needed({"a": 300, "b": 30}, ["a", "b"], 0.0) == {"a": 0, "b": 70}, "a third of the largest"
    assert needed({"a": 20}, ["a"], 0.2) == {"a": 13}, "some of them will be held out"
    assert needed({}, [], 1.0) == {}


def test_with_given_labels_others_are_refused(store: SampleStore, ids: list[SampleId], clock: Clock) -> None:
    gate = OwnerGate(TOKEN, 4911, clock, clock.pauses.append)
    pages = Labelling(lambda: store, BOUNDS.held_out, labels=("head", "helmet"), may_add=False)
    browser = Browser(site(pages, gate), TOKEN)
    browser.login()
    store.label(ids[:1], "older", "test")
    assert browser.get("/api/state")["labels"] == ["head", "helmet"]
    status, answer = browser.post("/api/label", {"ids": ids[1:2], "was": None, "label": "vest"})
    assert (status, answer["error"]) == (400, "'vest' is none of this node's labels: head, helmet")
    assert browser.post("/api/label", {"ids": ids[1:2], "was": None, "label": "head"})[0] == 200


def test_deleting_wants_the_number_and_takes_the_thumbnail_too(
    owner: Browser, store: SampleStore, ids: list[SampleId]
) -> None:
    assert owner.ask("GET", f"/picture/small/{ids[0]}")[0] == 200
    assert isinstance(owner.app, Site) and isinstance(owner.app.pages, Labelling)
    assert owner.app.pages.thumbnails.held_bytes > 0
    file = store.path(ids[0])
    assert owner.post("/api/delete", {"ids": ids[:1]})[0] == 400
    assert owner.post("/api/delete", {"ids": ids[:2], "was": None, "confirm": 1})[0] == 400
    assert owner.post("/api/delete", {"ids": ids[:1], "confirm": 1})[0] == 400, "it names no label it had"
    assert store.counts().total == 12
    gone = {"ids": ids[:1], "was": None, "confirm": 1}
    assert owner.post("/api/delete", gone) == (200, {"deleted": 1})
    assert file is not None
    assert not file.exists()
    assert owner.app.pages.thumbnails.held_bytes == 0
    assert owner.ask("GET", f"/picture/small/{ids[0]}")[0] == 404
    assert owner.post("/api/delete", gone) == (200, {"deleted": 0}), "a request that came twice"


def test_what_somebody_else_labelled_is_not_deleted_unasked(
    owner: Browser, store: SampleStore, ids: list[SampleId]
) -> None:
    store.label(ids[:1], "cat", "ann")
    status, answer = owner.post("/api/delete", {"ids": ids[:3], "was": None, "confirm": 3})
    assert status == 409 and [(s["id"], s["label"]) for s in answer["samples"]] == [(ids[0], "cat")]
    assert store.counts().total == 12, "all of it, or none"
    was = ["cat", None, None]
    assert owner.post("/api/delete", {"ids": ids[:3], "was": was, "confirm": 3}) == (200, {"deleted": 3})


def test_pictures_are_scaled_and_typed(owner: Browser, store: SampleStore) -> None:
    for kind in ("JPEG", "PNG"):
        outcome = store.add(Incoming(picture(3, (3000, 1000), kind), "test"))
        assert isinstance(outcome, Added)
        for size, side in (("small", 240), ("large", 1280)):
            status, body = owner.ask("GET", f"/picture/{size}/{outcome.id}")
            assert status == 200
            assert owner.headers["Content-Type"] == "image/jpeg"
            assert owner.headers["Cache-Control"].startswith("private")
            assert Image.open(io.BytesIO(body)).size == (side, round(side / 3))


def test_the_thumbnail_cache_is_bounded(store: SampleStore, ids: list[SampleId], tmp_path: Path) -> None:
    thumbnails = Thumbnails(max_bytes=2000)
    for _ in range(2):
        for sample in ids:
            path = store.path(sample)
            assert path is not None
            assert thumbnails.get(sample, path, "small").startswith(b"\xff\xd8")
            assert 0 < thumbnails.held_bytes <= 2000
    (tmp_path / "torn.jpg").write_bytes(picture(1)[:100])
    with pytest.raises(DataError, match=r"torn\.jpg: cannot be shown"):
        thumbnails.get("x", tmp_path / "torn.jpg", "small")


def test_ten_thousand_requests_leave_nothing_behind(owner: Browser, ids: list[SampleId]) -> None:
    wrong = Browser(owner.app, TOKEN)

    def requests(count: int) -> None:
        for i in range(count):
            match i % 5:
                case 0:
                    assert owner.ask("GET", "/api/page?limit=12")[0] == 200
                case 1:
                    assert owner.ask("GET", f"/picture/small/{ids[i % 12]}")[0] == 200
                case 2:
                    assert (
                        wrong.ask("GET", f"/?token={i}", address=f"10.1.{i // 250 % 250}.{i % 250}")[0] == 401
                    )
                case 3:
                    assert owner.post("/api/label", {"ids": ["../x"], "label": "x"})[0] == 400
                case _:
                    assert owner.ask("GET", f"/{quote(str(i))}")[0] == 404

    def memory() -> int:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    requests(2_000)
    before, files = memory(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    requests(8_000)
    assert memory() - before < 2 * 2**20
    assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208
    assert give(owner, ids, None, "x")[1]["changed"] == 12
