"""The pages of the predicting child: while their port is taken, the machine moves, or the camera is none."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from apiary.errors import ApiaryError, SettingsError
from apiary.http.connection import Environ
from apiary.http.server import HttpServer
from apiary.settings import CameraSettings, EdgeSettings
from apiary.settings.page import PageSettings
from apiary_edge.predicting.child import PageThread, run
from apiary_edge.predicting.job import Line, PredictionEvent, PredictJob
from apiary_edge.web.token import load_or_make


def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"the page"]


def test_a_port_that_is_taken_is_tried_again_and_said_once() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    tries = threading.Semaphore(0)
    said: list[Line] = []
    served, stop = threading.Event(), threading.Event()

    def listen() -> HttpServer:
        tries.release()
        try:
            return HttpServer(app, "127.0.0.1", port)
        except OSError as e:
            raise SettingsError(f"cannot listen: {e.strerror}") from e

    def emit(line: Line) -> None:
        said.append(line)
        if isinstance(line, PredictionEvent) and line.kind == "page":
            served.set()

    page = PageThread(listen, emit, stop, again_s=0.01)
    for _ in range(3):
        assert tries.acquire(timeout=30)
    assert [line.kind for line in said] == ["closed"]
    taken.close()
    assert served.wait(30)
    assert said[-1] == PredictionEvent(kind="page", text=f"http://127.0.0.1:{port}/")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        assert answer.read() == b"the page"
    stop.set()
    page.close()
    until = time.monotonic() + 30
    while any(t.name == "page" for t in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_machine_with_another_address_listens_there() -> None:
    served: list[HttpServer] = []
    moved, stop = threading.Event(), threading.Event()
    listening = threading.Semaphore(0)

    def listen() -> HttpServer:
        served.append(HttpServer(app, "127.0.0.1", 0))
        moved.clear()
        return served[-1]

    page = PageThread(
        listen, lambda line: listening.release(), stop, again_s=0.01, moved=lambda server: moved.is_set()
    )
    assert listening.acquire(timeout=30)
    moved.set()
    assert listening.acquire(timeout=30)
    with urllib.request.urlopen(f"http://{served[1].address}/", timeout=30) as answer:
        assert answer.read() == b"the page"
    stop.set()
    page.close()


def job_of(folder: Path, **page: object) -> PredictJob:
    edge = EdgeSettings(
        node_id="pi-7",
        state_dir=folder,
        camera=CameraSettings(kind="no-such-kind"),
        page=PageSettings.model_validate(page),
    )
    return PredictJob(edge=edge, federation="garden")


def test_the_pages_stay_where_the_camera_cannot_be_had_and_say_why(tmp_path: Path) -> None:
    said: list[Line] = []
    both, stop = threading.Semaphore(0), threading.Event()

    def emit(line: Line) -> None:
        said.append(line)
        if line.kind in ("page", "gone"):
            both.release()

    child = threading.Thread(target=run, args=(job_of(tmp_path, enabled=True, port=0), emit, stop))
    child.start()
    try:
        assert both.acquire(timeout=30) and both.acquire(timeout=30)
        assert next(line.text for line in said if line.kind == "gone").count("no-such-kind")
        where = next(line.text for line in said if line.kind == "page")
        link = f"{where}?token={load_or_make(tmp_path)}"
        signed_in = urllib.request.urlopen(link, timeout=30)  # noqa: S310
        asked = urllib.request.Request(  # noqa: S310 - our own address
            f"{where}api/overview", headers={"Cookie": signed_in.headers["Set-Cookie"].partition(";")[0]}
        )
        with signed_in, urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
            assert "no-such-kind" in json.load(answer)["trouble"]
    finally:
        stop.set()
        child.join(30)
    assert not child.is_alive()


def test_without_pages_such_a_camera_ends_the_child(tmp_path: Path) -> None:
    with pytest.raises(ApiaryError, match="no-such-kind"):
        run(job_of(tmp_path), lambda line: None, threading.Event())
