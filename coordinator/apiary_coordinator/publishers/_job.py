"""What the child with Edge Impulse's SDK is asked (JSON on stdin), and what it reports (lines on stdout)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from apiary.settings import PublishSettings


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class HeldOutPicture(_Part):
    """A held-out picture of the server's, and its label."""

    path: Path
    label: str


class PublishJob(_Part):
    """The key is not here: it comes through the environment (EI_API_KEY).

    `done` are the steps to leave out; `representative` a `.npy` of float32[N, H, W, C] where Edge Impulse
    quantises; `out` is where the download goes, at most `publish.max_mb` of it.
    """

    model: Path
    sha256: str
    labels: list[str]
    publish: PublishSettings
    representative: Path | None
    samples: list[HeldOutPicture]
    out: Path
    done: list[str]


class Reached(_Part):
    """Edge Impulse answered, and takes the key."""

    event: Literal["reached"] = "reached"
    project: int


class Said(_Part):
    """What is done at the moment, for people."""

    event: Literal["said"] = "said"
    text: str


class Profile(_Part):
    """An estimate for one device. None where Edge Impulse gives no number."""

    device: str
    ram_bytes: int | None = None
    rom_bytes: int | None = None
    inference_ms: float | None = None


class Profiled(_Part):
    """Step `profile` is done."""

    event: Literal["profiled"] = "profiled"
    profile: Profile


class Uploaded(_Part):
    """Step `samples` is done: so many were taken, and so many refused, for example for this reason."""

    event: Literal["uploaded"] = "uploaded"
    taken: int
    refused: int
    why: str = ""


class Downloaded(_Part):
    """Step `build` is done as far as the SDK knows: the bytes lie in `out`, unchecked."""

    event: Literal["downloaded"] = "downloaded"
    bytes: int


class Failed(_Part):
    """The last event of a child that failed. `retry`: the same again may do."""

    event: Literal["failed"] = "failed"
    message: str
    retry: bool


Event = Reached | Said | Profiled | Uploaded | Downloaded | Failed
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
