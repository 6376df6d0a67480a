"""What shall be on the card, as plain data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from apiary.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Wifi:
    """A wireless network; its passphrase is on the card only as the key that follows from it."""

    ssid: str
    key: str
    """64 hexadecimal digits: PBKDF2 of passphrase and name (IEEE 802.11i, annex H.4)."""
    country: str

    @classmethod
    def of(cls, ssid: str, passphrase: str, country: str) -> Wifi:
        """Raises SettingsError where one of the three cannot be."""
        if not 1 <= len(ssid.encode()) <= 32:
            raise SettingsError(
                f"the name of the wireless network has {len(ssid.encode())} bytes, expected 1 to 32"
            )
        if not 8 <= len(passphrase) <= 63 or not passphrase.isascii():
            raise SettingsError("the passphrase of the wireless network has 8 to 63 ASCII characters")
        if len(country) != 2 or not country.isalpha():
            raise SettingsError(
                f"--wifi-country {country!r}: expected two letters such as DE, which Wi-Fi needs"
            )
        key = hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32).hex()
        return cls(ssid, key, country.upper())


@dataclass(frozen=True, slots=True)
class Package:
    """Where the Pi gets Apiary: a wheel on the card, or one at a URL with its SHA-256."""

    wheel: str
    """Name of the file."""
    url: str | None = None
    sha256: str | None = None
    offline: bool = False
    """Everything that it depends on is on the card too."""


@dataclass(frozen=True, slots=True)
class CardPlan:
    """One card."""

    name: str
    user: str
    ssh_keys: tuple[str, ...]
    timezone: str
    wifi: Wifi | None
    package: Package
    enrolment_url: str
    ca_sha256: str
    token: str
    settings: dict[str, Any]
    """`apiary.toml` of the node."""
