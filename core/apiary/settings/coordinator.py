"""`[coordinator]` and `[metrics]`: the server's folders and limits, its figures for Prometheus."""

from pathlib import Path

from pydantic import Field

from apiary.settings.section import Host, Section


class CoordinatorSettings(Section):
    """The server's folders and limits."""

    state_dir: Path = Field(Path("state/coordinator"), description="journal, spool, checkpoints, exports")
    exports_dir: Path | None = Field(
        None, description="exported recipes, kept for the next run (in state_dir)"
    )
    runs_dir: Path = Field(Path("runs"), description="results, one folder a run")
    test_data: Path | None = Field(
        None, description="held-out pictures, a folder a label, which also names the labels: docs/folders.md"
    )
    join_labels: bool = Field(False, description="labels that differ in case, blanks or hyphens only are one")
    labels: list[str] | None = Field(
        None, description="class names in order; unset: the folders of test_data"
    )
    base_weights: Path | None = Field(None, description="weights file for a transfer recipe's base")
    max_uploads: int | None = Field(
        None, ge=1, le=1000, description="uploads granted at once; unset: from broker, update size and memory"
    )
    queue_messages: int | None = Field(
        None,
        ge=10,
        le=100_000_000,
        description=("messages that the broker queues for a client; unset: 10000, or 1000"),
    )
    queue_bytes: int | None = Field(
        None,
        ge=1_000_000,
        le=2**40,
        description="the same in bytes (mosquitto: max_queued_bytes); unset: 256 MB",
    )
    upload_idle_s: float = Field(20.0, gt=0, le=3600, description="request missing chunks after this pause")
    gather_s: float = Field(
        0.1, ge=0, le=60, description="collect requests for a blob this long, then publish once"
    )
    keep_runs: int = Field(
        100, ge=0, le=100_000, description="with --stay: runs that stay, the newest, folders too; 0: all"
    )
    sync: bool = Field(True, description="sync the spool to disk before a receipt; false only on tmpfs")


class MetricsSettings(Section):
    """An HTTP endpoint at /metrics; off unless a port is given."""

    port: int | None = Field(None, ge=0, le=65535, description="e.g. 9108; unset: off; 0: any free one")
    host: Host = Field("127.0.0.1", description="address to listen on; readers are not authenticated")
