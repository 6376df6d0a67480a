"""The job of a predicting child and the events that it reports: JSON, a line each."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from apiary.settings import EdgeSettings
from apiary_edge.capture.job import CaptureEvent


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PredictJob(_Part):
    """Everything a predicting child needs; without `edge.camera.kind` there is no camera, only the page."""

    edge: EdgeSettings
    federation: str


class PredictionEvent(_Part):
    """One line of the child, beside those of `CaptureEvent`.

    `said` a prediction worth a message; `model` another model is in use; `refused` a model cannot be, and
    why; `page` where the page listens; `closed` why it does not.
    """

    kind: Literal["said", "model", "refused", "page", "closed"]
    text: str = ""
    label: str | None = None
    probability: float = 0.0
    top: list[tuple[str, float]] = []
    model: str = ""
    personal: bool = False
    ms: float = 0.0
    at: float = 0.0


Line = CaptureEvent | PredictionEvent


def parse(line: bytes) -> Line | None:
    """A line of the child, or None for anything that a library printed."""
    for model in (PredictionEvent, CaptureEvent):
        try:
            return model.model_validate_json(line)
        except ValidationError:
            continue
    return None
