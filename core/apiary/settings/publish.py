"""`[publish]`: where a finished model goes."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from apiary.settings.section import Section


class PublishSettings(Section):
    """Where a finished model goes. The API key comes from EI_API_KEY or a file, never from here."""

    after_run: list[str] = Field(
        default_factory=list, description="publishers to run when a run is over: directory, edge_impulse"
    )
    directory: Path = Field(Path("releases"), description="publisher directory: one folder a run in here")
    api_key_file: Path | None = Field(
        None, description="file whose first line is Edge Impulse's API key; unset: EI_API_KEY"
    )
    api_endpoint: str = Field("https://studio.edgeimpulse.com/v1", description="where Edge Impulse's API is")
    ingestion_endpoint: str = Field(
        "https://ingestion.edgeimpulse.com", description="where test images are uploaded to, if they are"
    )
    device: str = Field("raspberry-pi-4", description="estimate memory and inference time for this device")
    target: str = Field(
        "runner-linux-aarch64", description="what to build; runner-linux-armv7 for 32 bit systems"
    )
    engine: Literal["tflite", "tflite-eon"] = Field("tflite", description="inference engine of the build")
    model_type: Literal["float32", "int8"] = Field("float32", description="numbers that the model works with")
    int8_by: Literal["apiary", "edge_impulse"] = Field(
        "apiary", description="who makes the int8 model; edge_impulse needs test images"
    )
    upload_test_images: bool = Field(
        False, description="also upload the server's held-out test images (never those of nodes)"
    )
    reach_s: float = Field(120.0, gt=0, le=3600, description="give up where nothing answers in this time")
    request_s: float = Field(60.0, gt=0, le=3600, description="longest silence within one request")
    job_s: float = Field(900.0, gt=0, le=86400, description="longest job there; then it is cancelled")
    timeout_s: float = Field(1800.0, gt=0, le=86400, description="longest publishing, all attempts together")
    attempts: int = Field(3, ge=1, le=20, description="tries where trying again may help")
    retry_pause_s: float = Field(5.0, ge=0, le=600, description="pause before the second try; then doubling")
    max_mb: int = Field(64, ge=1, le=256, description="largest download")

    @field_validator("api_endpoint", "ingestion_endpoint")
    @classmethod
    def _keeps_the_key(cls, value: str) -> str:
        url = urlsplit(value)
        near = url.hostname in ("localhost", "127.0.0.1", "::1")
        if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and near)):
            raise ValueError("expected https://HOST/...: the API key would travel in the clear")
        return value.rstrip("/")
