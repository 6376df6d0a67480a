"""A code signs in once, for ten minutes, on the page that it was made for."""

from __future__ import annotations

import pytest

from apiary_edge.web.sign_in_code import LIFE_S, NONCE_BYTES, CodeBook, Instant, make_code

TOKEN = "t" * 43
PORT = 4912
BEGAN = Instant(100.0, 1_800_000_000.0)
MADE = Instant(160.0, 1_800_000_060.0)
NONCE = bytes(range(NONCE_BYTES))


def after(seconds: float, *, clock_set_by: float = 0.0) -> Instant:
    return Instant(MADE.monotonic + seconds, MADE.wall + seconds + clock_set_by)


def book(token: str = TOKEN, port: int = PORT, began: Instant = BEGAN) -> CodeBook:
    return CodeBook(token, port, began)


def test_it_is_good_once() -> None:
    code, page = make_code(TOKEN, PORT, MADE, NONCE), book()
    assert page.take(code, after(5)) and not page.take(code, after(6))
    other = make_code(TOKEN, PORT, MADE, bytes(NONCE_BYTES))
    assert other != code and page.take(other, after(7))


def test_it_fits_an_address_and_does_not_hold_the_token() -> None:
    code = make_code(TOKEN, PORT, MADE, NONCE)
    assert len(code) == 40 and code.replace("-", "").replace("_", "").isalnum() and TOKEN[:8] not in code


@pytest.mark.parametrize(("age_s", "good"), [(0, True), (LIFE_S, True), (LIFE_S + 0.01, False), (-2, False)])
def test_it_ends_after_ten_minutes(age_s: float, good: bool) -> None:
    assert book().take(make_code(TOKEN, PORT, MADE, NONCE), after(age_s)) is good


def test_a_page_that_began_later_believes_none_of_before() -> None:
    code = make_code(TOKEN, PORT, MADE, NONCE)
    assert not book(began=after(1)).take(code, after(2)), "it would not know whether it was used"
    assert book(began=MADE).take(code, after(2))


def test_a_code_of_the_boot_before_is_not_good_when_the_uptime_comes_round_again() -> None:
    code = make_code(TOKEN, PORT, MADE, NONCE)
    began = Instant(20.0, MADE.wall + 86_400)
    assert not book(began=began).take(code, Instant(MADE.monotonic + 5, began.wall + 145))


@pytest.mark.parametrize(("step_s", "good"), [(3500, True), (-3500, True), (3700, False)])
def test_setting_the_clock_meanwhile_does_no_harm_within_an_hour(step_s: float, good: bool) -> None:
    assert book().take(make_code(TOKEN, PORT, MADE, NONCE), after(5, clock_set_by=step_s)) is good


def test_another_page_or_owner_does_not_take_it() -> None:
    code = make_code(TOKEN, PORT, MADE, NONCE)
    assert not book(port=4911).take(code, after(1))
    assert not book(token="u" * 43).take(code, after(1))


def test_a_changed_or_mangled_code_is_refused() -> None:
    code = make_code(TOKEN, PORT, MADE, NONCE)
    page = book()
    for i in range(len(code)):
        changed = code[:i] + ("A" if code[i] != "A" else "B") + code[i + 1 :]
        assert not page.take(changed, after(1)), i
    for text in ("", "A", code[:-1], code + "A", code * 2, "ä" * 40, " " * 40, "=" * 40):
        assert not page.take(text, after(1)), text
    assert page.take(code, after(1))
