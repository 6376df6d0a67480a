"""The predicting child: `python -m apiary_edge.predicting.child < JOB.json`. Camera in; samples, predictions
and a page out, until it is ended. Without a camera it serves the page alone.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from apiary.errors import ApiaryError
from apiary.http.server import HttpServer
from apiary_edge.capture import worker
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.child_messages import ChildEvent
from apiary_edge.labelling.server import give_memory_back
from apiary_edge.predicting.job import Line, PredictionEvent, PredictJob

PAGE_AGAIN_S: Final = 10.0
"""Before a port that is taken, or an address that is not up yet, is tried again."""
_JOIN_S: Final = 6.0
"""Longer than a program may take for one picture."""


class CameraView:
    """The state of the camera, for people who look at the page while there is no picture."""

    def __init__(self, kind: str | None):
        self._text = "The camera is being opened …" if kind else NO_CAMERA

    def __call__(self) -> str:
        """In a few words."""
        return self._text

    def update(self, event: CaptureEvent) -> None:
        """Take an event of the camera."""
        match event.kind:
            case "gone" | "failed":
                self._text = f"No picture: {event.text}"
            case "back":
                self._text = "The camera is there; its first picture comes."
            case "ended":
                self._text = "The camera's file has been read to its end."


NO_CAMERA: Final = (
    "This node has no camera (edge.camera.kind).\nTry a picture of your own, or post one to /api/image."
)


def main() -> int:
    """Run one job; what happens is on standard output, a line each."""
    give_memory_back()
    job = PredictJob.model_validate_json(sys.stdin.buffer.read())
    return worker.run_until_ended(lambda stop: run(job, ChildEvent.report, stop))


def run(job: PredictJob, emit: Callable[[Line], None], stop: threading.Event) -> None:
    """Capture, predict and serve until `stop` is set. Raises SettingsError, CameraError, StoreError."""
    from apiary_edge.predicting.live import LivePredictor

    edge = job.edge
    live = LivePredictor(edge.state_dir, emit, edge.predict, clock=time.monotonic, wall=time.time)
    camera = CameraView(edge.camera.kind)
    page = PageThread(lambda: _listen(job, live, camera), emit, stop)
    predicting = PredictionThread(live.run, stop)

    def on_capture(event: CaptureEvent) -> None:
        camera.update(event)
        emit(event)

    try:
        if edge.camera.kind is not None:
            worker.run(edge, on_capture, stop, watch=live.offer, watch_fps=edge.predict.fps)
        # A file that was read to its end stays to be looked at, until the service ends us.
        while not stop.wait(worker.ALIVE_S):
            emit(CaptureEvent(kind="alive"))
    finally:
        stop.set()
        page.close()
        predicting.join()


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

    `listen` raises ApiaryError; `close` is called after `stop` is set.
    """

    def __init__(
        self,
        listen: Callable[[], HttpServer],
        emit: Callable[[Line], None],
        stop: threading.Event,
        *,
        again_s: float = PAGE_AGAIN_S,
    ):
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
            server.run()
            return


def _listen(job: PredictJob, live: Any, camera: CameraView) -> HttpServer:
    from apiary_edge.labelling.server import check_host, listen
    from apiary_edge.predicting.pages import site
    from apiary_edge.web.gate import OwnerGate
    from apiary_edge.web.token import load_or_make

    wants = job.edge.predict
    host = check_host(wants.host, "edge.predict.host")
    gate = OwnerGate(load_or_make(job.edge.state_dir), wants.port, time.monotonic, time.sleep)
    pages = site(live, gate, job.edge.node_id, job.federation, camera)
    return listen(pages, host, wants.port, setting="edge.predict.port")


if __name__ == "__main__":
    raise SystemExit(main())
