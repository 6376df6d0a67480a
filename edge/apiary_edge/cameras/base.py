"""What a camera is. Cameras are opened in a capture child only: OpenCV and numpy are heavy guests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from apiary.errors import CameraError
from apiary.plugins import load, names
from apiary.settings import CameraSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]


class Camera(Protocol):
    """One camera. All calls come from one thread; none takes much longer than the timeout."""

    name: str
    """What a person calls it, such as `usb /dev/video0`; no password of an address is in it."""

    live: bool
    """Whether it shows the present, so that frames which nobody asks for are lost; files wait."""

    def open(self) -> None:
        """Begin. Raises CameraError: what is missing, and how to mend it."""

    def frame(self) -> Frame | None:
        """The newest picture, uint8[H, W, 3], red first; None where there is no new one now.

        Raises CameraError where the camera is gone; `close` and `open` may bring it back. EndOfFrames where
        a file has been read to its end, PassedOver where one of many files is no picture.
        """

    def close(self) -> None:
        """End, also after an error or a second time. Never raises."""


class CameraModule(Protocol):
    """What a module of this package offers."""

    def camera(self, options: CameraSettings) -> Camera:
        """A camera that is not open yet. Raises CameraError for settings that cannot be meant."""


class EndOfFrames(CameraError):  # noqa: N818 - it is no fault, like StopIteration
    """A file that was read to its end; there is nothing to wait for."""


class PassedOver(CameraError):  # noqa: N818 - the camera is there, and goes on with the next file
    """A file that is no readable picture, with the reason."""


def make(settings: CameraSettings) -> Camera:
    """The camera that is set. Raises SettingsError for an unknown kind, CameraError for the others."""
    return cast("CameraModule", load("apiary_edge.cameras", settings.kind or "")).camera(settings)


def kinds() -> tuple[str, ...]:
    """Every kind of camera there is."""
    return names("apiary_edge.cameras")
