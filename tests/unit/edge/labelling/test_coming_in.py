"""Who may come in to the labelling page: token, cookie, guessing, other sites."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.stand_ins.browser import Browser, Clock
from tests.unit.edge.labelling.parts import TOKEN

from apiary.errors import StoreError
from apiary_edge.samples.model import SampleId
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import FREE_GUESSES, MAX_ADDRESSES, OwnerGate
from apiary_edge.web.token import FILE_NAME, load_or_make


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


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_elsewhere_locks_no_owner_out(stranger: Browser, clock: Clock, site: str) -> None:
    elsewhere = {"HTTP_SEC_FETCH_SITE": site}
    for _ in range(FREE_GUESSES):
        assert stranger.ask("GET", "/?token=wrong", **elsewhere)[0] == 401
    assert stranger.ask("GET", f"/?token={TOKEN}", **elsewhere)[0] == 429, "its guesses are counted, too"
    assert stranger.ask("GET", f"/?token={TOKEN}", HTTP_SEC_FETCH_SITE="none")[0] == 200
    assert stranger.ask("GET", f"/?token={TOKEN}")[0] == 200


def test_guessers_are_remembered_up_to_a_bound(clock: Clock) -> None:
    gate = OwnerGate(TOKEN, 1, clock, clock.pauses.append)
    for i in range(MAX_ADDRESSES * 2):
        assert not gate.token_is_right("wrong", f"10.0.{i // 256}.{i % 256}")
    assert len(gate._limiter) == MAX_ADDRESSES


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
