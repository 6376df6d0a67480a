"""The predicting child: `python -m apiary_edge.predicting.child < JOB.json`. Camera in; samples, predictions
and the node's pages out, until it is ended. Without a camera, or predictions, it serves the pages alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from apiary.errors import ApiaryError, CameraError, SettingsError
from apiary.http.server import HttpServer
from apiary.settings.page import LAN
from apiary_edge.capture import worker
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.child_messages import ChildEvent
from apiary_edge.labelling.server import give_memory_back
from apiary_edge.predicting.camera_view import CameraView
from apiary_edge.predicting.job import Line, PredictionEvent, PredictJob

if TYPE_CHECKING:
    from apiary_edge.predicting.live import LivePredictor

PAGE_AGAIN_S: Final = 10.0
"""Before a port that is taken, or an address that is not up yet, is tried again."""
CAMERA_AGAIN_S: Final = 60.0
"""Before a camera that cannot be meant, or whose library is missing, is tried again beside a page."""
_JOIN_S: Final = 6.0
"""Longer than a program may take for one picture."""


def main() -> int:
    """Run one job; what happens is on standard output, a line each."""
    give_memory_back()
    job = PredictJob.model_validate_json(sys.stdin.buffer.read())
    return worker.run_until_ended(lambda stop: run(job, ChildEvent.report, stop))


def run(job: PredictJob, emit: Callable[[Line], None], stop: threading.Event) -> None:
    """Capture, predict and serve until `stop` is set. Raises SettingsError, CameraError, StoreError."""
    edge = job.edge
    live = _predictor(job, emit) if edge.predict.enabled else None
    camera = CameraView(edge.camera.kind)
    page = (
        PageThread(
            lambda: _listen(job, live, camera), emit, stop, moved=lambda server: _has_moved(job, server)
        )
        if edge.serves_pages
        else None
    )
    predicting = PredictionThread(live.run, stop) if live is not None else None

    def on_capture(event: CaptureEvent) -> None:
        camera.update(event)
        emit(event)

    try:
        while edge.camera.kind is not None:
            try:
                watch = live.offer if live is not None else None
                worker.run(edge, on_capture, stop, watch=watch, watch_fps=edge.predict.fps)
                break
            except (SettingsError, CameraError) as e:
                if page is None:
                    raise
                # The page stays, and says what is wrong with the camera.
                on_capture(CaptureEvent(kind="gone", text=str(e)[:500], retry_s=CAMERA_AGAIN_S))
                if _waits(CAMERA_AGAIN_S, emit, stop):
                    break
        # A file that was read to its end stays to be looked at, until the service ends us.
        while not stop.wait(worker.ALIVE_S):
            emit(CaptureEvent(kind="alive"))
    finally:
        stop.set()
        if page is not None:
            page.close()
        if predicting is not None:
            predicting.join()


def _waits(seconds: float, emit: Callable[[Line], None], stop: threading.Event) -> bool:
    """Wait, and say that the child is alive meanwhile; whether `stop` was set."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stop.wait(min(left, worker.ALIVE_S)):
            return True
        emit(CaptureEvent(kind="alive"))
    return False


def _predictor(job: PredictJob, emit: Callable[[Line], None]) -> LivePredictor:
    from apiary_edge.predicting.live import LivePredictor

    return LivePredictor(job.edge.state_dir, emit, job.edge.predict, clock=time.monotonic, wall=time.time)


class PredictionThread:
    """The thread that predicts. Where it fails the child ends: one that only captured would look well."""

    def __init__(self, turn: Callable[[threading.Event], None], stop: threading.Event):
        self._turn = turn
        self._stop = stop
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="predicting", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for it. Raises the error that it failed with."""
        self._thread.join(_JOIN_S)
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        try:
            self._turn(self._stop)
        except BaseException as e:  # the seam between threads: `join` raises it again
            self._failed = e
        finally:
            self._stop.set()


class PageThread:
    """Serves the page; where its port is taken, or its address not up yet, it tries again.

    `listen` raises ApiaryError; `close` is called after `stop` is set. A server that `moved`, because this
    machine has another address now, is closed, and listens anew.
    """

    def __init__(
        self,
        listen: Callable[[], HttpServer],
        emit: Callable[[Line], None],
        stop: threading.Event,
        *,
        again_s: float = PAGE_AGAIN_S,
        moved: Callable[[HttpServer], bool] = lambda server: False,
    ):
        self._moved = moved
        self._listen = listen
        self._emit = emit
        self._stop = stop
        self._again_s = again_s
        self._server: HttpServer | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="page", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        with self._lock:
            if self._server is not None:
                self._server.close()

    def _run(self) -> None:
        why = ""
        while not self._stop.is_set():
            try:
                server = self._listen()
            except ApiaryError as e:
                if str(e) != why:
                    why = str(e)
                    self._emit(PredictionEvent(kind="closed", text=why[:500]))
                self._stop.wait(self._again_s)
                continue
            with self._lock:
                self._server = server
                if self._stop.is_set():
                    server.close()
                    return
            self._emit(PredictionEvent(kind="page", text=f"http://{server.address}/"))
            why = ""
            serving = threading.Thread(target=server.run, name="page-server", daemon=True)
            serving.start()
            while serving.is_alive() and not self._stop.wait(self._again_s):
                if self._moved(server):
                    server.close()
            serving.join(_JOIN_S)


def _address(job: PredictJob) -> str:
    """Where to listen now. Raises SettingsError, NotReady."""
    from apiary_edge.labelling.server import check_host, lan_address

    host = job.edge.page.host
    return check_host(lan_address() if host == LAN else host, "edge.page.host")


def _has_moved(job: PredictJob, server: HttpServer) -> bool:
    if job.edge.page.host != LAN:
        return False
    try:
        return bool(_address(job) != server.host)
    except ApiaryError:
        return False  # the network is away for the time; the address may come back with it


def _listen(job: PredictJob, live: LivePredictor | None, camera: CameraView) -> HttpServer:
    from apiary_edge.labelling.server import listen
    from apiary_edge.predicting.appliance import pages

    host = _address(job)
    return listen(pages(job, live, camera), host, job.edge.page.port, setting="edge.page.port")


if __name__ == "__main__":
    raise SystemExit(main())
