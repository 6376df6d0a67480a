"""The threads that a server's application runs in."""

import logging
import queue
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from apiary.http.connection import Application, Environ, refusal, response

log = logging.getLogger(__name__)


class Workers:
    """Answers requests in `count` threads, from `start` to `close`; they never wait for a peer."""

    def __init__(self, app: Application, count: int):
        self._app = app
        self._count = count
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = False

    def start(self) -> None:
        """Begin to answer."""
        for number in range(self._count):
            threading.Thread(target=self._work, name=f"http-worker-{number}", daemon=True).start()

    def close(self) -> None:
        """End once what waits is answered."""
        self._closing = True
        for _ in range(self._count):
            self._jobs.put(None)

    def answer(self, environ: Environ) -> bytes:
        """The application's whole answer. Raises ConnectionAbortedError after `close`."""
        if self._closing:
            raise ConnectionAbortedError("the server is closing")
        done = threading.Event()
        made: list[bytes] = []

        def job() -> None:
            try:
                made.append(self._ask(environ))
            except Exception:
                log.exception("%s %r failed", environ["REQUEST_METHOD"], environ["PATH_INFO"])
                made.append(refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "this is an error of the server"))
            finally:
                done.set()

        self._jobs.put(job)
        done.wait()
        return made[0]

    def _ask(self, environ: Environ) -> bytes:
        head: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], error: object = None) -> None:
            head[:] = [status, headers]

        body = b"".join(self._app(environ, start_response))
        return response(head[0], head[1], body)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
