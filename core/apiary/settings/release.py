"""`[release]`: how a release reaches the fleet; `[edge.slots]`: what a node requires of one."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from apiary.settings.section import Section
from apiary.wire.messages import Name
from apiary.wire.messages.releases import MAX_CANARIES


class ReleaseSettings(Section):
    """The roll-out: docs/releases.md."""

    after_publish: Literal["eim", "tflite"] | None = Field(
        None, description="roll out what publish.after_run made; eim: .tflite where no program was built"
    )
    waves: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.1, 0.5, 1.0],
        min_length=1,
        max_length=20,
        description="shares of the fleet that have it after each wave, the canary first",
    )
    canaries: list[Name] = Field(
        default_factory=list,
        max_length=MAX_CANARIES,
        description="nodes that are the first wave, instead of a share",
    )
    wave_s: float = Field(3600.0, gt=0, le=30 * 86400, description="a wave that takes longer is halted")
    soak_s: float = Field(
        60.0, ge=0, le=30 * 86400, description="a wave is healthy for this long before the next"
    )
    min_healthy: float = Field(0.8, gt=0, le=1, description="share of a wave that must report healthy")
    max_failed: float = Field(
        0.1, ge=0, lt=1, description="a larger share of a wave failing takes the release back"
    )
    max_accuracy_drop: float = Field(
        0.05, ge=0, le=1, description="as does losing more than this on the nodes' pictures together"
    )
    max_inference_ms: float | None = Field(
        None, gt=0, description="a node that needs longer for a picture has failed"
    )
    expires_days: float | None = Field(
        None, gt=0, le=3650, description="a release is not installed later than this"
    )
    keep: int = Field(5, ge=2, le=100, description="newest releases whose files are kept to go back to")

    @field_validator("waves")
    @classmethod
    def _grow(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)) or value[-1] != 1:
            raise ValueError("expected growing shares that end with 1.0, such as [0.1, 0.5, 1.0]")
        return value


class SlotSettings(Section):
    """What a node requires of a release before it predicts with it: docs/releases.md."""

    max_accuracy_drop: float = Field(
        0.05, ge=0, le=1, description="refuse one that loses more than this on the node's held-out pictures"
    )
    min_accuracy: float = Field(0.0, ge=0, le=1, description="refuse one that is less accurate there")
    min_pictures: int = Field(10, ge=1, le=10_000, description="with fewer pictures accuracy decides nothing")
    max_pictures: int = Field(200, ge=1, le=10_000, description="pictures that a test looks at")
    folder_share: float = Field(
        0.1, ge=0, le=0.9, description="of data_dir this share tests; at most run.plan.validation_share"
    )
    max_inference_ms: float | None = Field(None, gt=0, description="refuse one that is slower")
    test_s: float = Field(300.0, gt=0, le=86400, description="a test that takes longer is a crash")
    tries: int = Field(2, ge=1, le=10, description="a test that crashes is tried this often")
    max_mb: int = Field(64, ge=1, le=256, description="largest release; up to three are kept")
    release_key: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9+/]{43}=$",
        description="of `apiary release key`; unset: the first seen, without security.ca",
    )
