"""`[edge.predict]` and `[edge.personal]`: live predictions of a node, and the model it tunes to itself."""

from pydantic import Field

from apiary.settings.section import Section


class PredictSettings(Section):
    """Live predictions: docs/predictions.md."""

    enabled: bool = Field(False, description="predict on the camera's frames")
    fps: float = Field(5.0, gt=0, le=30, description="frames predicted each second, at most")
    min_probability: float = Field(
        0.5, ge=0, le=1, description="where no label reaches it, the prediction names none"
    )
    publish: bool = Field(
        True, description="publish predictions on the bus: label and probability, no pixels"
    )
    every_s: float = Field(2.0, ge=0.2, le=86400, description="publish at most one in this time")
    min_change: float = Field(
        0.1, ge=0, le=1, description="news is another label, or a probability that moved by so much"
    )
    repeat_s: float = Field(300.0, ge=1, le=86400, description="publish after this time without news, too")
    suggest: bool = Field(
        True, description="suggest labels for the store's pictures, also where enabled is false"
    )
    home_assistant: bool = Field(False, description="appear in Home Assistant, by MQTT discovery")
    home_assistant_prefix: str = Field(
        "homeassistant", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="its discovery prefix"
    )


class PersonalSettings(Section):
    """A head tuned to this node's own pictures; it never leaves the node."""

    enabled: bool = Field(False, description="tune the newest model's head for this node's predictions")
    epochs: int = Field(5, ge=1, le=100, description="passes over this node's labelled pictures")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of the first pass; it falls with each")
    min_samples: int = Field(20, ge=2, le=10**6, description="labelled pictures that it takes to begin")
    min_held_out: int = Field(
        5, ge=1, le=10**6, description="held-out pictures that it takes to compare the two models"
    )
