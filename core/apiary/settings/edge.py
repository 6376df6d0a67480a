"""`[edge]`: one node, with its store, camera and capture."""

import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from apiary.settings.guest import GuestSettings
from apiary.settings.page import PageSettings
from apiary.settings.predict import PersonalSettings, PredictSettings
from apiary.settings.release import SlotSettings
from apiary.settings.section import Section, fits_topic
from apiary.tags import MAX_TAGS, parse_rule


class StoreSettings(Section):
    """The bounds of a node's sample store; docs/appliance.md: what leaves when it is full."""

    max_count: int = Field(20_000, ge=1, le=10**6, description="pictures kept")
    max_mb: int = Field(2000, ge=1, le=10**6, description="megabytes of picture files")
    max_per_label: int = Field(5_000, ge=1, le=10**6, description="labelled pictures kept of each label")
    min_free_mb: int = Field(200, ge=0, le=10**6, description="take no picture where the disk has less left")
    held_out: float = Field(
        0.2, ge=0, le=0.9, description="share of the pictures that is never trained, and tests models"
    )


class CameraSettings(Section):
    """A node's camera."""

    kind: str | None = Field(None, description="unset: none; picamera2, usb, stream or folder")
    source: str = Field("", description="device (/dev/video0), address (http:, rtsp:), file or folder")
    width: int = Field(
        640, ge=32, le=8192, description="of a picture in pixels; streams and files come as they are"
    )
    height: int = Field(480, ge=32, le=8192, description="of a picture in pixels")
    fps: float = Field(1.0, gt=0, le=30, description="frames looked at each second")
    timeout_s: float = Field(10.0, gt=0, le=300, description="a camera that is silent so long is gone")
    retry_max_s: float = Field(
        60.0, gt=0, le=3600, description="longest pause before it is tried again (doubling)"
    )


class CaptureSettings(Section):
    """Which frames of the camera are kept for labelling."""

    interval_s: float = Field(30.0, ge=0, le=86400, description="keep at most one frame in this time")
    hours: list[str] = Field(
        default_factory=list, description="only then, e.g. ['08:00-18:00']; empty: always"
    )
    region: list[float] | None = Field(
        None, min_length=4, max_length=4, description="part to keep: [left, top, width, height], 0 to 1"
    )
    near_duplicate_bits: int = Field(
        4, ge=-1, le=64, description="drop frames that differ from a late one in no more of 64 bits; -1: off"
    )
    near_duplicate_window: int = Field(64, ge=1, le=4096, description="how many late ones are compared")
    min_sharpness: float = Field(
        15.0, ge=0, description="drop blurred frames: variance of the Laplacian at 320 pixels' width"
    )
    min_brightness: float = Field(16.0, ge=0, le=255, description="drop darker frames: mean of grey")
    max_white: float = Field(0.8, gt=0, le=1, description="drop frames with more of them burnt out")
    jpeg_quality: int = Field(90, ge=30, le=100, description="JPEG quality of kept frames")


def default_node_id() -> str:
    """This machine's host name, made fit for a topic."""
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in socket.gethostname().split(".")[0]
    )
    return name.strip("-_")[:64] or "node"


class EdgeSettings(Section):
    """One node."""

    node_id: Annotated[str, fits_topic("node_id")] = Field(
        default_factory=default_node_id, description="unset: this machine's host name"
    )
    data_dir: Path | None = Field(None, description="pictures, a folder a label: docs/folders.md")
    join_labels: bool = Field(False, description="labels that differ in case, blanks or hyphens only are one")
    state_dir: Path = Field(Path("state/edge"), description="outbox, blobs, caches")
    tags: dict[str, str] = Field(
        default_factory=dict,
        max_length=MAX_TAGS,
        description='what this node is, e.g. {site = "north"}: rounds and commands pick nodes by it',
    )
    runtime: str = Field("auto", description="litert, keras, or auto: litert where it is there")
    threads: int = Field(
        1, ge=1, le=64, description="threads of the training step; 1 gives the same bits each time"
    )
    cache_mb: int = Field(512, ge=1, le=10**6, description="bound of the caches of pictures and features")
    blob_mb: int = Field(256, ge=1, le=10**6, description="bound of the cached models")
    train_timeout_s: float = Field(
        6 * 3600.0, gt=0, description="a training child is stopped after this long"
    )
    upload_idle_s: float = Field(
        30.0, gt=0, le=3600, description="offer an update again after this long without a reply"
    )
    refresh_s: float = Field(
        60.0, ge=1, le=3600, description="publish this node's status again, and request what is current"
    )
    want_idle_s: float = Field(
        30.0, gt=0, le=3600, description="request missing chunks again after this pause"
    )
    store: StoreSettings = Field(
        default_factory=StoreSettings, description="Bounds of the sample store: docs/appliance.md"
    )
    camera: CameraSettings = Field(default_factory=CameraSettings, description="The camera.")
    capture: CaptureSettings = Field(
        default_factory=CaptureSettings, description="Which frames are kept for labelling."
    )
    slots: SlotSettings = Field(
        default_factory=SlotSettings, description="What a release must hold: docs/releases.md"
    )
    page: PageSettings = Field(
        default_factory=PageSettings, description="The pages of a running node: docs/labelling.md"
    )
    predict: PredictSettings = Field(default_factory=PredictSettings, description="Live predictions.")
    personal: PersonalSettings = Field(
        default_factory=PersonalSettings, description="The model tuned to this node."
    )
    guest: GuestSettings = Field(
        default_factory=GuestSettings, description="When training pauses: docs/appliance.md"
    )

    @property
    def serves_pages(self) -> bool:
        """Whether the running node serves its pages."""
        return self.predict.enabled if self.page.enabled is None else self.page.enabled

    @property
    def store_dir(self) -> Path:
        """The sample store."""
        return self.state_dir / "samples"

    @property
    def cache_dir(self) -> Path:
        """The caches of decoded pictures and features."""
        return self.state_dir / "cache"

    @model_validator(mode="before")
    @classmethod
    def _pages_of_0_1(cls, value: Any) -> Any:
        """In version 0.1 only predictions had a page, at `edge.predict.host` and `edge.predict.port`."""
        match value:
            case {"predict": {"host": _} | {"port": _} as predict}:
                page = value.get("page", {})
                moved = {key: predict[key] for key in ("host", "port") if key in predict}
                rest = {key: of for key, of in predict.items() if key not in moved}
                return {
                    **value,
                    "predict": rest,
                    "page": {**moved, **page} if isinstance(page, dict) else page,
                }
            case _:
                return value

    @field_validator("tags")
    @classmethod
    def _are_words(cls, value: dict[str, str]) -> dict[str, str]:
        for tag, text in value.items():
            parse_rule(f"{tag}={text}")
        return value
