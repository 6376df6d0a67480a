"""The page of the predicting child while its port is taken."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

from apiary.errors import SettingsError
from apiary.http.connection import Environ
from apiary.http.server import HttpServer
from apiary_edge.predicting.child import PageThread
from apiary_edge.predicting.job import Line, PredictionEvent


def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"the page"]


def test_a_port_that_is_taken_is_tried_again_and_said_once() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    tries = threading.Semaphore(0)
    said: list[Line] = []
    served, stop = threading.Event(), threading.Event()

    def listen() -> HttpServer:
        tries.release()
        try:
            return HttpServer(app, "127.0.0.1", port)
        except OSError as e:
            raise SettingsError(f"cannot listen: {e.strerror}") from e

    def emit(line: Line) -> None:
        said.append(line)
        if isinstance(line, PredictionEvent) and line.kind == "page":
            served.set()

    page = PageThread(listen, emit, stop, again_s=0.01)
    for _ in range(3):
        assert tries.acquire(timeout=30)
    assert [line.kind for line in said] == ["closed"]
    taken.close()
    assert served.wait(30)
    assert said[-1] == PredictionEvent(kind="page", text=f"http://127.0.0.1:{port}/")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        assert answer.read() == b"the page"
    stop.set()
    page.close()
    until = time.monotonic() + 30
    while any(t.name == "page" for t in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
