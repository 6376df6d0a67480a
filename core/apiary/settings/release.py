"""`[release]`: how a release reaches the fleet; `[edge.slots]`: what a node asks of one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from apiary.settings.section import Section
from apiary.wire.messages import Name
from apiary.wire.messages.releases import MAX_CANARIES


class ReleaseSettings(Section):
    """The roll-out: docs/releases.md."""

    after_publish: Literal["eim", "tflite"] | None = Field(
        None,
        description="roll out what publish.after_run made; eim: the program where it was built, "
        "the .tflite otherwise; unset: by `apiary release create`",
    )
    waves: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.1, 0.5, 1.0],
        min_length=1,
        max_length=20,
        description="shares of the fleet that have the release after each wave; the first is the canary",
    )
    canaries: list[Name] = Field(
        default_factory=list,
        max_length=MAX_CANARIES,
        description="these nodes are the first wave, instead of a share of all",
    )
    wave_s: float = Field(3600.0, gt=0, le=30 * 86400, description="a wave that takes longer is halted")
    soak_s: float = Field(
        60.0, ge=0, le=30 * 86400, description="a wave is healthy for this long before the next"
    )
    min_healthy: float = Field(0.8, gt=0, le=1, description="share of a wave that must report healthy")
    max_failed: float = Field(
        0.1, ge=0, lt=1, description="more than this share of a wave failing halts it and rolls back"
    )
    max_accuracy_drop: float = Field(
        0.05, ge=0, le=1, description="halt where the nodes' pictures together lose more than this"
    )
    max_inference_ms: float | None = Field(
        None, gt=0, description="a node that needs longer for a picture counts as failed; unset: any"
    )
    expires_days: float | None = Field(
        None, gt=0, le=3650, description="a release is not installed later than this; unset: whenever"
    )
    keep: int = Field(5, ge=2, le=100, description="earlier releases whose files are kept to go back to")

    @field_validator("waves")
    @classmethod
    def _grow(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)) or value[-1] != 1:
            raise ValueError("expected growing shares that end with 1.0, such as [0.1, 0.5, 1.0]")
        return value


class SlotSettings(Section):
    """What a node asks of a release before it predicts with it."""

    max_accuracy_drop: float = Field(
        0.05, ge=0, le=1, description="refuse a release that is worse than the present one by more, on the "
        "node's own held-out pictures"
    )  # fmt: skip
    min_accuracy: float = Field(0.0, ge=0, le=1, description="refuse a release that is less accurate there")
    min_pictures: int = Field(
        10, ge=1, le=10_000, description="with fewer held-out pictures accuracy is told, but decides nothing"
    )
    max_pictures: int = Field(200, ge=1, le=10_000, description="held-out pictures that a test looks at")
    folder_share: float = Field(
        0.1,
        ge=0,
        le=0.9,
        description="of edge.data_dir the pictures that test a release; the run's plan.validation_share, "
        "or less, so that they never trained",
    )
    max_inference_ms: float | None = Field(None, gt=0, description="refuse a slower release; unset: any")
    test_s: float = Field(300.0, gt=0, le=86400, description="a test that takes longer has failed")
    tries: int = Field(2, ge=1, le=10, description="a test that crashes is tried this often")
    max_mb: int = Field(64, ge=1, le=256, description="largest release; up to three are kept")
    release_key: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9+/]{43}=$",
        description="public key that releases are signed with, where there is no fleet authority; "
        "unset: the first one seen",
    )
