"""The service's side of the capture child."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from apiary_edge.capture.job import CaptureEvent, CaptureJob, parse
from apiary_edge.capture.lasting_child import LastingChild
from apiary_edge.feature import NodeFeature

log = logging.getLogger(__name__)

SILENT_S: Final = 30.0
"""On top of two of the camera's own timeouts: a child that says nothing for so long hangs in a driver."""


class CameraStatus:
    """What the camera's child tells: into the log, and the last of it in `text`, for people."""

    def __init__(self, node: str):
        self.text = "starting"
        self._node = node

    def __call__(self, told: CaptureEvent) -> None:
        """One line of it."""
        match told.kind:
            case "gone" | "trouble" | "failed":
                log.warning("node=%s camera: %s", self._node, told.text)
            case "back" | "ended":
                log.info("node=%s camera: %s", self._node, told.text or told.kind)
            case _:
                log.debug("node=%s camera %s id=%s kept=%d", self._node, told.kind, told.id[:12], told.kept)
        working = told.kind in ("kept", "alive", "back")
        self.text = "taking pictures" if working else told.text or told.kind


class CaptureFeature(NodeFeature):
    """The camera child as a part of the node."""

    def __init__(self, process: CaptureProcess, says: CameraStatus):
        self._process = process
        self._says = says

    def tick(self, now: float) -> None:
        """Keep the child going, and say what it tells."""
        self._process.tick(now)
        for told in self._process.collect():
            self._says(told)

    def close(self) -> None:
        """End the child."""
        self._process.stop()


class CaptureProcess(LastingChild[CaptureEvent]):
    """`apiary_edge.capture.worker` as a child."""

    name = "capture"
    module = "apiary_edge.capture.worker"

    def __init__(self, job: CaptureJob, wake: Callable[[], None], nice: int = 5):
        super().__init__(job.model_dump_json().encode(), silent_s(job), wake, nice)

    def parse(self, line: bytes) -> CaptureEvent | None:
        """A line of the child."""
        return parse(line)

    def broken(self, why: str, retry_s: float) -> CaptureEvent:
        """As if the camera were gone."""
        return CaptureEvent(kind="gone", text=why, retry_s=retry_s)

    def is_well(self, told: CaptureEvent) -> bool:
        """The camera is there."""
        return told.kind == "back"

    def is_over(self, told: CaptureEvent) -> bool:
        """Settings do not mend themselves, and a file stays at its end."""
        return told.kind in ("ended", "failed")


def silent_s(job: CaptureJob | None) -> float:
    """How long a child with this camera may say nothing."""
    return SILENT_S + (2 * job.camera.timeout_s if job is not None else 0.0)
