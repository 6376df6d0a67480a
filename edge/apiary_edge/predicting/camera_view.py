"""The state of the camera, for people who look at the page. Pure."""

from dataclasses import dataclass
from typing import Final

from apiary_edge.capture.job import CaptureEvent

_CHECK: Final = "It is tried again by itself. Check its cable or address, and edge.camera in the settings."


@dataclass(frozen=True, slots=True)
class CameraState:
    """In a few words; where it does not work, `todo` says what somebody has to do."""

    text: str
    works: bool = True
    todo: str = ""


NO_CAMERA: Final = CameraState(
    "This node has no camera.",
    works=False,
    todo="Set edge.camera.kind and start it again, or try a picture of your own (or POST /api/image).",
)


class CameraView:
    """What the camera's events come to. Without a `kind` there is no camera."""

    def __init__(self, kind: str | None):
        self._state = CameraState("The camera is being opened …") if kind else NO_CAMERA

    def __call__(self) -> CameraState:
        """The state by now."""
        return self._state

    def update(self, event: CaptureEvent) -> None:
        """Take an event of the camera."""
        match event.kind:
            case "gone" | "failed":
                self._state = CameraState(f"No picture: {event.text}", works=False, todo=_CHECK)
            case "back":
                self._state = CameraState("The camera is there; its first picture comes.")
            case "ended":
                self._state = CameraState("The camera's file has been read to its end.")
