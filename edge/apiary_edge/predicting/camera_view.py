"""The state of the camera, for people who look at the page. Pure."""

from dataclasses import dataclass
from typing import Final

from apiary_edge.capture.job import CaptureEvent

NO_CAMERA: Final = (
    "This node has no camera: set edge.camera.kind and start it again.\n"
    "Or try a picture of your own, by the button or by POST /api/image."
)
_CHECK: Final = "It is tried again by itself. Check its cable or address, and edge.camera in the settings."


@dataclass(frozen=True, slots=True)
class CameraState:
    """In a few words; `works` is false where somebody has to do something."""

    text: str
    works: bool


class CameraView:
    """What the camera's events come to. Without a `kind` there is no camera."""

    def __init__(self, kind: str | None):
        self._state = (
            CameraState("The camera is being opened …", works=True)
            if kind
            else CameraState(NO_CAMERA, works=False)
        )

    def __call__(self) -> CameraState:
        """The state by now."""
        return self._state

    def update(self, event: CaptureEvent) -> None:
        """Take an event of the camera."""
        match event.kind:
            case "gone" | "failed":
                self._state = CameraState(f"No picture: {event.text}\n{_CHECK}", works=False)
            case "back":
                self._state = CameraState("The camera is there; its first picture comes.", works=True)
            case "ended":
                self._state = CameraState("The camera's file has been read to its end.", works=True)
