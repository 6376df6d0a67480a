"""The labelling page as a WSGI application: routes, and what each may take.

Every answer with data needs the cookie. What changes something is a POST of JSON with the header
`X-Apiary: 1`, which no other site's page can send without asking first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs

from apiary.errors import ApiaryError, DataError
from apiary_edge.samples.model import Bounds, Filter, Order, Sample, SampleId, State, check_id, check_label
from apiary_edge.samples.store import SampleStore
from apiary_edge.web import need
from apiary_edge.web.gate import Gate
from apiary_edge.web.thumbnails import SIDES, Thumbnails

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 64 * 2**10
MAX_IDS: Final = 500
"""In one request; 500 ids of 67 bytes fit the body."""
WHO: Final = "page"
_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A response before it is sent."""

    status: HTTPStatus
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = field(default=(("Cache-Control", "no-store"),))


class Problem(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


class App:
    """The WSGI application; `stores` gives the calling thread's store.

    `labels` are offered whether or not a picture has them; with `may_add` false there are no others.
    """

    def __init__(
        self,
        stores: Callable[[], SampleStore],
        gate: Gate,
        bounds: Bounds,
        *,
        labels: tuple[str, ...] = (),
        may_add: bool = True,
    ):
        self.thumbnails = Thumbnails()
        self._stores = stores
        self._gate = gate
        self._bounds = bounds
        self._labels = labels
        self._may_add = may_add
        folder = resources.files("apiary_edge.web") / "page"
        self._files = {at: ((folder / name).read_bytes(), kind) for at, (name, kind) in _FILES.items()}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        try:
            answer = self._answer(environ)
        except Problem as e:
            answer = _json({"error": str(e)}, e.status)
        except DataError as e:
            answer = _json({"error": str(e)}, HTTPStatus.BAD_REQUEST)
        except ApiaryError as e:
            log.warning("labelling page: %s", e)
            answer = _json({"error": str(e)}, HTTPStatus.SERVICE_UNAVAILABLE)
        headers = [
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(answer.body))),
            *answer.headers,
            *_HEADERS,
        ]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body]

    def _answer(self, environ: dict[str, Any]) -> Answer:
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
        self._owner_only(environ)
        match path.split("/"):
            case ["", "api", "state"]:
                return _json(self._state())
            case ["", "api", "page"]:
                return _json(self._page(query))
            case ["", "picture", size, sample] if size in SIDES:
                return self._picture(size, check_id(sample))
            case _:
                raise Problem(HTTPStatus.NOT_FOUND, "there is no such page")

    # -- coming in -------------------------------------------------------------------------------------

    def _file(self, path: str, query: Mapping[str, str], environ: dict[str, Any]) -> Answer:
        """The page's own files, which hold no data; with 401 the page asks for the token."""
        body, kind = self._files[path]
        headers: tuple[tuple[str, str], ...] = (("Cache-Control", "no-store"),)
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
        return Answer(status, body, kind, headers)

    def _let_in(self, token: str, environ: dict[str, Any]) -> bool:
        address = environ.get("REMOTE_ADDR", "")
        if (wait := self._gate.wait_s(address)) > 0:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS, f"too many wrong tokens: try again in {wait:.0f} seconds"
            )
        if self._gate.token_is_right(token[:256], address):
            return True
        log.warning("labelling page: a wrong token from %s", address)
        return False

    def _owner_only(self, environ: dict[str, Any]) -> None:
        if not self._gate.cookie_is_right(environ.get("HTTP_COOKIE", "")):
            raise Problem(HTTPStatus.UNAUTHORIZED, "open the link with the token that `apiary label` printed")

    # -- looking ---------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        counts = self._stores().counts()
        labels = self._known(counts.labelled, counts.suggested)
        return {
            "labels": labels,
            "may_add": self._may_add,
            "labelled": dict(counts.labelled),
            "held_out": sum(counts.held_out.values()),
            "suggested": sum(counts.suggested.values()),
            "unlabelled": counts.unlabelled,
            "total": counts.total,
            "needed": need.needed(counts.trainable, labels, self._bounds.held_out),
            "rule": need.RULE,
        }

    def _known(self, *more: Iterable[str]) -> list[str]:
        found = list(self._labels)
        if self._may_add or not found:
            found += sorted({label for one in more for label in one} - set(found))
        return found

    def _page(self, query: Mapping[str, str]) -> dict[str, Any]:
        try:
            state = query.get("state", "todo")
            which = Filter(
                state=None if state in ("todo", "all") else State(state),
                labelled=False if state == "todo" else None,
                label=query.get("label") or None,
            )
            order = Order(query.get("order", "uncertain"))
            limit, offset = int(query.get("limit", "50")), int(query.get("offset", "0"))
        except ValueError as e:
            raise Problem(HTTPStatus.BAD_REQUEST, f"not a filter: {str(e)[:100]}") from None
        page = self._stores().page(which, order, limit=limit, offset=offset)
        return {"samples": [_sample(s) for s in page.samples], "total": page.total, "offset": page.offset}

    def _picture(self, size: str, sample: SampleId) -> Answer:
        path = self._stores().path(sample)
        if path is None:
            raise Problem(HTTPStatus.NOT_FOUND, "there is no such picture")
        data = self.thumbnails.get(sample, path, size)
        return Answer(HTTPStatus.OK, data, "image/jpeg", (("Cache-Control", "private, max-age=600"),))

    # -- changing --------------------------------------------------------------------------------------

    def _post(self, path: str, environ: dict[str, Any]) -> Answer:
        if environ.get("HTTP_X_APIARY") != "1" or not _same_origin(environ):
            raise Problem(HTTPStatus.FORBIDDEN, "changes come from this page only")
        if path != "/api/login":
            self._owner_only(environ)
        body = _body(environ)
        store = self._stores()
        match path:
            case "/api/login":
                if not self._let_in(_text(body, "token"), environ):
                    raise Problem(HTTPStatus.UNAUTHORIZED, "that is not the token")
                headers = (("Cache-Control", "no-store"), ("Set-Cookie", self._gate.cookie))
                return Answer(HTTPStatus.OK, b"{}", headers=headers)
            case "/api/label":
                label = None if body.get("label") is None else check_label(_text(body, "label"))
                if label is not None and not self._may_add and label not in self._known(store.labels()):
                    raise DataError(f"{label!r} is none of this node's labels: {', '.join(self._labels)}")
                return _json({"changed": store.label(_ids(body), label, WHO)})
            case "/api/undo":
                undone = store.undo()
                if undone is None:
                    return _json({"samples": [], "who": None})
                found = (store.get(i) for i in undone.ids[:MAX_IDS])
                samples = [_sample(s) for s in found if s is not None]
                return _json({"samples": samples, "who": undone.who})
            case "/api/delete":
                ids = _ids(body)
                if body.get("confirm") != len(ids):
                    raise DataError("confirm must be the number of pictures: deleting cannot be undone")
                deleted = store.delete(ids)
                for sample in ids:
                    self.thumbnails.forget(sample)
                return _json({"deleted": deleted})
            case _:
                raise Problem(HTTPStatus.NOT_FOUND, "there is no such page")


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(status, json.dumps(value).encode())


def _sample(s: Sample) -> dict[str, Any]:
    suggestion = (
        {"label": s.suggestion.label, "probability": s.suggestion.probability} if s.suggestion else None
    )
    return {
        "id": s.id,
        "label": s.label,
        "suggestion": suggestion,
        "held_out": s.held_out,
        "captured_at": s.captured_at,
        "source": s.source,
        "width": s.width,
        "height": s.height,
    }


def _query(environ: dict[str, Any]) -> dict[str, str]:
    try:
        found = parse_qs(environ.get("QUERY_STRING", "")[:2048], max_num_fields=10)
    except ValueError:
        raise Problem(HTTPStatus.BAD_REQUEST, "too many fields in the address") from None
    return {name: values[0] for name, values in found.items()}


def _same_origin(environ: dict[str, Any]) -> bool:
    origin = environ.get("HTTP_ORIGIN")
    site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
    return site in ("same-origin", "none") and origin in (None, f"http://{environ.get('HTTP_HOST', '')}")


def _body(environ: dict[str, Any]) -> dict[str, Any]:
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()) or len(length) > 12:
        raise Problem(HTTPStatus.BAD_REQUEST, "expected a Content-Length")
    if int(length) > MAX_BODY_BYTES:
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY_BYTES} bytes")
    try:
        value = json.loads(environ["wsgi.input"].read(int(length)))
    except (ValueError, RecursionError):
        raise Problem(HTTPStatus.BAD_REQUEST, "expected JSON") from None
    if not isinstance(value, dict):
        raise Problem(HTTPStatus.BAD_REQUEST, "expected a JSON object")
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise DataError(f"{name}: expected text")
    return value


def _ids(body: Mapping[str, Any]) -> list[SampleId]:
    ids = body.get("ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_IDS or not all(isinstance(i, str) for i in ids):
        raise DataError(f"ids: expected a list of 1 to {MAX_IDS} sample ids")
    return list(dict.fromkeys(check_id(i) for i in ids))
