"""picamera2's interface as far as a camera of ours uses it, with its names, order of pixels and errors.

After picamera2 0.3.31: `Picamera2(n)` raises IndexError without a camera; sizes must be even; frames come
from an event loop, so that a capture is a job whose result is waited for; `BGR888` is red first.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


class Job:
    def __init__(self) -> None:
        self._future: Future[Any] = Future()

    def finish(self, result: Any) -> None:
        self._future.set_result(result)

    def get_result(self, timeout: float | None = None) -> Any:
        return self._future.result(timeout=timeout)


class Picamera2:
    plugged: ClassVar[int] = 1
    scene: ClassVar[NDArray[np.uint8]]  # what is in front of the camera, red first
    in_use: ClassVar[set[int]] = set()

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        return [{"Model": "imx708", "Num": n} for n in range(Picamera2.plugged)]

    def __init__(self, camera_num: int = 0) -> None:
        self.is_open = False
        self.camera_idx = self.global_camera_info()[camera_num]["Num"]
        if self.camera_idx in self.in_use:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        self.in_use.add(self.camera_idx)
        self.is_open = True
        self.started = False
        self.camera_config: dict[str, Any] | None = None

    def create_video_configuration(
        self, main: dict[str, Any] | None = None, buffer_count: int = 6
    ) -> dict[str, Any]:
        valid = {"format", "size", "stride", "preserve_ar"}
        for key in main or {}:
            if key not in valid:
                raise ValueError(f"Bad key {key!r}: valid stream configuration keys are {valid}")
        stream = {"format": "XBGR8888", "size": (1280, 720), **(main or {})}
        return {"main": stream, "buffer_count": buffer_count}

    create_still_configuration = create_video_configuration

    def configure(self, camera_config: dict[str, Any]) -> None:
        if self.started:
            raise RuntimeError("Camera must be stopped before configuring")
        width, height = camera_config["main"]["size"]
        if width % 2 or height % 2:
            raise RuntimeError("width and height should be even")
        if camera_config["main"]["format"] not in ("RGB888", "BGR888"):
            raise RuntimeError(f"unsupported in this test: {camera_config['main']['format']}")
        self.camera_config = camera_config

    def start(self) -> None:
        if self.camera_config is None:
            raise RuntimeError("Camera has not been configured")
        self.started = True

    def capture_array(self, name: str = "main", wait: bool | None = None) -> Any:
        job = Job()
        if self.started and self.plugged > self.camera_idx:
            assert self.camera_config is not None
            stream = self.camera_config[name]
            width, height = stream["size"]
            rows = np.linspace(0, self.scene.shape[0] - 1, height).astype(int)
            columns = np.linspace(0, self.scene.shape[1] - 1, width).astype(int)
            picture = self.scene[np.ix_(rows, columns)]
            job.finish(np.ascontiguousarray(picture if stream["format"] == "BGR888" else picture[..., ::-1]))
        return job.get_result() if wait or wait is None else job

    def stop(self) -> None:
        self.started = False

    def close(self) -> None:
        if self.is_open:
            self.in_use.discard(self.camera_idx)
            self.is_open = False


def module() -> ModuleType:
    made = ModuleType("picamera2")
    made.Picamera2 = Picamera2  # type: ignore[attr-defined]  # a module made by hand
    return made
