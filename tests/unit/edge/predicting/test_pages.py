"""The predictions page over HTTP: who may come in, what it answers, and which pictures are refused."""

from __future__ import annotations

import gc
import io
import json
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.stand_ins.browser import Browser, Clock
from tests.unit.edge.predicting.scene import (
    LABELS,
    Scene,
    digest,
    frame,
    model_file,
    predictions_site,
)

from apiary.errors import DataError
from apiary.learn.manifest import PictureInput
from apiary_edge.labelling.server import listen
from apiary_edge.predicting import http_upload
from apiary_edge.predicting.pages import MAX_BARS
from apiary_edge.web.gate import OwnerGate

TOKEN = "a-token-of-the-owner-that-is-long-enough"
BEARER = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    made.publish(model_file("round 1", accuracy=0.75))
    made.turn(frame(200, 10))
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stranger(scene: Scene, clock: Clock) -> Browser:
    gate = OwnerGate(TOKEN, 4912, clock, clock.pauses.append)
    return Browser(predictions_site(scene, gate), TOKEN)


@pytest.fixture
def owner(stranger: Browser) -> Browser:
    stranger.login()
    return stranger


def picture(size: tuple[int, int] = (32, 24), kind: str = "JPEG", colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def form(data: bytes, name: str = "file", boundary: str = "xYz") -> tuple[bytes, str]:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="other"\r\n\r\nnot this\r\n--{boundary}\r\n'
    head += f'Content-Disposition: form-data; name="{name}"; filename="name=file.jpg"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def post(browser: Browser, body: bytes, kind: str = "image/jpeg", **headers: str) -> tuple[int, Any]:
    wanted = {"HTTP_X_APIARY": "1", "CONTENT_TYPE": kind, **headers}
    status, answer = browser.ask("POST", "/api/image", body, **wanted)
    return status, json.loads(answer)


# -- who may come in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/info", "/api/now", "/frame/1", "/nothing"])
def test_a_stranger_sees_no_data_and_no_picture(stranger: Browser, path: str) -> None:
    status, body = stranger.ask("GET", path)
    assert status == 401 and b"cat" not in body and b"\xff\xd8" not in body
    assert post(stranger, picture())[0] == 401


def test_the_page_itself_holds_no_data_and_its_policy_allows_its_own_files_only(stranger: Browser) -> None:
    status, body = stranger.ask("GET", "/")
    assert status == 401 and b"live.js" in body and b"cat" not in body
    assert "default-src 'none'" in stranger.headers["Content-Security-Policy"]
    for path in ("/live.js", "/live.css", "/icon.svg"):
        assert stranger.ask("GET", path)[0] == 200


def test_programs_name_the_token_in_a_header_and_need_no_cookie(stranger: Browser) -> None:
    assert stranger.ask("GET", "/api/info", **BEARER)[0] == 200
    wanted = {"CONTENT_TYPE": "image/jpeg", **BEARER}
    assert stranger.ask("POST", "/api/image", picture(), **wanted)[0] == 200
    status, body = stranger.ask("POST", "/api/image", picture(), CONTENT_TYPE="image/jpeg")
    assert status == 401 and b"Authorization: Bearer TOKEN" in body
    for wrong in ("Bearer wrong", "Basic " + TOKEN, TOKEN):
        assert stranger.ask("GET", "/api/info", HTTP_AUTHORIZATION=wrong)[0] == 401
    # Not for what only a person looks at.
    assert stranger.ask("GET", "/frame/1", **BEARER)[0] == 401


def test_guessing_tokens_by_the_header_is_slowed_down(stranger: Browser, clock: Clock) -> None:
    codes = [stranger.ask("GET", "/api/info", HTTP_AUTHORIZATION="Bearer no")[0] for _ in range(8)]
    assert codes[-1] == 429 and clock.pauses
    assert stranger.ask("GET", "/api/info", **BEARER)[0] == 429, "the right one has to wait as well"
    clock.now += 100
    assert stranger.ask("GET", "/api/info", **BEARER)[0] == 200


def test_another_sites_page_cannot_post_with_the_owners_cookie(owner: Browser) -> None:
    for headers in (
        {"HTTP_X_APIARY": ""},
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
    ):
        assert post(owner, picture(), **headers)[0] == 403
    assert owner.ask("GET", "/api/now", HTTP_HOST="evil.example:4912")[0] == 421


# -- what it answers -------------------------------------------------------------------------------------


def test_now_tells_the_newest_prediction_and_the_frame_that_belongs_to_it(owner: Browser) -> None:
    told = owner.get("/api/now")
    assert (
        told["node"] == "pi-7"
        and told["trouble"] is None
        and told["camera"] == {"text": "no camera", "todo": "", "works": False}
    )
    assert told["model"] == {
        "name": "round 1",
        "kind": "trainer",
        "digest": digest("round 1"),
        "accuracy": 0.75,
        "tested_on": None,
        "personal": False,
    }
    shown = told["shown"]
    assert shown["label"] == "cat" and [name for name, _ in shown["bars"]] == ["cat", "dog", "fox"]
    assert shown["timing"] == {"dsp": 1.5, "classification": 2.5, "anomaly": 0}
    status, data = owner.ask("GET", f"/frame/{shown['number']}")
    assert status == 200 and owner.headers["Content-Type"] == "image/jpeg"
    assert owner.headers["Cache-Control"] == "no-store"
    assert Image.open(io.BytesIO(data)).size == (8, 8)
    assert owner.ask("GET", "/frame/99")[0] == 404


def test_a_frame_is_made_smaller_and_once(scene: Scene, owner: Browser) -> None:
    scene.turn(np.full((1200, 1600, 3), 9, np.uint8))
    number = owner.get("/api/now")["shown"]["number"]
    _, first = owner.ask("GET", f"/frame/{number}")
    assert Image.open(io.BytesIO(first)).size == (640, 480)
    shown = scene.live.newest
    assert shown is not None and shown.jpeg() is shown.jpeg()


def test_many_labels_do_not_make_each_answer_long(scene: Scene, owner: Browser) -> None:
    names = tuple(f"label {i}" for i in range(100))

    class Wide:
        squashes = True
        input = PictureInput(height=4, width=4, channels=3)

        def predict(self, seen: Any) -> Any:
            from apiary_edge.predicting.models import Answered

            return Answered({name: (i + 1) / 5050 for i, name in enumerate(names)}, 1.0, 1.0)

        def renew(self, found: Any) -> bool:
            return False

        def close(self) -> None:
            pass

    scene.live._opening = lambda found: Wide()
    scene.publish(model_file("wide", labels=names))
    scene.turn()
    told = owner.get("/api/now")
    assert told["labels"] == 100 and len(told["shown"]["bars"]) == MAX_BARS
    assert told["shown"]["bars"][0][0] == "label 99" and told["shown"]["label"] is None
    assert len(post(owner, picture())[1]["result"]["classification"]) == 100


def test_info_has_the_fields_of_edge_impulses_runner(owner: Browser) -> None:
    info = owner.get("/api/info")
    assert set(info["project"]) == {"id", "owner", "name", "deploy_version"}
    parameters = info["modelParameters"]
    assert parameters["model_type"] == "classification" and parameters["sensorType"] == "camera"
    assert parameters["labels"] == list(LABELS) and parameters["label_count"] == 3
    size = (parameters["image_input_width"], parameters["image_input_height"])
    assert size == (4, 4) and parameters["input_features_count"] == 16
    assert parameters["image_channel_count"] == 3 and parameters["image_resize_mode"] == "squash"


def test_before_there_is_a_model_it_says_so(tmp_path: Path, clock: Clock) -> None:
    empty = Scene(tmp_path)
    browser = Browser(predictions_site(empty, OwnerGate(TOKEN, 4912, clock, clock.pauses.append)), TOKEN)
    browser.login()
    assert browser.get("/api/now")["model"] is None
    status, body = browser.ask("GET", "/api/info")
    assert status == 503 and b"no model yet" in body
    status, answer = post(browser, picture())
    assert status == 503 and "no model yet" in answer["error"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_is_classified_as_it_is_and_as_a_form(owner: Browser, kind: str) -> None:
    data = picture((40, 30), kind)
    status, answer = post(owner, data, f"image/{kind.lower()}")
    assert status == 200 and set(answer["result"]["classification"]) == set(LABELS)
    assert abs(sum(answer["result"]["classification"].values()) - 1) < 1e-4
    assert answer["result"]["resized"] == {
        "originalWidth": 40,
        "originalHeight": 30,
        "newWidth": 4,
        "newHeight": 4,
    }
    assert set(answer["timing"]) == {"dsp", "classification", "anomaly"}
    assert answer["label"] == "cat" and answer["model"]["name"] == "round 1"
    body, content_type = form(data)
    assert post(owner, body, content_type) == (status, answer)


# -- what it refuses -------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose pixels would take width * height * 3 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * 100_000) for _ in range(30)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


FOREIGN = "not a readable picture: it does not begin like one"
BAD: list[tuple[str, Callable[[], tuple[bytes, str]], str]] = [
    ("nothing", lambda: (b"", "image/jpeg"), "no picture"),
    ("a text", lambda: (b"hello, this is no picture", "image/jpeg"), FOREIGN),
    ("JSON", lambda: (b'{"features":[1,2,3]}', "application/json"), FOREIGN),
    ("a zip bomb", lambda: (bomb(60_000, 60_000), "image/png"), "far too many pixels"),
    ("100 megapixels", lambda: (bomb(10_000, 10_000), "image/png"), "10000x10000 pixels, at most 16 million"),
    ("just over the limit", lambda: (bomb(4001, 4000), "image/png"), "4001x4000 pixels, at most 16"),
    ("a torn JPEG", lambda: (picture((400, 300))[:300], "image/jpeg"), "not a readable picture"),
    ("a torn PNG", lambda: (picture((400, 300), "PNG")[:60], "image/png"), "not a readable picture"),
    ("a page", lambda: (b"<!DOCTYPE html><html>", "text/html"), "it is a web page"),
    ("a form without the part", lambda: form(picture(), name="photo"), "without a part named 'file'"),
    ("a form without a boundary", lambda: (b"x", "multipart/form-data"), "without a boundary"),
    ("a form that does not end", lambda: (form(picture())[0][:-9], form(b"")[1]), "without a part"),
]


@pytest.mark.parametrize(("_name", "make", "why"), BAD, ids=[name for name, _, _ in BAD])
def test_a_bad_picture_gets_a_clear_400(
    owner: Browser, _name: str, make: Callable[[], tuple[bytes, str]], why: str
) -> None:
    body, kind = make()
    status, answer = post(owner, body, kind)
    assert status == 400
    assert re.search(why, answer["error"]), answer
    for kind in ("JPEG", "GIF"):
        assert post(owner, picture(kind=kind))[0] == 200, "the next one is looked at"


def test_a_body_that_is_too_long_is_not_read(owner: Browser) -> None:
    class Untouched(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise AssertionError("it was read")

    headers = {"CONTENT_LENGTH": str(http_upload.MAX_BYTES + 1), "wsgi.input": Untouched()}
    assert post(owner, b"", **headers)[0] == 413  # type: ignore[arg-type] # wsgi.input is no text
    for length in ("-1", "many", "9" * 20, "²"):
        assert post(owner, b"", CONTENT_LENGTH=length)[0] == 400


def test_pictures_for_programs_that_resize_keep_their_proportions() -> None:
    to = PictureInput(height=96, width=96, channels=3)
    data = picture((1000, 250))
    assert http_upload.frame_of(data, to, whole=True).shape == (160, 640, 3)
    assert http_upload.frame_of(data, to, whole=False).shape == (96, 96, 3)
    assert http_upload.frame_of(picture((40, 10)), to, whole=True).shape == (10, 40, 3)
    with pytest.raises(DataError):
        http_upload.frame_of(b"", to, whole=True)


# -- over a socket ---------------------------------------------------------------------------------------


def test_ten_thousand_requests_leave_nothing_behind(scene: Scene, owner: Browser) -> None:
    def growth(requests: int) -> int:
        gc.collect()
        before = len(gc.get_objects())
        for i in range(requests):
            scene.turn(frame(i % 250, 10), after_s=0.21)
            owner.get("/api/now")
            owner.ask("GET", f"/frame/{scene.live._number}")
            scene.told.clear()
        gc.collect()
        return len(gc.get_objects()) - before

    growth(100)
    assert growth(5_000) < 200


def test_a_slow_or_silent_client_does_not_keep_others_out(scene: Scene) -> None:
    import http.client
    import socket

    gate = OwnerGate(TOKEN, 0, time.monotonic, time.sleep)
    app = predictions_site(scene, gate)
    server = listen(app, "127.0.0.1", 0)
    running = threading.Thread(target=server.run, daemon=True)
    running.start()
    port = server.port
    silent = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(20)]
    try:
        for one in silent[:10]:
            one.sendall(b"POST /api/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nslow")
        for _ in range(10):
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            link.request("GET", "/api/now", headers={"Authorization": f"Bearer {TOKEN}"})
            assert link.getresponse().status == 200
            link.close()
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        too_long = {"Content-Length": str(http_upload.MAX_BYTES * 2)}
        link.request("POST", "/api/image", b"", too_long)
        assert link.getresponse().status == 401
        link.close()
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        link.request("POST", "/api/image", b"", {**too_long, "Authorization": f"Bearer {TOKEN}"})
        assert link.getresponse().status == 413
        link.close()
    finally:
        for one in silent:
            one.close()
        server.close()
        running.join(10)
