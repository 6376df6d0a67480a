"""A node's live prediction with stand-in models, frames, and a clock that tests move."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from apiary.errors import ModelError
from apiary.learn.manifest import PictureInput
from apiary.settings import EdgeSettings, PredictSettings
from apiary.settings.edge import StoreSettings
from apiary_edge.labelling.server import Stores
from apiary_edge.predicting import model_files
from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.predicting.corrections import Corrections, LookedAt
from apiary_edge.predicting.job import PredictionEvent
from apiary_edge.predicting.live import LOOK_EVERY_S, Bytes, LivePredictor
from apiary_edge.predicting.model_files import ModelFile
from apiary_edge.predicting.models import Answered, OpenedModel
from apiary_edge.predicting.pages import site
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import OwnerGate
from apiary_edge.web.site import Site

LABELS = ("cat", "dog", "fox")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def model_file(name: str, **more: object) -> ModelFile:
    fields = {"kind": "trainer", "name": name, "digest": digest(name), "file": Path("x"), "labels": LABELS}
    return ModelFile.model_validate({**fields, **more})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class StandIn:
    """A model whose answer are the first bytes of the frame, one a label; `broken` raises."""

    squashes = True

    def __init__(self, found: ModelFile, renews: bool = False):
        self.input = PictureInput(height=4, width=4, channels=3)
        self.found = found
        self.renews = renews
        self.broken: str | None = None
        self.closed = False

    def predict(self, frame: Bytes) -> Answered:
        if self.broken:
            raise ModelError(self.broken)
        values = frame.reshape(-1)[: len(self.found.labels)].astype(np.float64) + 1
        values = values / values.sum()
        return Answered(dict(zip(self.found.labels, map(float, values), strict=True)), 1.5, 2.5)

    def renew(self, found: ModelFile) -> bool:
        if self.renews:
            self.found = found
        return self.renews

    def close(self) -> None:
        self.closed = True


def frame(cat: int, dog: int, fox: int = 0) -> Bytes:
    made = np.zeros((8, 8, 3), np.uint8)
    made[0, 0] = (cat, dog, fox)
    return made


def predictions_site(
    scene: Scene, gate: OwnerGate, *, camera: str = "no camera", kept: int = 2**20, max_count: int = 10_000
) -> Site:
    """The page of a scene, whose store is in the scene's folder; of pictures it keeps `kept` bytes."""
    edge = EdgeSettings(state_dir=scene.folder, store=StoreSettings(min_free_mb=0, max_count=max_count))
    corrections = Corrections(Stores(lambda: SampleStore.of_node(edge)), LookedAt(90, kept), "usb 0")
    return site(
        scene.live,
        gate,
        corrections,
        node="pi-7",
        federation="garden",
        camera=lambda: CameraState(camera, works=False),
    )


class Scene:
    """A node's folder, a clock, what was told, and the models that were opened."""

    def __init__(self, tmp_path: Path, **changes: float):
        self.folder = tmp_path
        self.clock = Clock()
        self.told: list[PredictionEvent] = []
        self.opened: list[StandIn] = []
        self.refuses: set[str] = set()
        self.renews = False
        wishes = {"every_s": 0.0, "min_change": 0.0, "repeat_s": 1.0, **changes}
        # Copied, not validated: the bound of `every_s` is higher.
        settings = PredictSettings().model_copy(update=wishes)
        self.live = LivePredictor(
            tmp_path,
            self.told.append,
            settings,
            clock=self.clock,
            wall=lambda: 1_700_000_000.0 + self.clock.now,
            opening=self.open,
        )

    def open(self, found: ModelFile) -> OpenedModel:
        if found.name in self.refuses:
            raise ModelError("it is torn")
        self.opened.append(StandIn(found, self.renews))
        return self.opened[-1]

    def publish(self, found: ModelFile) -> None:
        file = model_files.newest_file(self.folder)
        file.parent.mkdir(exist_ok=True)
        fresh = file.with_suffix(".part")
        fresh.write_text(found.model_dump_json())
        fresh.replace(file)

    def turn(self, pixels: Bytes | None = None, after_s: float = LOOK_EVERY_S) -> None:
        self.clock.now += after_s
        if pixels is not None:
            self.live.offer(pixels)
        self.live.turn()

    def kinds(self) -> list[str]:
        return [told.kind for told in self.told]
