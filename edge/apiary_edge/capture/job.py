"""What a capture child reports: a JSON line for each event. Its job is the node's settings, `[edge]`."""

from typing import Literal

from pydantic import Field

from apiary_edge.child_messages import ChildEvent


class CaptureEvent(ChildEvent):
    """One line of the child.

    `kept` a frame became sample `id`; `gone` the camera is not there, and tried again in `retry_s`; `back` it
    is there (again); `trouble` the store took nothing, and why; `alive` sent every few seconds, with what was
    `kept` and what was `dropped` for which reason so far; `ended` a file was read to its end; `failed` the
    settings cannot be meant.
    """

    kind: Literal["kept", "gone", "back", "trouble", "alive", "ended", "failed"]
    text: str = ""
    id: str = ""
    retry_s: float = 0.0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
