"""The labelling page over HTTP: who may come in, what is refused, labels, undo, bulk, filters, no growth."""

from __future__ import annotations

import gc
import http.client
import io
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from tests.stand_ins.browser import Browser, Clock

from apiary.errors import DataError, SettingsError, StoreError
from apiary_edge.samples.incoming import Incoming
from apiary_edge.samples.model import Added, Bounds, SampleId
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.app import MAX_IDS, App
from apiary_edge.web.gate import FREE_GUESSES, MAX_ADDRESSES, Gate
from apiary_edge.web.need import ENOUGH, needed
from apiary_edge.web.serve import check_host, make_server
from apiary_edge.web.site import MAX_BODY_BYTES
from apiary_edge.web.thumbnails import Thumbnails
from apiary_edge.web.token import FILE_NAME, load_or_make

TOKEN = "a-token-of-the-owner-that-is-long-enough"
BOUNDS = Bounds(min_free_bytes=0)


def picture(i: int, size: tuple[int, int] = (32, 24), kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (i * 7 % 256, i * 13 % 256, i % 256)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    made = SampleStore(tmp_path / "samples", tmp_path / "cache", BOUNDS, time.time)
    yield made
    made.close()


@pytest.fixture
def ids(store: SampleStore) -> list[SampleId]:
    outcomes = list(store.add_many(Incoming(picture(i), "test") for i in range(12)))
    return [o.id for o in outcomes if isinstance(o, Added)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stranger(store: SampleStore, clock: Clock) -> Browser:
    return Browser(App(lambda: store, Gate(TOKEN, 4911, clock, clock.pauses.append), BOUNDS), TOKEN)


@pytest.fixture
def owner(stranger: Browser) -> Browser:
    stranger.login()
    return stranger


# -- who may come in -------------------------------------------------------------------------------------


def test_a_token_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    token = load_or_make(tmp_path / "new")
    file = tmp_path / "new" / FILE_NAME
    assert len(token) >= 43  # 256 bits
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_or_make(tmp_path / "new") == token
    assert [p.name for p in file.parent.iterdir()] == [FILE_NAME]
    assert load_or_make(tmp_path / "other") != token


def test_a_token_that_others_may_read_or_that_is_torn_is_refused(tmp_path: Path) -> None:
    load_or_make(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(StoreError, match=r"may be read by others \(mode 644\): remove it"):
        load_or_make(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o600)
    (tmp_path / FILE_NAME).write_text("abc")
    with pytest.raises(StoreError, match="holds no token: remove it"):
        load_or_make(tmp_path)


def test_without_the_cookie_there_is_nothing_to_see(stranger: Browser, ids: list[SampleId]) -> None:
    for path in ("/api/state", "/api/page", f"/picture/small/{ids[0]}", "/picture/small/../../x", "/nothing"):
        status, body = stranger.ask("GET", path)
        assert status == 401, path
        assert ids[0].encode() not in body
    for path in ("/api/label", "/api/undo", "/api/delete"):
        assert stranger.post(path, {"ids": [ids[0]], "label": "x", "confirm": 1})[0] == 401
    status, body = stranger.ask("GET", "/")
    assert status == 401
    assert b"page.js" in body  # the page itself, which asks for the token


def test_the_link_lets_in_and_sets_a_cookie_that_scripts_cannot_read(stranger: Browser) -> None:
    stranger.login()
    cookie = stranger.headers["Set-Cookie"]
    assert "; HttpOnly" in cookie
    assert "; SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert stranger.get("/api/state")["total"] == 0


def test_a_login_by_the_form(stranger: Browser) -> None:
    assert stranger.post("/api/login", {"token": "wrong"}) == (401, {"error": "that is not the token"})
    assert "Set-Cookie" not in stranger.headers
    assert stranger.post("/api/login", {"token": 7})[0] == 400
    assert stranger.post("/api/login", {"token": TOKEN})[0] == 200
    assert "Set-Cookie" in stranger.headers


@pytest.mark.parametrize("cookie", ["", "apiary_label_4911=", "apiary_label_4911=abc", "\x00=;;", "x" * 9000])
def test_a_wrong_cookie_is_none(stranger: Browser, cookie: str) -> None:
    stranger.cookie = cookie
    assert stranger.ask("GET", "/api/state")[0] == 401


def test_wrong_tokens_are_answered_late_and_then_not_at_all(stranger: Browser, clock: Clock) -> None:
    for n in range(FREE_GUESSES):
        assert stranger.ask("GET", "/?token=wrong")[0] == 401
        assert len(clock.pauses) == n + 1
    assert stranger.ask("GET", f"/?token={TOKEN}")[0] == 429
    assert stranger.ask("GET", f"/?token={TOKEN}", address="10.0.0.9")[0] == 200, "others need not wait"
    clock.now += 1.5
    assert stranger.ask("GET", "/?token=wrong")[0] == 401
    clock.now += 1.5
    assert stranger.ask("GET", f"/?token={TOKEN}")[0] == 429, "the wait doubles"
    clock.now += 1.0
    assert stranger.ask("GET", f"/?token={TOKEN}")[0] == 200
    assert stranger.ask("GET", "/?token=%F0%9F%98%80")[0] == 401


def test_guessers_are_remembered_up_to_a_bound(clock: Clock) -> None:
    gate = Gate(TOKEN, 1, clock, clock.pauses.append)
    for i in range(MAX_ADDRESSES * 2):
        assert not gate.token_is_right("wrong", f"10.0.{i // 256}.{i % 256}")
    assert len(gate._wrong) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("127.0.0.1:4911", True),
        ("192.168.1.20", True),
        ("localhost:4911", True),
        ("[::1]:4911", True),
        ("[fe80::1]", True),
        ("evil.example:4911", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("localhost:x", False),
        ("", False),
    ],
)
def test_a_rebound_name_is_refused(owner: Browser, host: str, fine: bool) -> None:
    status, _ = owner.ask("GET", "/api/state", HTTP_HOST=host)
    assert status == (200 if fine else 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_X_APIARY": ""},
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "same-site"},
    ],
)
def test_another_sites_page_changes_nothing(
    owner: Browser, store: SampleStore, ids: list[SampleId], headers: dict[str, str]
) -> None:
    assert owner.post("/api/label", {"ids": ids, "label": "x"}, **headers)[0] == 403
    assert store.counts().labelled == {}


def test_every_answer_carries_the_headers_that_protect(owner: Browser, ids: list[SampleId]) -> None:
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/api/state", f"/picture/large/{ids[0]}", "/x"):
        owner.ask("GET", path)
        assert owner.headers["X-Content-Type-Options"] == "nosniff", path
        policy = owner.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert owner.headers["Referrer-Policy"] == "no-referrer"


# -- what is refused -------------------------------------------------------------------------------------


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
        ({"ids": ["0" * 64], "label": "a/b"}, 400, "cannot be a label"),
        ({"ids": ["0" * 64], "label": ""}, 400, "cannot be a label"),
        ({"ids": ["0" * 64], "label": ["x"]}, 400, "label: expected text"),
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


# -- what it is for --------------------------------------------------------------------------------------


def test_labels_in_bulk_are_one_step_of_undo(owner: Browser, store: SampleStore, ids: list[SampleId]) -> None:
    assert owner.post("/api/label", {"ids": ids[:1], "label": "cat"}) == (200, {"changed": 1})
    assert owner.post("/api/label", {"ids": ids[:8], "label": "dog"}) == (200, {"changed": 8})
    assert store.counts().labelled == {"dog": 8}
    status, undone = owner.post("/api/undo", {})
    assert (status, undone["who"], len(undone["samples"])) == (200, "page", 8)
    assert store.counts().labelled == {"cat": 1}
    assert owner.post("/api/label", {"ids": ids[:1], "label": None}) == (200, {"changed": 1})
    assert store.counts().labelled == {}
    owner.post("/api/undo", {})
    owner.post("/api/undo", {})
    assert owner.post("/api/undo", {}) == (200, {"samples": [], "who": None})


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
    gate = Gate(TOKEN, 4911, clock, clock.pauses.append)
    browser = Browser(App(lambda: store, gate, BOUNDS, labels=("head", "helmet"), may_add=False), TOKEN)
    browser.login()
    store.label(ids[:1], "older", "test")
    assert browser.get("/api/state")["labels"] == ["head", "helmet"]
    status, answer = browser.post("/api/label", {"ids": ids[1:2], "label": "vest"})
    assert (status, answer["error"]) == (400, "'vest' is none of this node's labels: head, helmet")
    assert browser.post("/api/label", {"ids": ids[1:2], "label": "head"})[0] == 200


def test_deleting_wants_the_number_and_takes_the_thumbnail_too(
    owner: Browser, store: SampleStore, ids: list[SampleId]
) -> None:
    assert owner.ask("GET", f"/picture/small/{ids[0]}")[0] == 200
    assert owner.app.thumbnails.held_bytes > 0
    file = store.path(ids[0])
    assert owner.post("/api/delete", {"ids": ids[:1]})[0] == 400
    assert owner.post("/api/delete", {"ids": ids[:2], "confirm": 1})[0] == 400
    assert store.counts().total == 12
    assert owner.post("/api/delete", {"ids": ids[:1], "confirm": 1}) == (200, {"deleted": 1})
    assert file is not None
    assert not file.exists()
    assert owner.app.thumbnails.held_bytes == 0
    assert owner.ask("GET", f"/picture/small/{ids[0]}")[0] == 404


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
    before = memory()
    requests(8_000)
    assert memory() - before < 2 * 2**20
    assert owner.post("/api/label", {"ids": ids, "label": "x"}) == (200, {"changed": 12})


# -- by a real socket ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", "example.org", "224.0.0.1"])  # noqa: S104 - refused
def test_listens_on_one_address_of_the_own_network_only(host: str) -> None:
    with pytest.raises(SettingsError, match=r"expected (an IP address|one address of the local network)"):
        check_host(host)


def test_a_real_server_bounds_what_it_reads(store: SampleStore, ids: list[SampleId], tmp_path: Path) -> None:
    server = make_server(
        tmp_path / "samples", tmp_path / "cache", BOUNDS, TOKEN, host="127.0.0.1", port=0, labels=["a"]
    )
    thread = threading.Thread(target=server.run, name="labelling-page")
    thread.start()
    try:
        port = server.effective_port

        def ask(method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                answer.read()
                return answer.status, answer.headers
            finally:
                connection.close()

        status, headers = ask("GET", f"/?token={TOKEN}")
        assert status == 200
        assert "Server" not in headers
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert ask("GET", f"/picture/small/{ids[0]}", Cookie=cookie)[0] == 200
        assert ask("GET", "/picture/small/%2e%2e/%2e%2e/samples.sqlite", Cookie=cookie)[0] == 404
        assert ask("POST", "/api/label", b"x" * (MAX_BODY_BYTES + 1), Cookie=cookie)[0] == 413
        assert ask("GET", "/", Cookie="x" * 20_000)[0] == 431
        with pytest.raises(SettingsError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*another --port"):
            make_server(tmp_path / "s", tmp_path / "c", BOUNDS, TOKEN, host="127.0.0.1", port=port)
    finally:
        server.trigger.pull_trigger(server.close)  # by its own thread, whose loop ends then
        thread.join(10)
    assert not thread.is_alive()
