"""A broker's reason codes as errors that name the setting to change."""

from collections.abc import Sequence
from typing import Final

from apiary.bus.route import HINT
from apiary.errors import BrokerRefused, BrokerUnreachable, BusError

# Reason codes of MQTT 5, section 2.4; those of 3.1.1 are translated into them.
UNSPECIFIED: Final = 0x80
_UNSUPPORTED_VERSION: Final = 0x84
_SESSION_TAKEN_OVER: Final = 0x8E
_PACKET_TOO_LARGE: Final = 0x95
GOING_AWAY: Final = frozenset({0x00, 0x8B, 0x98})
"""Normal, server shutting down, administrative action: it will be back."""
_HINTS: Final = {
    0x85: "this party's id is not one the broker takes: check edge.node_id",
    0x86: "check broker.username and broker.password (or broker.password_file)",
    0x87: "check broker.username and its password, and the broker's access lists",
    0x8A: "the broker has banned this party",
    0x8C: "check broker.tls_cert and broker.tls_key",
}


class VersionRefused(BrokerRefused):
    """The broker does not speak the requested version of MQTT."""


class WindowRefused(BusError):  # noqa: N818
    """Connect once more at once: the window must shrink to `receive_maximum`, which the broker announced."""

    def __init__(self, where: str, receive_maximum: int):
        super().__init__(f"{where}: receive maximum {receive_maximum}")
        self.receive_maximum = receive_maximum


class ShutOut(BrokerUnreachable):
    """The connection was closed instead of CONNECT being answered."""


def none_left(failures: Sequence[BusError]) -> BusError:
    """One error for a pass over several addresses that all failed; that of the only one as it is."""
    # What comes after it is a hint.
    found = list(dict.fromkeys(str(e).partition("; ")[0] for e in failures))
    if len(found) == 1:
        return failures[-1]
    kind = BrokerRefused if any(isinstance(e, BrokerRefused) for e in failures) else BrokerUnreachable
    return kind(f"none of {len(found)} addresses: {'; '.join(found)}; {str(failures[0]).partition('; ')[2]}")


def unreachable(where: str, why: str) -> BusError:
    """The broker is not there, or the link to it broke."""
    return BrokerUnreachable(f"{where}: {why}; {HINT}")


def refused(where: str, code: int, reason: str, *, client_id: str, protocol: str) -> BusError:
    """The broker's reason code and what it stands for, as an error that names the remedy."""
    if code == _UNSUPPORTED_VERSION:
        return VersionRefused(f'{where}: it does not speak MQTT {protocol}; set broker.protocol = "auto"')
    if code == _SESSION_TAKEN_OVER:
        return BrokerRefused(
            f"{where}: another party connected as {client_id!r} and took our place; "
            "give each party an id of its own (edge.node_id)"
        )
    if code == _PACKET_TOO_LARGE:
        return BrokerRefused(
            f"{where}: it cut the link: a message was larger than it takes; raise its max_packet_size "
            "(mosquitto.conf): chunks have 120,300 bytes, announcements up to 256,000"
        )
    hint = _HINTS.get(code)
    return BrokerRefused(f"{where}: its answer: {reason}" + (f"; {hint}" if hint else ""))
