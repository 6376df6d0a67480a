"""Network cameras (MJPEG over HTTP, RTSP) and video files, through OpenCV's FFmpeg."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apiary.errors import CameraError
from apiary.settings import CameraSettings
from apiary_edge.cameras._opencv import opencv
from apiary_edge.cameras.base import Camera, EndOfFrames

if TYPE_CHECKING:
    from apiary_edge.cameras.base import Frame

_ADDRESS = re.compile(r"(https?|rtsps?)://(?:[^/@]*@)?(.+)")


def camera(options: CameraSettings) -> Camera:
    """A network camera for an address, a file else."""
    if not options.source:
        raise CameraError(
            "stream: no source; set edge.camera.source to an address such as http://camera.local/stream.mjpg "
            "or rtsp://camera.local/live, or to a video file"
        )
    if match := _ADDRESS.fullmatch(options.source):
        # Without what stands before the @: it is a password.
        return NetworkCamera(f"stream {match[1]}://{match[2]}", options)
    if "://" in options.source:
        scheme = options.source.split(":", 1)[0]
        raise CameraError(f"stream: the address begins with {scheme}://, expected http, https, rtsp or rtsps")
    return VideoFile(Path(options.source))


class VideoFile:
    """A video file, frame after frame, to its end."""

    live = False

    def __init__(self, file: Path):
        self.name = f"stream {file}"
        self._file = file
        self._capture: Any = None
        self._cv2: Any = None
        self._frames = 0

    def open(self) -> None:
        """Begin at the first frame. Raises CameraError."""
        self.close()
        if not self._file.is_file():
            raise CameraError(f"{self.name}: there is no such file")
        self._cv2 = cv2 = opencv(self.name)
        capture = cv2.VideoCapture(str(self._file.absolute()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture.release()
            raise CameraError(f"{self.name}: it is no video that can be read here (mp4, avi and mkv can)")
        self._capture = capture
        self._frames = 0

    def frame(self) -> Frame | None:
        """The next frame. Raises EndOfFrames, or CameraError where there was none at all."""
        if self._capture is None:
            raise CameraError(f"{self.name}: it is not open")
        good, picture = self._capture.read()
        if good:
            self._frames += 1
            return self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]
        if self._frames == 0:
            raise CameraError(f"{self.name}: it holds no frame that can be decoded")
        raise EndOfFrames(f"{self.name}: the end, after {self._frames} frames")

    def close(self) -> None:
        """End."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


class NetworkCamera:
    """A live stream. A thread follows it, so that `frame` gives what is seen now and not what was queued."""

    live = True

    def __init__(self, name: str, options: CameraSettings):
        self.name = name
        self._options = options
        self._following: _Following | None = None

    def open(self) -> None:
        """Connect. Raises CameraError."""
        self.close()
        cv2 = opencv(self.name)
        milliseconds = int(self._options.timeout_s * 1000)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        capture = cv2.VideoCapture(self._options.source, cv2.CAP_FFMPEG, limits)
        if not capture.isOpened():
            capture.release()
            raise CameraError(
                f"{self.name}: no stream; is the camera on, the address right, and the password? "
                "Try it in a browser or with ffplay"
            )
        self._following = _Following(capture, self.name)

    def frame(self) -> Frame | None:
        """The newest frame. Raises CameraError where none comes within the timeout."""
        if self._following is None:
            raise CameraError(f"{self.name}: it is not open")
        picture = self._following.newest(self._options.timeout_s)
        if picture is None:
            why = "the stream ended" if self._following.ended else f"silent for {self._options.timeout_s:g} s"
            raise CameraError(f"{self.name}: {why}")
        cv2 = opencv(self.name)
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Disconnect."""
        following, self._following = self._following, None
        if following is not None:
            following.end(self._options.timeout_s)


class _Following:
    """The thread that reads on; a frame is converted only for those who ask, and given to them once."""

    def __init__(self, capture: Any, name: str):
        self.ended = False
        self._capture = capture
        self._stop = False
        self._wanted = False
        self._picture: Any = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name=name[:40], daemon=True)
        self._thread.start()

    def newest(self, timeout_s: float) -> Any:
        """The next frame that comes in, None where none does."""
        with self._changed:
            self._picture, self._wanted = None, True
            self._changed.wait_for(lambda: self._picture is not None or self.ended, timeout_s)
            picture, self._picture, self._wanted = self._picture, None, False
            return picture

    def end(self, timeout_s: float) -> None:
        """Stop; a read that hangs is left behind after the timeout, which bounds it as well."""
        self._stop = True
        self._thread.join(timeout_s + 1.0)

    def _follow(self) -> None:
        while not self._stop and self._capture.grab():
            if self._wanted:
                good, picture = self._capture.retrieve()
                with self._changed:
                    if good:
                        self._picture = picture
                        self._changed.notify_all()
        self._capture.release()
        with self._changed:
            self.ended = True
            self._changed.notify_all()
