"""Every setting, with its default, bound and meaning. TOML file < `APIARY_*` environment < command line.

`APIARY_RUN__ROUNDS=12` sets `[run] rounds`. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from apiary.errors import SettingsError, TopicError
from apiary.wire.messages import Bounds, Plan
from apiary.wire.topics import Topics, check_name

Options = dict[str, bool | int | float | str | list[int]]


def default_node_id() -> str:
    """This machine's host name, made fit for a topic."""
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in socket.gethostname().split(".")[0]
    )
    return name.strip("-_")[:64] or "node"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class _StrictPlan(Plan):
    model_config = ConfigDict(extra="forbid")


class _StrictBounds(Bounds):
    model_config = ConfigDict(extra="forbid")


def _strictly(model: type[BaseModel]) -> BeforeValidator:
    """Refuse unknown keys where a table is given: messages ignore them, a settings file must not."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            model.model_validate(value)
        return value

    return BeforeValidator(check)


class BrokerSettings(_Section):
    """Where the MQTT broker is and how to talk to it."""

    host: str = Field("127.0.0.1", description="name or address of the broker")
    port: int = Field(1883, ge=1, le=65535, description="8883 is usual with TLS")
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        "auto", description="auto: MQTT 5, 3.1.1 where it is refused"
    )
    username: str | None = Field(None, description="user name, where the broker asks for one")
    password: SecretStr | None = Field(
        None, description="better given as password_file or APIARY_BROKER__PASSWORD"
    )
    password_file: Path | None = Field(None, description="file whose first line is the password")
    tls: bool = Field(
        False, description="TLS 1.2 or later, checked against tls_ca or the system's authorities"
    )
    tls_ca: Path | None = Field(
        None, description="PEM file of the authority that signed the broker's certificate"
    )
    tls_cert: Path | None = Field(None, description="this party's certificate (PEM)")
    tls_key: Path | None = Field(None, description="its key (PEM)")
    keepalive_s: int = Field(30, ge=5, le=3600, description="seconds between signs of life")
    connect_timeout_s: float = Field(
        10.0, gt=0, le=600, description="one connection attempt may take this long"
    )
    retry_max_s: float = Field(
        60.0, gt=0, le=3600, description="longest pause between attempts (jittered, doubling)"
    )
    inflight: int = Field(
        20, ge=1, le=1000, description="publishes sent ahead of the broker's acknowledgement"
    )


class RunSettings(_Section):
    """What a run trains, on how many nodes, and when it ends."""

    recipe: str = Field("edge_cnn", description="model recipe")
    recipe_options: Options = Field(
        default_factory=dict, description="options of the recipe, e.g. size, alpha"
    )
    strategy: str = Field("fedavg", description="how updates become the next model")
    strategy_options: Options = Field(default_factory=dict, description="options of the strategy")
    rounds: int = Field(10, ge=1, le=100_000, description="at most this many rounds")
    target_accuracy: float | None = Field(None, gt=0, le=1, description="stop once the model is this good")
    patience: int | None = Field(None, ge=1, description="stop after this many rounds without improvement")
    min_delta: float = Field(0.0, ge=0, le=1, description="what counts as an improvement of accuracy")
    min_nodes: int = Field(2, ge=1, le=100_000, description="wait for this many nodes before the first round")
    fraction: float = Field(1.0, gt=0, le=1, description="share of the ready nodes drawn each round")
    cohort_size: int | None = Field(None, ge=1, le=20_000, description="draw at most this many nodes")
    over_select: float = Field(1.0, ge=1, le=4, description="draw this many times the goal, take the first")
    quorum: float = Field(0.5, gt=0, le=1, description="share of the goal that a round needs at its deadline")
    deadline_s: float | None = Field(
        None, gt=0, le=10**6, description="fixed; unset: follows the fleet's pace"
    )
    first_deadline_s: float = Field(14400, gt=0, le=10**6, description="of a round before the pace is known")
    lost_grace_s: float = Field(
        60.0, ge=0, le=86400, description="a vanished node may come back within this time"
    )
    settle_s: float = Field(
        2.0, ge=0, le=3600, description="pause after the last newcomer before the first round"
    )
    max_failed_rounds: int = Field(
        3, ge=1, le=10_000, description="give up after this many failed rounds in a row"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random")
    plan: Annotated[Plan, _strictly(_StrictPlan)] = Field(
        default_factory=Plan, description="how each node trains"
    )
    bounds: Annotated[Bounds, _strictly(_StrictBounds)] = Field(
        default_factory=Bounds, description="what an update may hold"
    )


class CoordinatorSettings(_Section):
    """The server's folders and limits."""

    state_dir: Path = Field(Path("state/coordinator"), description="journal, spool, checkpoints, exports")
    exports_dir: Path | None = Field(
        None, description="exported recipes, kept for the next run (in state_dir)"
    )
    runs_dir: Path = Field(Path("runs"), description="results, one folder a run")
    test_data: Path | None = Field(
        None, description="held-out pictures, LABEL/*.jpg|png; also names the labels"
    )
    labels: list[str] | None = Field(
        None, description="class names in order; unset: the folders of test_data"
    )
    base_weights: Path | None = Field(None, description="weights file for a transfer recipe's base")
    max_uploads: int = Field(10, ge=1, le=1000, description="uploads granted at once")
    upload_idle_s: float = Field(20.0, gt=0, le=3600, description="ask for missing chunks after this pause")
    gather_s: float = Field(
        0.1, ge=0, le=60, description="collect wishes for a blob this long, then publish once"
    )
    sync: bool = Field(True, description="sync the spool to disk before a receipt; false only on tmpfs")


class StoreSettings(_Section):
    """The bounds of a node's sample store; docs/appliance.md says what leaves when it is full."""

    max_count: int = Field(20_000, ge=1, le=10**6, description="pictures kept")
    max_mb: int = Field(2000, ge=1, le=10**6, description="of picture files")
    max_per_label: int = Field(5_000, ge=1, le=10**6, description="labelled pictures kept of each label")
    min_free_mb: int = Field(200, ge=0, le=10**6, description="take no picture where the disk has less left")
    held_out: float = Field(
        0.2, ge=0, le=0.9, description="share of the pictures that is never trained, and tests models"
    )


class CameraSettings(_Section):
    """A node's camera."""

    kind: str | None = Field(None, description="unset: none; picamera2, usb, stream or folder")
    source: str = Field("", description="device (/dev/video0), address (http:, rtsp:), file or folder")
    width: int = Field(640, ge=32, le=8192, description="wanted; streams and files come as they are")
    height: int = Field(480, ge=32, le=8192, description="wanted")
    fps: float = Field(1.0, gt=0, le=30, description="frames looked at each second")
    timeout_s: float = Field(10.0, gt=0, le=300, description="a camera that is silent so long is gone")
    retry_max_s: float = Field(
        60.0, gt=0, le=3600, description="longest pause before it is tried again (doubling)"
    )


class CaptureSettings(_Section):
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
    jpeg_quality: int = Field(90, ge=30, le=100, description="of kept frames")


class EdgeSettings(_Section):
    """One node."""

    node_id: str = Field(default_factory=default_node_id, description="unset: this machine's host name")
    data_dir: Path | None = Field(None, description="pictures, LABEL/*.jpg|png")
    state_dir: Path = Field(Path("state/edge"), description="outbox, blobs, caches")
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
        30.0, gt=0, le=3600, description="offer again after this long without an answer"
    )
    refresh_s: float = Field(
        60.0, ge=1, le=3600, description="say again who is here, and ask what is current"
    )
    want_idle_s: float = Field(
        30.0, gt=0, le=3600, description="ask again for missing chunks after this pause"
    )
    store: StoreSettings = Field(
        default_factory=StoreSettings, description="Bounds of the sample store: docs/appliance.md"
    )
    camera: CameraSettings = Field(default_factory=CameraSettings, description="The camera.")
    capture: CaptureSettings = Field(
        default_factory=CaptureSettings, description="Which frames are kept for labelling."
    )

    @field_validator("node_id")
    @classmethod
    def _fits_topic(cls, value: str) -> str:
        try:
            return check_name(value, "node_id")
        except TopicError as e:
            raise ValueError(str(e)) from None


class PublishSettings(_Section):
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
        "apiary",
        description="who makes the int8 model; edge_impulse needs up to 100 of the test images",
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


class Settings(_Section):
    """All settings of one party."""

    federation: str = Field("default", description="name of the federation; several share a broker")
    root: str = Field("apiary", description="root of the control topics")
    blob_root: str = Field("apiary-blob", description="root of the weight topics")
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    run: RunSettings = Field(default_factory=RunSettings)
    coordinator: CoordinatorSettings = Field(default_factory=CoordinatorSettings)
    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    publish: PublishSettings = Field(default_factory=PublishSettings)

    @field_validator("federation", "root", "blob_root")
    @classmethod
    def _fits_topic(cls, value: str) -> str:
        try:
            return check_name(value, "name")
        except TopicError as e:
            raise ValueError(str(e)) from None

    @property
    def topics(self) -> Topics:
        """The topics of this federation."""
        return Topics(self.federation, self.root, self.blob_root)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each dotted key that is not a default, where it came from."""

    settings: Settings
    origin: Mapping[str, str]


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="APIARY_", env_nested_delimiter="__", extra="ignore")

    federation: str | None = None
    root: str | None = None
    blob_root: str | None = None
    broker: dict[str, Any] | None = None
    run: dict[str, Any] | None = None
    coordinator: dict[str, Any] | None = None
    edge: dict[str, Any] | None = None
    publish: dict[str, Any] | None = None


def load_settings(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read `file` (or `apiary.toml` of this folder, or APIARY_CONFIG), the environment and `overrides`.

    `overrides` maps dotted keys to values, from the command line. Raises SettingsError naming the key,
    where it came from, what came and what was expected.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    path = file or _default_file()
    if path is not None:
        _merge(merged, origin, _read_toml(path), str(path))
    _merge(merged, origin, _read_environment(), "environment")
    for key, value in (overrides or {}).items():
        if value is not None:
            _merge(merged, origin, _nest(key, value), "command line")
    try:
        return Loaded(Settings.model_validate(merged), origin)
    except ValidationError as e:
        raise SettingsError(_explain(e, origin)) from None


def password(broker: BrokerSettings) -> str | None:
    """The broker's password from where the settings say it is. Raises SettingsError."""
    if broker.password_file is not None:
        try:
            return broker.password_file.read_text().split("\n")[0].strip()
        except OSError as e:
            raise SettingsError(f"broker.password_file {broker.password_file}: {e.strerror}") from None
    return broker.password.get_secret_value() if broker.password else None


def flatten(settings: Settings) -> dict[str, Any]:
    """Dotted key to value for every setting, secrets hidden."""
    out: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, BaseModel):
            for name in type(value).model_fields:
                walk(f"{prefix}.{name}" if prefix else name, getattr(value, name))
        else:
            out[prefix] = str(value) if isinstance(value, Path | SecretStr) else value

    walk("", settings)
    return out


def _default_file() -> Path | None:
    if named := os.environ.get("APIARY_CONFIG"):
        return Path(named)
    here = Path("apiary.toml")
    return here if here.is_file() else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as f:
            return tomllib.load(f)
    except OSError as e:
        raise SettingsError(f"settings file {path}: {e.strerror}") from None
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"settings file {path} is not TOML: {e}") from None


def _read_environment() -> dict[str, Any]:
    known = set(_Environment.model_fields)
    for key in os.environ:
        first = key.removeprefix("APIARY_").split("__")[0].lower()
        if key.startswith("APIARY_") and first not in known | {"config", "data", "log"}:
            raise SettingsError(f"environment: {key} names no setting{_near(first, known)}")
    try:
        values = EnvSettingsSource(_Environment)()
    except (ValidationError, ValueError) as e:
        raise SettingsError(f"environment: {e}") from None
    return {k: v for k, v in values.items() if v is not None}


def _merge(
    into: dict[str, Any], origin: dict[str, str], values: Mapping[str, Any], where: str, prefix: str = ""
) -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and not dotted.endswith("_options"):
            node = into.setdefault(key, {})
            if isinstance(node, dict):
                _merge(node, origin, value, where, f"{dotted}.")
                continue
        into[key] = value
        origin[dotted] = where


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _explain(e: ValidationError, origin: Mapping[str, str]) -> str:
    lines = []
    for error in e.errors(include_url=False):
        key = ".".join(str(p) for p in error["loc"])
        where = next((origin[k] for k in (key, *_parents(key)) if k in origin), "settings")
        if error["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown setting {key!r}{_near(key, set(flatten(Settings())))}")
        else:
            lines.append(f"{where}: {key} is {error.get('input')!r}: {error['msg']}")
    return "\n".join(lines)


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _near(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return (
        f"; did you mean {near[0]!r}?"
        if near
        else f". There are: {', '.join(sorted(known))}"
        if len(known) < 12
        else ""
    )
