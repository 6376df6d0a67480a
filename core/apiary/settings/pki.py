"""`[pki]`: the fleet's private authority, on the machine that runs `apiary pki`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from apiary.settings.section import Host, Section, fits_topic


class PkiSettings(Section):
    """Where the authority is kept, and what runs after each change."""

    state_dir: Path = Field(Path("pki"), description="folder of the authority: its key, index, lists")
    passphrase_file: Path | None = Field(
        None, description="file whose first line unlocks the authority's key; unset: prompted for, if needed"
    )
    days: float = Field(365, gt=0, le=7300, description="how long a certificate lasts, in days")
    broker_dir: Path | None = Field(
        None, description="ca.pem, crl.pem and acl.conf are written here after each change, for the broker"
    )
    reload: list[str] = Field(
        default_factory=list, description='then run, e.g. ["systemctl", "reload", "mosquitto"]'
    )
    kick: bool = Field(
        False, description="end connections of revoked parties by the broker's dynamic security plugin"
    )
    acl_extra: list[str] = Field(
        default_factory=list,
        description='lines for acl.conf, e.g. ["pattern write homeassistant/sensor/%u/+/config"]',
    )
    federations: list[Annotated[str, fits_topic("name")]] = Field(
        default_factory=list,
        max_length=100,
        description="federations that share the broker and this authority, for acl.conf; empty: `federation`",
    )
    old_chunk_topics: bool | None = Field(
        None,
        description=("a topic for each chunk in acl.conf, for older nodes; unset: by this authority's age"),
    )
    listen: Host | Literal[""] = Field(
        "", description="address that `apiary pki serve` listens on; empty: all"
    )
    port: int = Field(8443, ge=0, le=65535, description="its port")
