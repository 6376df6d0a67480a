"""Speaks WSGI to a page's application as a browser would by HTTP, and a clock that tests move."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any


class Clock:
    """A clock that tests move, and the pauses that were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now


class Browser:
    """Speaks WSGI to the app as a browser would by HTTP."""

    def __init__(self, app: Callable[..., Iterable[bytes]], token: str):
        self.app = app
        self.token = token
        self.cookie = ""
        self.headers: dict[str, str] = {}

    def ask(
        self, method: str, path: str, body: bytes = b"", /, address: str = "127.0.0.1", **headers: str
    ) -> tuple[int, bytes]:
        at, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": at,
            "QUERY_STRING": query,
            "REMOTE_ADDR": address,
            "HTTP_HOST": "127.0.0.1:4911",
            "HTTP_COOKIE": self.cookie,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            **headers,
        }
        status = 0

        def start(line: str, found: list[tuple[str, str]]) -> None:
            nonlocal status
            status, self.headers = int(line[:3]), dict(found)

        answer = b"".join(self.app(environ, start))
        return status, answer

    def get(self, path: str) -> Any:
        status, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, Any]:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        wanted = {"HTTP_X_APIARY": "1", "CONTENT_TYPE": "application/json", **headers}
        status, answer = self.ask("POST", path, body, **wanted)
        return status, json.loads(answer)

    def login(self) -> None:
        assert self.ask("GET", f"/?token={self.token}")[0] == 200
        self.cookie = self.headers["Set-Cookie"].partition(";")[0]
