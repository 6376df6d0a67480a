"""Codes that sign a phone in once: made by the command that draws the QR code, believed by the page. Pure.

Whoever makes one has the owner's token; the code does not hold it. A page believes a code once, for ten
minutes, and none from before it began to serve, because it would not know whether that one was used.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

LIFE_S: Final = 600.0
"""To find the phone, and for it to join the network."""
NONCE_BYTES: Final = 6
_CLOCK_BYTES: Final = 5
_MAC_BYTES: Final = 14
_AHEAD_S: Final = 1.0
_STEP_S: Final = 3600.0
"""The clock may be set by so much between making a code and using it; one of another boot differs more."""
_PURPOSE: Final = b"apiary sign-in code"


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment by two clocks: seconds since the boot, which all processes share, and since 1970."""

    monotonic: float
    wall: float


def make_code(token: str, port: int, now: Instant, nonce: bytes) -> str:
    """A code for the page on `port`: 40 characters of an address; `nonce` is NONCE_BYTES random bytes."""
    made = _ms(now.monotonic) + int(now.wall).to_bytes(_CLOCK_BYTES) + nonce
    return base64.urlsafe_b64encode(made + _mac(token, port, made)).decode().rstrip("=")


class CodeBook:
    """The codes that a page has taken. `began` is when it began to serve; not safe for many threads."""

    def __init__(self, token: str, port: int, began: Instant):
        self._token = token
        self._port = port
        self._began = int.from_bytes(_ms(began.monotonic))
        self._used: dict[bytes, float] = {}

    def take(self, code: str, now: Instant) -> bool:
        """Whether the code is good now, for the first time."""
        self._used = {mac: until for mac, until in self._used.items() if until >= now.monotonic}
        try:
            data = base64.urlsafe_b64decode(code.encode() + b"=" * (-len(code) % 4))
        except (ValueError, binascii.Error):
            return False
        made, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if len(made) != 2 * _CLOCK_BYTES + NONCE_BYTES:
            return False
        if not hmac.compare_digest(mac, _mac(self._token, self._port, made)) or mac in self._used:
            return False
        issued_ms = int.from_bytes(made[:_CLOCK_BYTES])
        age_s = now.monotonic - issued_ms / 1000
        wall_age_s = now.wall - int.from_bytes(made[_CLOCK_BYTES : 2 * _CLOCK_BYTES])
        if issued_ms < self._began or not -_AHEAD_S <= age_s <= LIFE_S or abs(wall_age_s - age_s) > _STEP_S:
            return False
        self._used[mac] = now.monotonic + LIFE_S + _AHEAD_S
        return True


def _ms(seconds: float) -> bytes:
    return int(1000 * seconds).to_bytes(_CLOCK_BYTES)


def _mac(token: str, port: int, made: bytes) -> bytes:
    message = b"%s %d " % (_PURPOSE, port) + made
    return hmac.new(token.encode(), message, hashlib.sha256).digest()[:_MAC_BYTES]
