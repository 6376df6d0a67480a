"""What the node's pages have in common: one owner with a token, their own files, answers and refusals.

Every answer with data needs the cookie. What changes something is a POST with the header `X-Apiary: 1`,
which no other site's page can send without asking first.
"""

import html
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from pathlib import PurePath
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

from apiary.errors import ApiaryError, DataError
from apiary.http.connection import BodyAllowance
from apiary.printable import printable_values
from apiary_edge.web.gate import OwnerGate

MAX_BODY_BYTES: Final = 64 * 2**10
MAX_LOGIN_BYTES: Final = 2**10
"""All that is read of a sender who has not signed in; a token has at most 128 characters."""
_HEADERS: Final = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]

_OTHER_SITES: Final = frozenset({"cross-site", "same-site"})
"""What browsers of today say in Sec-Fetch-Site of a request that another site's page makes."""
_NO_STORE: Final = (("Cache-Control", "no-store"),)
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

Environ = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Response:
    """A response before it is sent."""

    status: HTTPStatus
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = _NO_STORE


class Problem(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


class Pages(Protocol):
    """What one site answers, once the owner is let in. Raises Problem; DataError becomes a 400."""

    def get(self, path: str, query: Mapping[str, str]) -> Response:
        """Something to look at."""

    def post(self, path: str, environ: Environ) -> Response:
        """Something that changes or costs."""


class Site:
    """A WSGI application: `pages`, and the files of the folder `page` in `package`, whose index is `/`.

    `keyed` paths take the token in an Authorization header as well, for programs that have no cookie.
    A body of the owner's has at most `max_body_bytes`. The title names the `node`.
    """

    def __init__(
        self,
        name: str,
        gate: OwnerGate,
        pages: Pages,
        *,
        package: str,
        keyed: frozenset[str] = frozenset(),
        max_body_bytes: int = MAX_BODY_BYTES,
        node: str = "",
    ):
        self._name = name
        self._log = logging.getLogger(package)
        self._gate = gate
        self.pages = pages
        self._keyed = keyed
        self._max_body_bytes = max_body_bytes
        self._files = {
            "/" if file.name == "index.html" else f"/{file.name}": (file.read_bytes(), kind)
            for file in (resources.files(package) / "page").iterdir()
            if (kind := _KINDS.get(PurePath(file.name).suffix)) is not None
        }
        if node:
            index, kind = self._files["/"]
            title = f" · {html.escape(node)}</title>".encode()
            self._files["/"] = (index.replace(b"</title>", title, 1), kind)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        try:
            answer = self._answer(environ)
        except Problem as e:
            answer = as_json({"error": str(e)}, e.status)
        except DataError as e:
            answer = as_json({"error": str(e)}, HTTPStatus.BAD_REQUEST)
        except ApiaryError as e:
            self._log.warning("%s: %s", self._name, e)
            answer = as_json({"error": str(e)}, HTTPStatus.SERVICE_UNAVAILABLE)
        headers = [
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(answer.body))),
            *answer.headers,
            *_HEADERS,
        ]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body]

    def allowance(self, environ: Environ) -> BodyAllowance:
        """What a head may bring: the owner's a body, a login a token, any other one nothing."""
        known = self._gate.host_is_ours(environ.get("HTTP_HOST", "")) and self._is_owner(environ)
        if environ["REQUEST_METHOD"] != "POST":
            return BodyAllowance(known=known)
        if known:
            return BodyAllowance(self._max_body_bytes, known)
        return BodyAllowance(MAX_LOGIN_BYTES if environ["PATH_INFO"] == "/api/login" else 0)

    def _is_owner(self, environ: Environ) -> bool:
        if self._gate.cookie_is_right(environ.get("HTTP_COOKIE", "")):
            return True
        token = _bearer(environ) if environ["PATH_INFO"] in self._keyed else None
        # A wrong one is counted once, when the request is answered.
        return token is not None and self._gate.matches(token, environ.get("REMOTE_ADDR", ""))

    def _answer(self, environ: Environ) -> Response:
        if not self._gate.host_is_ours(environ.get("HTTP_HOST", "")):
            raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "open the page by this machine's address or name")
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if method == "POST":
            return self._post(path, environ)
        if method not in ("GET", "HEAD"):
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or POST")
        query = _query(environ)
        if path in self._files:
            return self._file(path, query, environ)
        if not self._has_key(path, environ):
            self._owner_only(environ)
        return self.pages.get(path, query)

    def _post(self, path: str, environ: Environ) -> Response:
        # A browser sends a cookie by itself, an Authorization header never: the latter proves who asks.
        if self._has_key(path, environ):
            return self.pages.post(path, environ)
        if path in self._keyed and not environ.get("HTTP_COOKIE"):
            raise Problem(HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN")
        if environ.get("HTTP_X_APIARY") != "1" or not _same_origin(environ):
            raise Problem(HTTPStatus.FORBIDDEN, "changes come from this page only")
        if path == "/api/login":
            body = json_body(environ)
            if "code" in body:
                if not self._let_in_once(text(body, "code"), environ):
                    raise Problem(
                        HTTPStatus.UNAUTHORIZED,
                        "this code was used, or is older than ten minutes: type apiary label --qr again",
                    )
            elif not self._let_in(text(body, "token"), environ):
                raise Problem(HTTPStatus.UNAUTHORIZED, "that is not the token")
            headers = (*_NO_STORE, ("Set-Cookie", self._gate.cookie))
            return Response(HTTPStatus.OK, b"{}", headers=headers)
        self._owner_only(environ)
        return self.pages.post(path, environ)

    def _file(self, path: str, query: Mapping[str, str], environ: Environ) -> Response:
        """The page's own files, which hold no data; with 401 the page asks for the token."""
        body, kind = self._files[path]
        headers: tuple[tuple[str, str], ...] = _NO_STORE
        status = HTTPStatus.OK
        if path == "/" and "token" in query:
            # Answered at once instead of by a redirect: after a link from elsewhere, a browser would not send
            # a SameSite=Strict cookie along with it. The page takes the token out of the address itself.
            if self._let_in(query["token"], environ):
                headers = (*headers, ("Set-Cookie", self._gate.cookie))
            else:
                status = HTTPStatus.UNAUTHORIZED
        elif path == "/" and not self._gate.cookie_is_right(environ.get("HTTP_COOKIE", "")):
            status = HTTPStatus.UNAUTHORIZED
        return Response(status, body, kind, headers)

    def _has_key(self, path: str, environ: Environ) -> bool:
        """Whether the request names the token itself. Raises Problem for a wrong one."""
        if path not in self._keyed or not environ.get("HTTP_AUTHORIZATION"):
            return False
        token = _bearer(environ)
        if token is None or not self._let_in(token, environ):
            raise Problem(HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN")
        return True

    def _let_in(self, token: str, environ: Environ) -> bool:
        address = self._guessing(environ)
        if self._gate.token_is_right(token[:256], address):
            return True
        self._log.warning("%s: a wrong token from %s", self._name, address)
        return False

    def _let_in_once(self, code: str, environ: Environ) -> bool:
        address = self._guessing(environ)
        if self._gate.code_is_right(code[:256], address):
            self._log.info("%s: %s signed in by a code", self._name, address)
            return True
        self._log.warning("%s: a sign-in code from %s that is not good", self._name, address)
        return False

    def _guessing(self, environ: Environ) -> str:
        """The sender's address. Raises Problem where it has to wait.

        What another site has the owner's browser send is counted by itself: it must not lock the owner out.
        """
        address: str = environ.get("REMOTE_ADDR", "")
        if environ.get("HTTP_SEC_FETCH_SITE", "none") in _OTHER_SITES:
            address += " by way of another site"
        if (wait := self._gate.wait_s(address)) > 0:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS, f"too many wrong tokens: try again in {wait:.0f} seconds"
            )
        return address

    def _owner_only(self, environ: Environ) -> None:
        if not self._gate.cookie_is_right(environ.get("HTTP_COOKIE", "")):
            raise Problem(HTTPStatus.UNAUTHORIZED, "open the link with the token that the node printed")


def as_json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """A JSON answer, whose texts a page may show as they are."""
    return Response(status, json.dumps(printable_values(value)).encode())


def body_of(environ: Environ, max_bytes: int) -> bytes:
    """A request's body. Raises Problem where it is too long or does not say how long it is."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()) or len(length) > 12:
        raise Problem(HTTPStatus.BAD_REQUEST, "expected a Content-Length")
    if int(length) > max_bytes:
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {max_bytes} bytes")
    data: bytes = environ["wsgi.input"].read(int(length))
    if len(data) < int(length):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body was not read: try again")
    return data


def json_body(environ: Environ) -> dict[str, Any]:
    """A request's body as a JSON object. Raises Problem."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
    try:
        value = json.loads(body_of(environ, MAX_BODY_BYTES))
    except (ValueError, RecursionError):
        raise Problem(HTTPStatus.BAD_REQUEST, "expected JSON") from None
    if not isinstance(value, dict):
        raise Problem(HTTPStatus.BAD_REQUEST, "expected a JSON object")
    return value


def text(body: Mapping[str, Any], name: str) -> str:
    """A text of a JSON object. Raises DataError."""
    value = body.get(name)
    if not isinstance(value, str):
        raise DataError(f"{name}: expected text")
    return value


def not_found() -> Problem:
    """The answer for a path that there is not."""
    return Problem(HTTPStatus.NOT_FOUND, "there is no such page")


def _bearer(environ: Environ) -> str | None:
    """The token of an Authorization header; None for another scheme, or without one."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _query(environ: Environ) -> dict[str, str]:
    try:
        found = parse_qs(environ.get("QUERY_STRING", "")[:2048], max_num_fields=10)
    except ValueError:
        raise Problem(HTTPStatus.BAD_REQUEST, "too many fields in the address") from None
    return {name: values[0] for name, values in found.items()}


def _same_origin(environ: Environ) -> bool:
    origin = environ.get("HTTP_ORIGIN")
    site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
    return site in ("same-origin", "none") and origin in (None, f"http://{environ.get('HTTP_HOST', '')}")
