"""`[metrics]`: the coordinator's figures for Prometheus."""

from __future__ import annotations

from pydantic import Field

from apiary.settings.section import Section


class MetricsSettings(Section):
    """An HTTP endpoint at /metrics; off unless a port is given."""

    port: int | None = Field(None, ge=0, le=65535, description="e.g. 9108; unset: off; 0: any free one")
    host: str = Field("127.0.0.1", description="address to listen on; readers are not authenticated")
