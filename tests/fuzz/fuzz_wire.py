"""Coverage-guided fuzzing of everything that reads bytes from the bus: `make fuzz` (atheris).

Each input goes to the decoder of one topic, chosen by its first byte. Anything but the project's own
`WireError` is a finding, and so is memory or time out of proportion (libFuzzer's own limits).
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import atheris
from cryptography import x509

with atheris.instrument_imports():
    from apiary.errors import WireError
    from apiary.identity.certificates import Trust
    from apiary.identity.marks import DiskMarks
    from apiary.identity.roles import Role
    from apiary.identity.signing import Verifier
    from apiary.tensors import Weights
    from apiary.wire import Digest, NodeId, blob, chunks, messages
    from apiary.wire.topics import Topics
    from apiary_coordinator.screen import screen_update

_MESSAGES = [
    messages.Announcement,
    messages.Notice,
    messages.RoundResult,
    messages.ModelManifest,
    messages.CoordinatorStatus,
    messages.NodeStatus,
    messages.Progress,
    messages.Ask,
    messages.Want,
    messages.Offer,
    messages.Grant,
    messages.Receipt,
]
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
    which, body = data[0] % (len(_MESSAGES) + 5), data[1:]
    try:
        if which < len(_MESSAGES):
            _MESSAGES[which].decode(body, who="fuzz")
        elif which == len(_MESSAGES):
            _TOPICS.parse(body.decode(errors="replace"))
        elif which == len(_MESSAGES) + 1:
            assembly = chunks.Assembly(_DIGEST, 300_000)
            assembly.accept(int.from_bytes(body[:1], "big") % 4, body[1:])
        elif which == len(_MESSAGES) + 2:
            found = blob.decode(body, who="fuzz").weights
            if not isinstance(found, Weights):
                raise AssertionError("decode gave something else")
        elif which == len(_MESSAGES) + 3:
            screen_update(body, _OFFER, NodeId("n"), messages.Bounds(), _SHAPES)
        else:
            _VERIFIER.open("apiary/default/node/pi-07/receipt", body, role=Role.COORDINATOR)
    except WireError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
