"""What a request's head may be."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiary.http.head import BadHead, length_of, read_head


def test_a_head_becomes_the_variables_of_wsgi() -> None:
    head = (
        b"POST /a%20b/%c3%a4?x=%201&y HTTP/1.1\r\nHost: pi:4912\r\nX-Apiary: 1\r\nCookie: a=1\r\n"
        b"cookie: b=2\r\nContent-Length: 12\r\nContent-Type: text/plain\r\nX_Apiary: forged"
    )
    environ = read_head(head)
    assert environ["REQUEST_METHOD"] == "POST"
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/a b/ä"
    assert environ["QUERY_STRING"] == "x=%201&y"
    assert environ["HTTP_HOST"] == "pi:4912"
    assert environ["HTTP_X_APIARY"] == "1"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["CONTENT_TYPE"] == "text/plain"
    assert length_of(environ) == 12
    assert length_of(read_head(b"GET / HTTP/1.0")) == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET http://elsewhere/ HTTP/1.1", 400),
        (b"GET / HTTP/2.0", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /\n HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nno colon", 400),
        (b"GET / HTTP/1.1\r\nName : value", 400),
        (b"GET / HTTP/1.1\r\nX: a\x00b", 400),
        (b"GET / HTTP/1.1\r\nX: a\nY: b", 400),
        (b"GET / HTTP/1.1\r\nX: a\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: -1", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1_0", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: \xb2", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1234567890123", 400),
    ],
)
def test_what_is_no_head_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(BadHead) as refused:
        length_of(read_head(head))
    assert refused.value.status == status


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(head: bytes) -> None:
    with contextlib.suppress(BadHead):
        length_of(read_head(b"GET / HTTP/1.1\r\n" + head))
