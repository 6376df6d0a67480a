"""The newest frame through the newest model, a few times a second; a model that fails changes nothing."""

import io
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import ApiaryError, ModelError
from apiary.learn.manifest import PictureInput
from apiary.settings import PredictSettings
from apiary_edge.predicting import model_files, models
from apiary_edge.predicting.job import PredictionEvent
from apiary_edge.predicting.model_files import ModelFile
from apiary_edge.predicting.models import Answered, OpenedModel

Bytes = NDArray[np.uint8]

LOOK_EVERY_S: Final = 1.0
"""The descriptions of models are three small files; looking whether they changed costs 30 microseconds."""
AGAIN_S: Final = 60.0
"""A model that could not be loaded is tried again after this: memory may have been short."""
SHOWN: Final = 3
"""Frames kept for pages that are a moment behind."""
SIDE: Final = 640
NO_MODEL: Final = "this node has no model yet: it comes with the first round"
_QUALITY: Final = 80
_TOP: Final = 5


@dataclass(slots=True)
class Shown:
    """A frame and what the model predicts for it. `label` is None where no probability is high enough."""

    number: int
    at: float
    frame: Bytes
    answered: Answered
    model: ModelFile
    label: str | None
    _jpeg: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def jpeg(self) -> bytes:
        """The frame as JPEG of at most 640 pixels, made once, when somebody looks."""
        with self._lock:
            if not self._jpeg:
                from PIL import Image

                picture = Image.fromarray(self.frame)
                picture.thumbnail((SIDE, SIDE))
                out = io.BytesIO()
                picture.save(out, "JPEG", quality=_QUALITY)
                self._jpeg = out.getvalue()
            return self._jpeg


class Changes:
    """Which predictions are worth a message: at most one in `every_s`, and only for news.

    News is another label, a probability that moved by `min_change` or more, another model, or nothing said
    for `repeat_s`: who came later has not received the last one, because predictions are not retained.
    """

    def __init__(self, settings: PredictSettings):
        self._settings = settings
        self._published: tuple[str, str | None] | None = None
        self._probability = 0.0
        self._published_at = 0.0

    def due(self, model: str, label: str | None, probability: float, now: float) -> bool:
        """Whether to publish it; then it counts as published. `now` is monotonic."""
        if self._published is not None:
            past = now - self._published_at
            if past < self._settings.every_s:
                return False
            moved = abs(probability - self._probability) >= self._settings.min_change
            if self._published == (model, label) and not moved and past < self._settings.repeat_s:
                return False
        self._published, self._probability, self._published_at = (model, label), probability, now
        return True


class LivePredictor:
    """Predictions on frames that `offer` brings. `turn` is a step of its thread, the rest is for any thread.

    `clock` is monotonic, `wall` seconds since 1970. Events go to `emit`.
    """

    def __init__(
        self,
        state_dir: Path,
        emit: Callable[[PredictionEvent], None],
        settings: PredictSettings,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        opening: Callable[[ModelFile], OpenedModel] = models.open_model,
    ):
        self._refused: str | None = None
        self._failing: str | None = None
        self._state_dir = state_dir
        self._emit = emit
        self._changes = Changes(settings)
        self._pause_s = 1 / settings.fps
        self._min_probability = settings.min_probability
        self._clock = clock
        self._wall = wall
        self._opening = opening
        self._using = threading.Lock()
        self._model: OpenedModel | None = None
        self._found: ModelFile | None = None
        self._stamp: tuple[object, ...] | None = None
        self._looked_at = float("-inf")
        self._again_at = float("inf")
        self._news = threading.Event()
        self._frame: Bytes | None = None
        self._fresh = False
        self._next_at = float("-inf")
        self._shown: deque[Shown] = deque(maxlen=SHOWN)
        self._number = 0

    def offer(self, frame: Bytes) -> None:
        """A frame uint8[H, W, 3] that nobody writes to any more; the one before it need not be looked at."""
        self._frame, self._fresh = frame, True
        self._news.set()

    def run(self, stop: threading.Event) -> None:
        """Turn until `stop` is set."""
        while not stop.is_set():
            wait = self.turn()
            if self._news.wait(min(wait, LOOK_EVERY_S)):
                self._news.clear()
                # Frames that come faster than they are looked at: the newest counts.
                stop.wait(max(0.0, self._next_at - self._clock()))
        with self._using:
            self._close()

    def turn(self) -> float:
        """Look for a newer model, and at the newest frame; seconds until there may be something to do."""
        now = self._clock()
        if now - self._looked_at >= LOOK_EVERY_S or now >= self._again_at:
            self._looked_at = now
            self._look(now)
        if self._fresh and self._model is not None and now >= self._next_at:
            self._next_at = now + self._pause_s
            self._predict()
        return max(0.0, self._next_at - self._clock()) if self._fresh else LOOK_EVERY_S

    @property
    def trouble(self) -> str | None:
        """Why the newest model is not in use, or why the one in use does not answer."""
        return self._refused or self._failing

    @property
    def model(self) -> ModelFile | None:
        """The model in use."""
        return self._found

    @property
    def input(self) -> PictureInput | None:
        """What the model in use looks at."""
        model = self._model
        return model.input if model is not None else None

    @property
    def newest(self) -> Shown | None:
        """The last frame that was looked at."""
        return self._shown[-1] if self._shown else None

    def age_s(self, shown: Shown) -> float:
        """How long ago it was looked at."""
        return max(0.0, self._wall() - shown.at)

    def shown(self, number: int) -> Shown | None:
        """One of the last few."""
        return next((s for s in self._shown.copy() if s.number == number), None)

    def classify(self, reading: Callable[[OpenedModel], Bytes]) -> tuple[Answered, ModelFile]:
        """Look at a picture that `reading` makes for the model. Raises ModelError, and as `reading`."""
        with self._using:
            if self._model is None or self._found is None:
                raise ModelError(self.trouble or NO_MODEL)
            return self._model.predict(reading(self._model)), self._found

    def label_of(self, answered: Answered) -> str | None:
        """The label, where it is probable enough."""
        return answered.label if answered.probability >= self._min_probability else None

    # -- inside ----------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        stamp = model_files.stamp(self._state_dir)
        if stamp == self._stamp and now < self._again_at:
            return
        self._stamp, self._again_at = stamp, float("inf")
        found = model_files.chosen(self._state_dir)
        if found is None or (found == self._found and self._failing is None):
            self._refused = None  # what could not be used is no longer wanted
            return
        try:
            with self._using:
                self._swap(found)
        except (ApiaryError, MemoryError) as e:
            self._again_at = now + AGAIN_S
            why = str(e) or "there is not enough memory"
            keeps = f"; going on with {self._found.name}" if self._found else ""
            before, self._refused = self._refused, f"{found.name} cannot be used: {why}{keeps}"[:500]
            if self._refused != before:
                self._emit(PredictionEvent(kind="refused", text=self._refused, model=found.digest))
            return
        self._refused = self._failing = None
        self._fresh = self._frame is not None
        self._emit(
            PredictionEvent(kind="model", text=found.name, model=found.digest, personal=found.personal)
        )

    def _swap(self, found: ModelFile) -> None:
        if self._model is not None and self._model.renew(found):
            # The same build with other weights: nothing else has to be loaded.
            self._found = found
            return
        fresh = self._opening(found)
        try:
            models.check(fresh, found.labels)
        except BaseException:
            fresh.close()
            raise
        self._close()
        self._model, self._found = fresh, found

    def _predict(self) -> None:
        self._fresh = False
        frame = self._frame
        with self._using:
            if frame is None or self._model is None or self._found is None:
                return
            found = self._found
            try:
                answered = self._model.predict(frame)
            except ApiaryError as e:
                if self._failing is None:
                    self._emit(PredictionEvent(kind="refused", text=str(e)[:500], model=found.digest))
                    self._again_at = min(self._again_at, self._clock() + AGAIN_S)
                self._failing = str(e)[:500]
                return
        self._failing = None
        self._number += 1
        label = self.label_of(answered)
        at = self._wall()
        self._shown.append(Shown(self._number, at, frame, answered, found, label))
        if self._changes.due(found.digest, label, answered.probability, self._clock()):
            self._emit(
                PredictionEvent(
                    kind="said",
                    label=label,
                    probability=answered.probability,
                    top=answered.top(_TOP),
                    model=found.digest,
                    personal=found.personal,
                    ms=round(answered.preprocess_ms + answered.inference_ms, 3),
                    at=round(at, 3),
                )
            )

    def _close(self) -> None:
        if self._model is not None:
            self._model.close()
        self._model = None
