"""Coverage-guided fuzzing of everything that reads bytes from the bus: `make fuzz` (atheris).

Each input goes to one decoder, chosen by its first byte: of each kind of message, and of what carries them.
Anything but the project's own `WireError` is a finding, and so is memory or time out of proportion
(libFuzzer's own limits).
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import atheris
from cryptography import x509

with atheris.instrument_imports():
    from apiary.bus import packets
    from apiary.errors import WireError
    from apiary.identity.certificates import Trust
    from apiary.identity.replay_guard import DiskMarks
    from apiary.identity.roles import Role
    from apiary.identity.signing import Verifier
    from apiary.tensors import Weights
    from apiary.wire import Digest, NodeId, blob, chunks, messages
    from apiary.wire.topics import Topics
    from apiary_coordinator.updates.screening import screen_update

_MESSAGES = sorted(messages.Message.__subclasses__(), key=lambda c: c.__name__)
_TOPICS = Topics()
_DIGEST = Digest("0123456789abcdef" * 4)
_OFFER = messages.Offer.model_validate(
    {
        "run": "r",
        "round": 1,
        "update": {"digest": _DIGEST, "bytes": 100},
        "codec": "raw_f32",
        "samples": 3,
        "metrics": {"loss": 0.1},
    }
)
_SHAPES = {"a": (2, 3), "b": (4,)}
_CA = Path(__file__).resolve().parents[1] / "golden" / "signed" / "ca.pem"
_VERIFIER = Verifier(
    Trust([x509.load_pem_x509_certificate(_CA.read_bytes())]),
    DiskMarks(None, lambda: 0.0),
    lambda: datetime(2026, 11, 20, 12, tzinfo=UTC),
)


def one(data: bytes) -> None:
    """One input."""
    if not data:
        return
    which, body = data[0] % WAYS, data[1:]
    try:
        if which < len(_MESSAGES):
            _MESSAGES[which].decode(body, who="fuzz")
        else:
            _OTHERS[which - len(_MESSAGES)](body)
    except WireError:
        pass


def _topic(body: bytes) -> None:
    _TOPICS.parse(body.decode(errors="replace"))


def _chunk(body: bytes) -> None:
    chunks.Assembly(_DIGEST, 300_000).accept(int.from_bytes(body[:1], "big") % 4, body[1:])


def _blob(body: bytes) -> None:
    if not isinstance(blob.decode(body, who="fuzz").weights, Weights):
        raise AssertionError("decode gave something else")


def _update(body: bytes) -> None:
    screen_update(body, _OFFER, NodeId("n"), messages.Bounds(), _SHAPES)


def _sealed(body: bytes) -> None:
    _VERIFIER.open("apiary/default/node/pi-07/receipt", body, role=Role.COORDINATOR)


def _packets(body: bytes) -> None:
    """What a broker sends, in two parts; `Malformed` is its answer."""
    reader, cut = packets.PacketReader(), int.from_bytes(body[:2], "big")
    try:
        for part in (body[2 : 2 + cut], body[2 + cut :]):
            for first, rest in reader.feed(part) if part else []:
                packets.publish(rest, first >> 1 & 3, v5=bool(first & 1))
    except packets.Malformed:
        pass


_OTHERS: Final = (_topic, _chunk, _blob, _update, _sealed, _packets)
WAYS: Final = len(_MESSAGES) + len(_OTHERS)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
