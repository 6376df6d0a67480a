"""The pages of a node behind their real server, in this process, with answers that tests delay and refuse."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tests.unit.edge.predicting.scene import Scene, model_file

from apiary.http.connection import Environ
from apiary.http.server import HttpServer
from apiary.settings import EdgeSettings
from apiary.settings.page import PageSettings
from apiary_edge.predicting.appliance import LOOKED_BYTES, pages
from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.predicting.job import PredictJob
from apiary_edge.predicting.live import Bytes
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.portal import Portal
from apiary_edge.web.token import load_or_make

HELD_S = 20.0
"""A request that a test holds back is let go after this, so that a test that failed ends."""


class Meddler:
    """Between the browser and the pages: requests of a path are held, refused, or lose their answers."""

    def __init__(self, app: Portal):
        self._app = app
        self.allowance = app.allowance
        self._held: dict[str, list[threading.Event]] = {}
        self._refused: dict[str, int] = {}
        self._lost: set[str] = set()
        self.seen: list[str] = []
        self._arrival = threading.Condition()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with self._arrival:
            self.seen.append(path)
            self._arrival.notify_all()
        if gates := self._held.get(path):
            (gates.pop(0) if len(gates) > 1 else gates[0]).wait(HELD_S)
        if (status := self._refused.get(path)) is not None:
            start_response(f"{status} Refused", [("Content-Type", "application/json")])
            return [b'{"error": "the disk is full"}']
        if path in self._lost:
            list(self._app(environ, lambda *_: lambda _: None))
            start_response("502 Lost", [("Content-Type", "application/json")])
            return [b'{"error": "the answer was lost"}']
        return self._app(environ, start_response)

    def wait_for(self, path: str) -> None:
        """Wait until a request of the path has arrived."""
        with self._arrival:
            assert self._arrival.wait_for(lambda: path in self.seen, HELD_S), f"no request of {path}"

    @contextmanager
    def lost(self, path: str) -> Iterator[None]:
        """Carry requests of the path out, and keep their answers back."""
        self._lost.add(path)
        try:
            yield
        finally:
            self._lost.discard(path)

    @contextmanager
    def held(self, path: str) -> Iterator[threading.Event]:
        """Hold requests of the path back until the event is set, or the block ends."""
        gate = threading.Event()
        self._held[path] = [gate]
        try:
            yield gate
        finally:
            del self._held[path]
            gate.set()

    @contextmanager
    def first_held(self, path: str) -> Iterator[threading.Event]:
        """Hold the next request of the path back, and let those after it through: their answers overtake."""
        gate, open_gate = threading.Event(), threading.Event()
        open_gate.set()
        self._held[path] = [gate, open_gate]
        try:
            yield gate
        finally:
            del self._held[path]
            gate.set()

    @contextmanager
    def refused(self, path: str, status: int) -> Iterator[None]:
        self._refused[path] = status
        try:
            yield
        finally:
            del self._refused[path]


@dataclass
class Node:
    """A node with a stand-in model; `see` shows its camera a picture."""

    scene: Scene
    store: SampleStore
    server: HttpServer
    meddler: Meddler
    token: str
    labels: tuple[str, ...]
    camera: list[CameraState] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://{self.server.address}/"

    def look(self) -> str:
        """The digest of the newest frame, as another phone gets it."""
        asked = urllib.request.Request(  # noqa: S310 - it is our own address
            f"{self.address}api/now?look=1", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310 - see above
            return str(json.load(answer)["shown"]["digest"])

    def see(self, **shares: int) -> None:
        """A frame of which the model says these labels, in parts of 250."""
        self.scene.turn(frame(self.labels, shares))

    def labelled(self) -> dict[str, int]:
        return dict(self.store.counts().labelled)


@contextmanager
def node(
    folder: Path,
    labels: tuple[str, ...] = ("helmet", "head", "vest"),
    *,
    looked_bytes: int = LOOKED_BYTES,
    **model: Any,
) -> Iterator[Node]:
    """A node that serves its pages on a free port. Without `name` of a model it has none."""
    edge = EdgeSettings(node_id="pi-1", state_dir=folder, page=PageSettings(enabled=True, port=0))
    folder.mkdir(exist_ok=True)
    scene = Scene(folder)
    if model:
        scene.publish(model_file(labels=labels, **model))
    store = SampleStore.of_node(edge)
    camera = [CameraState("The camera is there; its first picture comes.", works=True)]
    job = PredictJob(edge=edge, federation="garden")
    app = Meddler(pages(job, scene.live, lambda: camera[-1], looked_bytes=looked_bytes))
    server = HttpServer(app, "127.0.0.1", 0, allowance=app.allowance)
    thread = threading.Thread(target=server.run, name="pages")
    thread.start()
    try:
        yield Node(scene, store, server, app, load_or_make(folder), labels, camera)
    finally:
        server.close()
        thread.join(10)
        store.close()


def frame(labels: tuple[str, ...], shares: dict[str, int]) -> Bytes:
    """A picture of a worker in one of many colours, whose first bytes are what the stand-in model says."""
    first = max(shares, key=lambda label: shares[label])
    colour = [(240, 200, 40), (222, 184, 150), (255, 120, 20), (90, 140, 200)][labels.index(first) % 4]
    picture = Image.new("RGB", (640, 480), (120, 140, 130))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 360, 640, 480), fill=(150, 120, 90))
    pen.ellipse((230, 120, 410, 320), fill=(222, 184, 150))
    pen.pieslice((215, 80, 425, 300), 180, 360, fill=colour)
    pixels = np.asarray(picture).copy()
    pixels.reshape(-1)[: len(labels)] = [shares.get(label, 0) for label in labels]
    return pixels


def sign_in(node: Node) -> str:
    """The predictions page's address with the token."""
    return f"{node.address}predictions/?token={node.token}"
