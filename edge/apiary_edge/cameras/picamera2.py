"""The Pi's own cameras, through the system's picamera2 (`apt install python3-picamera2`); source 0, 1."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from apiary.errors import CameraError
from apiary.settings import CameraSettings
from apiary_edge.cameras.base import Camera

if TYPE_CHECKING:
    from apiary_edge.cameras.base import Frame


def camera(options: CameraSettings) -> Camera:
    """A ribbon cable's camera; an empty source means the first one."""
    if options.source and not options.source.isdecimal():
        raise CameraError(
            f"picamera2: source {options.source!r}, expected a camera's number such as 0 "
            "(rpicam-hello --list-cameras)"
        )
    return PiCamera(int(options.source or "0"), options)


class PiCamera:
    """One camera of libcamera, in its video mode: a frame is what is seen now, exposure is settled."""

    live = True

    def __init__(self, number: int, options: CameraSettings):
        self.name = f"picamera2 {number}"
        self._number = number
        self._options = options
        self._camera: Any = None

    def open(self) -> None:
        """Begin. Raises CameraError."""
        self.close()
        try:
            module = importlib.import_module("picamera2")
        except (
            Exception
        ) as e:  # numpy of another version raises ValueError, a half-installed libcamera OSError
            if not isinstance(e, ImportError):
                raise CameraError(
                    f"{self.name}: picamera2 is installed and does not load ({type(e).__name__}: {e}); it "
                    "comes from apt, and so does its numpy: python3 -c 'import picamera2' shows more"
                ) from None
            raise CameraError(
                f"{self.name}: picamera2 is not installed here ({e}): sudo apt install python3-picamera2, "
                "and make the venv with --system-site-packages"
            ) from None
        try:
            camera = module.Picamera2(self._number)
        except IndexError:
            raise CameraError(
                f"{self.name}: no such camera is connected; power off, check the ribbon cable, and see "
                "rpicam-hello --list-cameras"
            ) from None
        except Exception as e:  # libcamera raises RuntimeError and its own kinds
            raise CameraError(
                f"{self.name}: it cannot be used: {e}; another program may hold it, and a power supply that "
                "is too weak looks like this, too"
            ) from None
        self._camera = camera
        try:
            # libcamera's BGR888 is red first in memory, and so in the array (Picamera2 manual, 4.2.2.2).
            size = (self._options.width // 2 * 2, self._options.height // 2 * 2)
            wanted = camera.create_video_configuration(
                main={"size": size, "format": "BGR888"}, buffer_count=2
            )
            camera.configure(wanted)
            camera.start()
        except Exception as e:  # as above
            self.close()
            raise CameraError(
                f"{self.name}: it refuses {self._options.width}x{self._options.height}: {e}; set "
                "edge.camera.width and edge.camera.height"
            ) from None

    def frame(self) -> Frame | None:
        """The newest picture. Raises CameraError."""
        if self._camera is None:
            raise CameraError(f"{self.name}: it is not open")
        try:
            # As a job, since only that has a timeout: with its cable pulled, the camera would be waited for
            # for ever.
            job = self._camera.capture_array("main", wait=False)
            picture: Frame = job.get_result(timeout=self._options.timeout_s)
        except TimeoutError:
            raise CameraError(
                f"{self.name}: silent for {self._options.timeout_s:g} s; is the ribbon cable loose?"
            ) from None
        except Exception as e:  # as above
            raise CameraError(f"{self.name}: it gave no picture: {e}") from None
        return picture

    def close(self) -> None:
        """End."""
        camera, self._camera = self._camera, None
        if camera is not None:
            for end in (camera.stop, camera.close):
                with contextlib.suppress(Exception):  # a camera that is gone cannot be stopped in order
                    end()
