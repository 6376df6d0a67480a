"""`[security]`: signing the messages of this party, and checking those of others."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from apiary.settings.section import Section


class SecuritySettings(Section):
    """Signed messages; with `ca` everything that must be signed is, and what is not is refused."""

    ca: Path | None = Field(
        None, description="PEM file of the fleet's authority; set: only signed messages count"
    )
    crl: Path | None = Field(None, description="PEM file of revoked certificates; read again when it changes")
    cert: Path | None = Field(None, description="this party's signing certificate (PEM)")
    key: Path | None = Field(None, description="its Ed25519 key (PEM)")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ca is None and (self.crl or self.cert or self.key):
            raise ValueError("security.ca is missing: set it beside crl, cert and key, or none of them")
        if (self.cert is None) != (self.key is None):
            raise ValueError("security.cert and security.key belong together: set both or neither")
        return self
