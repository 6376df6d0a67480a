"""OpenCV, which is an extra: found, or explained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from apiary.errors import CameraError

if TYPE_CHECKING:
    import types


def opencv(who: str) -> types.ModuleType:
    """The cv2 module, quiet and with one thread. Raises CameraError where it is not installed."""
    # Read when cv2 is imported: its own log of each camera that is not there says nothing we do not.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # RTSP over TCP: over UDP each lost packet is a torn frame.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    try:
        import cv2
    except ModuleNotFoundError as e:
        raise CameraError(
            f"{who}: needs OpenCV, which is not installed here ({e}): pip install 'apiary-fl[camera]'"
        ) from None
    except ImportError as e:  # it is there, and its libraries are not, or do not fit
        raise CameraError(
            f"{who}: OpenCV does not load here: {e}; where the address space is limited (ulimit -v), "
            "allow 350 MB"
        ) from None
    cv2.setNumThreads(1)
    return cv2
