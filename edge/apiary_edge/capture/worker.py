"""The capture child: `python -m apiary_edge.capture.worker < JOB.json`. Camera in, samples out.

A process of its own, so that the service never holds OpenCV, Pillow and numpy, and a camera's driver that
crashes or hangs takes nothing else with it.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from apiary.errors import ApiaryError, CameraError, StoreError
from apiary.process.allocator import tune
from apiary.settings import EdgeSettings
from apiary_edge.cameras import base
from apiary_edge.cameras.base import Camera, EndOfFrames, PassedOver
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.capture.policy import Backoff, CapturePolicy, FrameVerdict
from apiary_edge.hours import minute_of_day
from apiary_edge.samples.model import Added, Duplicate, Incoming
from apiary_edge.samples.store import SampleStore

if TYPE_CHECKING:
    from apiary_edge.cameras.base import Frame
    from apiary_edge.capture.perceptual import Looks

Emit = Callable[[CaptureEvent], None]
Watch = Callable[["Frame"], None]

ALIVE_S: Final = 5.0
"""The child sends an event at least this often, while its camera answers in time."""
TROUBLE_PAUSE_S: Final = 60.0
"""A store that took a picture not is tried again after this; a full disk does not mend itself faster."""


class CaptureLoop:
    """The loop: `step` takes one frame at most and returns how long to wait before the next.

    `watch`, where given, sees every frame (live prediction), of which there are `watch_fps` a second then
    where the settings of the camera ask for fewer; `minute` is the local time in minutes since
    midnight, `clock` is monotonic.
    """

    def __init__(
        self,
        edge: EdgeSettings,
        camera: Camera,
        store: SampleStore,
        emit: Emit,
        *,
        clock: Callable[[], float],
        minute: Callable[[], int],
        watch: Watch | None = None,
        watch_fps: float = 0.0,
    ):
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.ended = False
        self._quality = edge.capture.jpeg_quality
        self._pause_s = 1 / max(edge.camera.fps, watch_fps if watch else 0.0)
        self._camera = camera
        self._store = store
        self._emit = emit
        self._clock = clock
        self._minute = minute
        self._watch = watch
        self._policy = CapturePolicy(edge.capture, store.recent_likeness(edge.capture.near_duplicate_window))
        self._backoff = Backoff(edge.camera.retry_max_s)
        self._open = False
        self._trouble_until: float | None = None
        self._emitted_at = clock()

    def step(self) -> float:
        """One frame, judged and perhaps kept; seconds to wait. Camera and disk may fail, it goes on."""
        began = self._clock()
        self._alive(began)
        try:
            if not self._open:
                self._camera.open()
                self._open = True
                self._backoff.reset()
                self._emit(CaptureEvent(kind="back", text=self._camera.name))
            due = self._due(began)
            if not (due or self._watch) or not (self._camera.live or due):
                return self._pause_s
            frame = self._camera.frame()
        except EndOfFrames as e:
            self.ended = True
            self._emit(CaptureEvent(kind="ended", text=str(e)))
            return 0.0
        except PassedOver:
            self.dropped["no readable picture"] += 1
            return 0.0
        except CameraError as e:
            self._open = False
            self._camera.close()
            pause = self._backoff.pause()
            self._emit(CaptureEvent(kind="gone", text=str(e)[:500], retry_s=pause))
            return pause
        if frame is None:
            return self._pause_s
        if self._watch is not None:
            self._watch(frame)
        if due:
            self._judge(frame, began)
        # Files wait for nobody: they are taken as fast as they come.
        return max(0.0, self._pause_s - (self._clock() - began)) if self._camera.live else 0.0

    def close(self) -> None:
        """Let the camera go."""
        self._camera.close()

    def _due(self, now: float) -> bool:
        if self._trouble_until is not None:
            if now < self._trouble_until:
                return False
            self._trouble_until = None
        if self._camera.live:
            return self._policy.due(now, self._minute())
        return self._policy.hours.open_at(self._minute())

    def _judge(self, frame: Frame, now: float) -> None:
        from apiary_edge.capture.perceptual import looks

        left, top, right, bottom = self._policy.region.box(frame.shape[1], frame.shape[0])
        part = frame[top:bottom, left:right]
        seen = looks(part)
        verdict = self._policy.judge(seen)
        if verdict is not FrameVerdict.KEEP:
            self.dropped[verdict.value] += 1
            return
        self._keep(part, seen, now)

    def _keep(self, part: Frame, seen: Looks, now: float) -> None:
        picture = Incoming(
            encode(part, self._quality), self._camera.name, automatic=True, likeness=seen.likeness
        )
        try:
            outcome = self._store.add(picture)
        except StoreError as e:
            self._trouble(str(e), now)
            return
        match outcome:
            case Added(sample, _):
                self._policy.kept(seen, now)
                self.kept += 1
                self._emit(CaptureEvent(kind="kept", id=sample))
            case Duplicate():
                self._policy.kept(seen, now)
                self.dropped["in the store already"] += 1
            case refused:
                self.dropped["refused by the store"] += 1
                if refused.full:
                    self._trouble(refused.why, now)

    def _trouble(self, why: str, now: float) -> None:
        self._trouble_until = now + TROUBLE_PAUSE_S
        self._emit(CaptureEvent(kind="trouble", text=why[:500], retry_s=TROUBLE_PAUSE_S))

    def _alive(self, now: float) -> None:
        if now - self._emitted_at >= ALIVE_S:
            self._emitted_at = now
            self._emit(CaptureEvent(kind="alive", kept=self.kept, dropped=dict(self.dropped)))


def encode(frame: Frame, quality: int) -> bytes:
    """A frame uint8[H, W, 3] as JPEG, without any metadata."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality)
    return out.getvalue()


def run(
    edge: EdgeSettings,
    emit: Emit,
    stop: threading.Event,
    *,
    watch: Watch | None = None,
    watch_fps: float = 0.0,
) -> None:
    """Capture until `stop` is set or a file has ended. Raises SettingsError, CameraError, StoreError."""
    camera = base.make(edge.camera)
    store = SampleStore.of_node(edge)
    capture = CaptureLoop(
        edge,
        camera,
        store,
        emit,
        clock=time.monotonic,
        minute=lambda: minute_of_day(time.time()),
        watch=watch,
        watch_fps=watch_fps,
    )
    try:
        while not stop.is_set() and not capture.ended:
            wait = capture.step()
            while wait > 0 and not stop.wait(min(wait, ALIVE_S)):
                wait -= ALIVE_S
                if wait > 0:
                    emit(CaptureEvent(kind="alive", kept=capture.kept, dropped=dict(capture.dropped)))
    finally:
        capture.close()
        store.close()


def main() -> int:
    """Run one job; what happens is on standard output as `CaptureEvent` lines."""
    edge = EdgeSettings.model_validate_json(sys.stdin.buffer.read())
    return run_until_ended(lambda stop: run(edge, CaptureEvent.report, stop))


def run_until_ended(act: Callable[[threading.Event], None]) -> int:
    """Have `act` run until SIGTERM or SIGINT sets its event, and report why it failed; the exit code."""
    tune(small=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        act(stop)
    except ApiaryError as e:
        CaptureEvent(kind="failed", text=str(e)[:500]).report()
        return e.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
