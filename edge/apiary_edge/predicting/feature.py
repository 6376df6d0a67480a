"""The service's side of live prediction: its child, the events, and what is published of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apiary.wire.messages import Likely, Prediction
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.capture.lasting_child import LastingChild
from apiary_edge.capture.process import CameraStatus, silent_s
from apiary_edge.feature import NodeFeature
from apiary_edge.predicting.job import Line, PredictionEvent, PredictJob
from apiary_edge.transfer.channel import NodeChannel

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PredictionStatus:
    """The latest state of the predicting child, for people."""

    model: str = "no model yet"
    trouble: str = ""
    page: str = ""

    @property
    def text(self) -> str:
        """In a line."""
        return ", ".join(part for part in (self.model, self.trouble) if part)


class PredictionFeature(NodeFeature):
    """The predicting child as a part of the node; it captures, too, where there is a camera.

    `refused` is called with the digest of a model that cannot be used or does not answer, and why.
    """

    def __init__(
        self,
        channel: NodeChannel,
        process: PredictProcess,
        *,
        camera: CameraStatus | None,
        says: PredictionStatus,
        publish: bool,
        refused: Callable[[str, str], None] = lambda digest, why: None,
    ):
        self._status = says
        self._channel = channel
        self._camera = camera
        self._process = process
        self._publish = publish
        self._refused = refused
        self._serves: str | None = None

    def status(self) -> Mapping[str, Any]:
        """The model that answers for this node, once the child has opened one."""
        return {"model": self._serves[:500]} if self._serves is not None else {}

    def tick(self, now: float) -> None:
        """Keep the child running; publish its predictions."""
        self._process.tick(now)
        for event in self._process.collect():
            if isinstance(event, PredictionEvent):
                self._receive(event)
                continue
            if event.kind in self._process.over:
                self._serves = None
            if self._camera is not None:
                self._camera(event)
            elif event.kind in ("gone", "failed"):
                log.warning("node=%s predictions: %s", self._channel.node, event.text)

    def close(self) -> None:
        """End the child."""
        self._process.stop()
        self._status.page = ""

    def _receive(self, event: PredictionEvent) -> None:
        node = self._channel.node
        match event.kind:
            case "said":
                if self._publish:
                    self._channel.send(prediction_of(event))
            case "model":
                self._status.model, self._status.trouble = event.text, ""
                self._serves = event.text + (" (tuned)" if event.personal else "")
                log.info("node=%s predicts with %s", node, self._serves)
            case "refused" | "closed":
                self._status.trouble = event.text
                log.warning("node=%s predictions: %s", node, event.text)
                if event.kind == "refused":
                    self._refused(event.model, event.text)
                else:
                    self._status.page = ""
            case "page":
                self._status.page = event.text
                log.info("node=%s pages: %s (apiary label --qr signs a phone in)", node, event.text)


class PredictProcess(LastingChild[PredictionEvent]):
    """`apiary_edge.predicting.child` as a child."""

    name = "prediction"
    module = "apiary_edge.predicting.child"
    well = ("back", "model")
    over = ("failed",)
    """A file at its end is still looked at."""

    def __init__(self, job: PredictJob, wake: Callable[[], None]):
        super().__init__(job.model_dump_json().encode(), silent_s(job.edge.camera), wake)

    @staticmethod
    def parse(line: bytes) -> Line | None:
        """A line of the child, None for anything that a library printed."""
        return PredictionEvent.parse(line) or CaptureEvent.parse(line)


def prediction_of(event: PredictionEvent) -> Prediction:
    """The message that is published for a `said` event."""
    return Prediction(
        label=event.label,
        # A softmax in float32 may come out as 1.0000001.
        probability=_share(event.probability),
        top=[Likely(label=label, probability=_share(p)) for label, p in event.top],
        model=event.model,
        personal=event.personal,
        ms=event.ms,
        at=event.at,
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
