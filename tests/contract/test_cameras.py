"""One suite over every kind of camera there is: a scene goes in, red first frames of it come out.

Each kind has a rig that puts a scene before it and takes it away: picamera2 a stand-in of its interface, a
stream a real HTTP server, a file a real video, a folder real files. USB needs a device: a rig for it is the
kernel's `v4l2loopback` (APIARY_VIDEO_DEVICE), and its errors are tried everywhere.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.contract import picamera2_stand_in

from apiary.errors import CameraError, SettingsError
from apiary.settings import CameraSettings
from apiary_edge.cameras import base
from apiary_edge.cameras import folder as folder_camera
from apiary_edge.cameras.base import Camera, EndOfFrames, PassedOver

TIMEOUT_S = 1.0
WIDTH, HEIGHT = 160, 120


def scene() -> NDArray[np.uint8]:
    """Red on the left, blue on the right, a bright upper edge: each mistake of order shows."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, : WIDTH // 2] = (220, 30, 20)
    picture[:, WIDTH // 2 :] = (20, 40, 210)
    picture[: HEIGHT // 6] = (240, 240, 240)
    return picture


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=95)
    return out.getvalue()


@dataclass
class Rig:
    """`gone` takes the camera away, `back` brings it back; None where the kind has no such thing."""

    camera: Camera
    gone: Callable[[], object] | None = None
    back: Callable[[], object] | None = None


class MjpegServer:
    """A network camera: multipart JPEG over HTTP, until it is switched off."""

    def __init__(self, port: int = 0):
        switched_on = threading.Event()
        switched_on.set()
        self.switched_on = switched_on
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                picture = jpeg(scene())
                try:
                    while switched_on.is_set():
                        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                        self.wfile.write(b"--frame\r\n" + head.encode() + picture + b"\r\n")
                        time.sleep(0.02)
                except OSError:
                    return

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.switched_on.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def write_video(path: Path, frames: int) -> Path:
    cv2 = pytest.importorskip("cv2", reason="needs the extra 'camera'")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for _ in range(frames):
        writer.write(np.ascontiguousarray(scene()[..., ::-1]))
    writer.release()
    return path


def options(kind: str, source: object = "") -> CameraSettings:
    return CameraSettings(kind=kind, source=str(source), width=WIDTH, height=HEIGHT, timeout_s=TIMEOUT_S)


def rig_picamera2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setitem(sys.modules, "picamera2", picamera2_stand_in.module())
    kind = picamera2_stand_in.Picamera2
    kind.scene, kind.plugged = scene(), 1
    yield Rig(
        base.make(options("picamera2")),
        lambda: setattr(kind, "plugged", 0),
        lambda: setattr(kind, "plugged", 1),
    )
    kind.in_use.clear()


def rig_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    pytest.importorskip("cv2", reason="needs the extra 'camera'")
    servers = [MjpegServer()]
    port = servers[0].port
    yield Rig(
        base.make(options("stream", f"http://127.0.0.1:{port}/stream.mjpg")),
        servers[0].close,
        lambda: servers.append(MjpegServer(port)),
    )
    servers[-1].close()


def rig_stream_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    yield Rig(base.make(options("stream", write_video(tmp_path / "clip.avi", 5))))


def rig_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(folder_camera, "SETTLED_S", 0.0)
    folder = tmp_path / "watched"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(jpeg(scene()))
    away = tmp_path / "unplugged"
    yield Rig(base.make(options("folder", folder)), lambda: folder.rename(away), lambda: away.rename(folder))


def rig_usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    device = os.environ.get("APIARY_VIDEO_DEVICE")
    if device is None:
        pytest.skip("needs a video device: set APIARY_VIDEO_DEVICE to one that shows the scene")
    yield Rig(base.make(options("usb", device)))


RIGS = {
    "picamera2": rig_picamera2,
    "stream": rig_stream,
    "stream-file": rig_stream_file,
    "folder": rig_folder,
    "usb": rig_usb,
}


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    for made in RIGS[request.param](tmp_path, monkeypatch):
        yield made
        made.camera.close()


def test_every_kind_has_a_rig() -> None:
    assert {name.split("-")[0] for name in RIGS} == set(base.kinds())


def test_a_frame_is_what_is_seen_red_first(rig: Rig) -> None:
    rig.camera.open()
    frame = rig.camera.frame()
    assert frame is not None and frame.dtype == np.uint8
    assert frame.shape == (HEIGHT, WIDTH, 3)
    off = np.abs(frame.astype(int) - scene()).mean(axis=2)
    # A JPEG smears colours along the edges only.
    assert np.median(off) < 12
    for column, bright, dark in ((20, 0, 2), (140, 2, 0)):
        assert frame[60, column, bright] > 180
        assert frame[60, column, dark] < 80
    assert frame[5].min() > 200


def test_close_twice_and_open_again(rig: Rig) -> None:
    rig.camera.close()
    rig.camera.open()
    assert rig.camera.frame() is not None
    rig.camera.close()
    rig.camera.close()
    rig.camera.open()
    assert rig.camera.frame() is not None or not rig.camera.live


# A file that was opened stays, and nobody pulls out the USB camera of a test.
@pytest.mark.parametrize("rig", ["folder", "picamera2", "stream"], indirect=True)
def test_a_camera_that_disappears_is_reported_and_comes_back(rig: Rig) -> None:
    assert rig.gone is not None and rig.back is not None
    rig.camera.open()
    assert rig.camera.frame() is not None
    rig.gone()
    with pytest.raises(CameraError, match=rig.camera.name):
        for _ in range(100):
            rig.camera.frame()
    rig.camera.close()
    with pytest.raises(CameraError, match=rig.camera.name):
        rig.camera.open()
    rig.camera.close()
    rig.back()
    rig.camera.open()
    if rig.camera.live:
        assert rig.camera.frame() is not None


@pytest.mark.parametrize(
    "error", [ValueError("numpy.dtype size changed"), OSError("libcamera.so"), SystemError()]
)
def test_picamera2_that_does_not_load_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "picamera2.py").write_text(f"raise {error!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "picamera2", raising=False)
    with pytest.raises(CameraError, match=rf"is installed and does not load \({type(error).__name__}: .*apt"):
        base.make(options("picamera2")).open()


def test_an_error_says_what_it_is_and_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    no_video = tmp_path / "notes.mp4"
    no_video.write_text("no video")
    a_file = tmp_path / "plain"
    a_file.write_text("")
    wrong = [
        (
            "picamera2",
            "",
            "picamera2 0: picamera2 is not installed here .* sudo apt install",
        ),
        ("usb", "/dev/video97", r"usb /dev/video97: No such file or directory; plug it in, or set .*source"),
        ("usb", str(a_file), "it is no device; for a video file use the kind 'stream'"),
        ("stream", str(tmp_path / "none.mp4"), "there is no such file"),
        ("stream", str(no_video), "it is no video that can be read here"),
        ("stream", "http://user:secret@127.0.0.1:9/x.mjpg", "stream http://127.0.0.1:9/x.mjpg: no stream"),
        ("folder", str(tmp_path / "none"), "there is no such folder; make it, or set edge.camera.source"),
    ]
    for kind, source, says in wrong:
        with pytest.raises(CameraError, match=says) as e:
            base.make(options(kind, source)).open()
        assert "secret" not in str(e.value)


def test_options_that_cannot_be_meant() -> None:
    with pytest.raises(SettingsError, match="cameras: no 'ubs'; did you mean 'usb'"):
        base.make(options("ubs"))
    with pytest.raises(CameraError, match="expected a camera's number such as 0"):
        base.make(options("picamera2", "/dev/video0"))
    with pytest.raises(CameraError, match="begins with file://, expected http, https, rtsp or rtsps"):
        base.make(options("stream", "file:///etc/passwd"))
    for kind in ("stream", "folder"):
        with pytest.raises(CameraError, match=r"no source; set edge\.camera\.source"):
            base.make(options(kind))


def test_a_pi_camera_that_is_missing_or_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", picamera2_stand_in.module())
    monkeypatch.setattr(picamera2_stand_in.Picamera2, "plugged", 0)
    with pytest.raises(CameraError, match="no such camera is connected; power off, check the ribbon cable"):
        base.make(options("picamera2")).open()
    monkeypatch.setattr(picamera2_stand_in.Picamera2, "plugged", 1)
    monkeypatch.setattr(picamera2_stand_in.Picamera2, "in_use", {0})
    with pytest.raises(CameraError, match="another program may hold it"):
        base.make(options("picamera2")).open()


def test_a_video_file_ends_once_all_its_frames_were_seen(tmp_path: Path) -> None:
    camera = base.make(options("stream", write_video(tmp_path / "clip.avi", 5)))
    camera.open()
    for _ in range(5):
        assert camera.frame() is not None
    with pytest.raises(EndOfFrames, match="after 5 frames"):
        camera.frame()
    camera.close()


def test_a_slow_reader_of_a_stream_sees_the_present(tmp_path: Path) -> None:
    """Frames are not queued: who asks again after a while gets a frame sent after that."""
    pytest.importorskip("cv2", reason="needs the extra 'camera'")
    server = MjpegServer()
    camera = base.make(options("stream", f"http://127.0.0.1:{server.port}/"))
    camera.open()
    assert camera.frame() is not None
    server.switched_on.clear()
    time.sleep(0.3)
    with pytest.raises(CameraError, match="the stream ended"):
        camera.frame()
    camera.close()
    server.close()


def test_a_watched_folder_gives_each_picture_once_oldest_first_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_camera, "SETTLED_S", 0.1)
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(jpeg(scene()))
    os.utime(outside, (5, 5))
    folder = tmp_path / "watched"
    folder.mkdir()
    (folder / "link.jpg").symlink_to(outside)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / ".hidden.jpg").write_bytes(jpeg(scene()))
    (folder / "notes.txt").write_text("no picture")
    (folder / "torn.jpg").write_bytes(jpeg(scene())[:300])
    for name, size in {"b.jpg": (30, 20), "a.png": (40, 20)}.items():
        time.sleep(0.01)
        Image.new("RGB", size, (200, 10, 10)).save(folder / name)
    time.sleep(0.15)
    camera = base.make(options("folder", folder))
    camera.open()
    with pytest.raises(PassedOver, match=r"torn\.jpg: not a readable picture"):
        camera.frame()
    frames = [camera.frame() for _ in range(3)]
    assert [f.shape for f in frames if f is not None] == [(20, 30, 3), (20, 40, 3)]
    assert frames[2] is None
    (folder / "new.jpg").write_bytes(jpeg(scene()))
    assert camera.frame() is None, "a file that may still be written is left alone"
    time.sleep(0.15)
    frame = camera.frame()
    assert frame is not None and frame.shape == (HEIGHT, WIDTH, 3)
    assert camera.frame() is None
    for name in ("c.jpg", "d.jpg"):
        (folder / name).write_bytes(jpeg(scene()))
    time.sleep(0.15)
    assert camera.frame() is not None
    folder.rename(tmp_path / "away")
    with pytest.raises(CameraError, match="is its drive still there"):
        camera.frame()
    camera.close()
    (tmp_path / "away").rename(folder)
    camera.open()
    assert camera.frame() is not None, "what was still to come is not passed over"
    assert camera.frame() is None
    (folder / "link.jpg").unlink()
    outside.rename(folder / "moved.jpg")
    time.sleep(0.15)
    assert camera.frame() is not None, "an old file that is moved here is new here"
    assert camera.frame() is None


def test_a_watched_folder_of_100_000_files_holds_some_thousand_names_at_a_time(tmp_path: Path) -> None:
    for part in ("a", "b"):  # a file has 65,000 names at most on ext4
        first = tmp_path / f"{part}0.jpg"
        first.write_bytes(jpeg(scene()))
        for i in range(1, 50_000):
            os.link(first, tmp_path / f"{part}{i}.jpg")
    time.sleep(folder_camera.SETTLED_S + 0.1)
    camera = base.make(options("folder", tmp_path))
    camera.open()
    assert camera.frame() is not None  # Pillow's own modules
    camera.close()
    tracemalloc.start()
    seen = [camera.frame() is not None for _ in range(100)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(seen)
    assert peak < 4_000_000  # 1 MB measured; 100,000 names are 16 MB
