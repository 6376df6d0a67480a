"""The service's side of the capture child: start it again where it ends, log its events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from apiary.settings import CameraSettings, EdgeSettings
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.capture.lasting_child import LastingChild
from apiary_edge.feature import NodeFeature

log = logging.getLogger(__name__)

SILENT_S: Final = 30.0
"""On top of two of the camera's own timeouts: a child that prints nothing for so long hangs in a driver."""


class CameraStatus:
    """Logs the events of the camera's child; `text` holds the latest, for people."""

    def __init__(self, node: str):
        self.text = "starting"
        self._node = node

    def __call__(self, event: CaptureEvent) -> None:
        """Take one event."""
        match event.kind:
            case "gone" | "trouble" | "failed":
                log.warning("node=%s camera: %s", self._node, event.text)
            case "back" | "ended":
                log.info("node=%s camera: %s", self._node, event.text or event.kind)
            case _:
                log.debug(
                    "node=%s camera %s id=%s kept=%d", self._node, event.kind, event.id[:12], event.kept
                )
        # A child is alive while its camera is not there, too.
        if event.kind != "alive":
            self.text = "taking pictures" if event.kind in ("kept", "back") else event.text or event.kind


class CaptureFeature(NodeFeature):
    """The camera child as a part of the node."""

    def __init__(self, process: CaptureProcess, status: CameraStatus):
        self._process = process
        self._status = status

    def tick(self, now: float) -> None:
        """Keep the child running, and log its events."""
        self._process.tick(now)
        for event in self._process.collect():
            self._status(event)

    def close(self) -> None:
        """End the child."""
        self._process.stop()


class CaptureProcess(LastingChild[CaptureEvent]):
    """`apiary_edge.capture.worker` as a child."""

    name = "capture"
    module = "apiary_edge.capture.worker"
    well = ("back",)
    over = ("ended", "failed")

    def __init__(self, edge: EdgeSettings, wake: Callable[[], None]):
        super().__init__(edge.model_dump_json().encode(), silent_s(edge.camera), wake)


def silent_s(camera: CameraSettings) -> float:
    """How long a child with this camera, or none, may report nothing."""
    return SILENT_S + (2 * camera.timeout_s if camera.kind is not None else 0.0)
