"""`[edge.page]`: the pages that a running node serves to its owner, all at one address."""

from pydantic import Field

from apiary.settings.section import Host, Section

LAN = "lan"
"""As `edge.page.host`: this machine's own address in its local network, looked up again while it serves."""


class PageSettings(Section):
    """The node's pages: docs/labelling.md, docs/predictions.md."""

    enabled: bool | None = Field(
        None, description="serve the labelling and the predictions page; unset: where edge.predict.enabled"
    )
    host: Host = Field(
        "127.0.0.1",
        description="address of the pages; lan: this machine's in its local network",
    )
    port: int = Field(4912, ge=0, le=65535, description="port of the pages; 0: any that is free")
    names: list[Host] = Field(
        default_factory=list,
        max_length=16,
        description="further names that the pages answer to; the first is the one in the QR code",
    )
