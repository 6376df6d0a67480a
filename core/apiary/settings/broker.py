"""`[broker]`: where the MQTT broker is."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator

from apiary.addresses import Address, read_address
from apiary.errors import NotReady, SettingsError
from apiary.settings.section import Host, Section
from apiary.text_files import first_line


def _number_as_text(value: Any) -> Any:
    """`protocol = 5` means what `"5"` does."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class BrokerSettings(Section):
    """Where the MQTT broker is and how to talk to it."""

    host: Host = Field("127.0.0.1", description="name or address of the broker")
    port: int = Field(1883, ge=1, le=65535, description="8883 is usual with TLS")
    hosts: tuple[str, ...] = Field(
        (),
        max_length=32,
        description=("HOST or HOST:PORT of each member of a cluster, instead of broker.host"),
    )
    protocol: Annotated[Literal["auto", "5", "3.1.1"], BeforeValidator(_number_as_text)] = Field(
        "auto", description="auto: MQTT 5, or 3.1.1 where 5 is refused or cut"
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
        10.0,
        gt=0,
        le=600,
        description="for one attempt at all addresses of the broker",
    )
    retry_max_s: float = Field(
        60.0, gt=0, le=3600, description="longest pause between attempts (jittered, doubling)"
    )
    inflight: int = Field(
        20, ge=1, le=1000, description="publishes sent ahead of the broker's acknowledgement"
    )

    @field_validator("hosts", mode="after")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            read_address(text, 1883)
        return value

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it may be, at least one, in the order of the settings."""
        if not self.hosts:
            return (Address(self.host, self.port),)
        return tuple(dict.fromkeys(read_address(text, self.port) for text in self.hosts))

    @property
    def names(self) -> str:
        """Its addresses, to be printed."""
        return ", ".join(map(str, self.addresses))


def password(broker: BrokerSettings) -> str | None:
    """The broker's password from where the settings say it is. Raises SettingsError."""
    if broker.password_file is not None:
        try:
            return first_line(broker.password_file, what="broker.password_file")
        except SettingsError as e:
            raise NotReady(str(e)) from None  # a file may be there, or whole, in a minute
    return broker.password.get_secret_value() if broker.password else None
