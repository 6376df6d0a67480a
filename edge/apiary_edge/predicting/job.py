"""The jobs of a predicting and of a background child, and the events that the former reports."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from apiary.settings import EdgeSettings
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.child_messages import ChildEvent, ChildMessage


class PredictJob(ChildMessage):
    """Everything a predicting child needs.

    Without `edge.camera.kind` there is no camera, without `edge.predict.enabled` no prediction.
    """

    edge: EdgeSettings
    federation: str


class BackgroundJob(ChildMessage):
    """Pictures come from the sample store in `store`, from `edge.data_dir`, or from both, as for a round."""

    edge: EdgeSettings
    store: Path | None
    counted: int = 0
    """Labelled pictures of this node."""
    seed: int = 0

    @property
    def out(self) -> Path:
        """Where it may write what is not kept."""
        return self.edge.state_dir / "chores"

    @property
    def join_labels(self) -> bool:
        """Of the node's settings."""
        return self.edge.join_labels

    @property
    def data_dir(self) -> Path | None:
        """Folder of folders by label."""
        return self.edge.data_dir

    @property
    def suggests(self) -> bool:
        """Whether it notes suggestions for the labelling page."""
        return self.edge.predict.suggest and self.store is not None


class PredictionEvent(ChildEvent):
    """One line of the child, beside those of `CaptureEvent`.

    `said` a prediction worth a message; `model` another model is in use; `refused` a model cannot be, and
    why; `page` where the page listens; `closed` why it does not.
    """

    kind: Literal["said", "model", "refused", "page", "closed"]
    text: str = ""
    label: str | None = None
    probability: float = 0.0
    top: list[tuple[str, float]] = Field(default_factory=list)
    model: str = ""
    personal: bool = False
    ms: float = 0.0
    at: float = 0.0


Line = CaptureEvent | PredictionEvent
