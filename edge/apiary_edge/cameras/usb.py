"""USB and other Video4Linux cameras, through OpenCV: source `/dev/video0`, or its number `0`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apiary.errors import CameraError
from apiary.settings import CameraSettings
from apiary_edge.cameras._opencv import opencv
from apiary_edge.cameras.base import Camera

if TYPE_CHECKING:
    from apiary_edge.cameras.base import Frame


def camera(options: CameraSettings) -> Camera:
    """A Video4Linux camera; an empty source means the first one."""
    source = options.source or "0"
    device = Path(f"/dev/video{source}" if source.isdecimal() else source)
    return UsbCamera(device, options)


class UsbCamera:
    """One device. Two grabs a frame: the driver's queue holds an old one while nobody asks."""

    live = True

    def __init__(self, device: Path, options: CameraSettings):
        self.name = f"usb {device}"
        self._device = device
        self._options = options
        self._capture: Any = None
        self._cv2: Any = None

    def open(self) -> None:
        """Begin. Raises CameraError."""
        self.close()
        self._check()
        self._cv2 = cv2 = opencv(self.name)
        milliseconds = int(self._options.timeout_s * 1000)
        capture = cv2.VideoCapture(
            str(self._device), cv2.CAP_V4L2, [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        )
        if not capture.isOpened():
            capture.release()
            raise CameraError(
                f"{self.name}: it is there, but gives no pictures; another program may use it "
                f"(fuser {self._device}), or it is no camera (v4l2-ctl --list-devices shows them)"
            )
        # Compressed by the camera: USB 2 carries 640x480 uncompressed at 30 frames/s, larger ones at 5.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._options.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._options.height)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture = capture

    def frame(self) -> Frame | None:
        """The newest picture. Raises CameraError."""
        if self._capture is None:
            raise CameraError(f"{self.name}: it is not open")
        self._capture.grab()
        good, picture = self._capture.read()
        if not good or picture is None:
            raise CameraError(f"{self.name}: it gave no picture; is its plug loose, or its power too weak?")
        return self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def _check(self) -> None:
        try:
            mode = self._device.stat().st_mode
        except OSError as e:
            there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
            raise CameraError(
                f"{self.name}: {e.strerror}; plug it in, or set edge.camera.source (there are: {there})"
            ) from None
        if not stat.S_ISCHR(mode):
            raise CameraError(f"{self.name}: it is no device; for a video file use the kind 'stream'")
        if not os.access(self._device, os.R_OK | os.W_OK):
            raise CameraError(f"{self.name}: this user may not use it; add it to the group 'video'")
