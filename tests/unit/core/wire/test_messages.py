"""Control messages: what a bad one is told, and that unknown keys of a newer version pass."""

from __future__ import annotations

import json

import pytest

from apiary.errors import MessageError, VersionError
from apiary.wire.messages import MAX_BLOB_BYTES, MAX_BYTES, Ask, BlobRef, Grant, NodeStatus, Offer, Want

HEX = "ab" * 32
OFFER: dict[str, object] = {
    "v": 1,
    "run": "r1",
    "round": 3,
    "update": {"digest": HEX, "bytes": 1000},
    "codec": "raw_f32",
    "samples": 40,
    "metrics": {"loss": 0.5},
}


def payload(**changes: object) -> bytes:
    return json.dumps(OFFER | changes).encode()


def test_keys_of_a_newer_minor_version_are_ignored() -> None:
    assert Offer.decode(payload(colour="red"), who="node pi-07") == Offer.decode(payload(), who="x")


def test_keys_that_are_none_do_not_travel() -> None:
    assert Ask().encode() == b'{"v":1}'


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], "x" * 10_000])
def test_another_version_is_refused_saying_which_is_expected(version: object) -> None:
    with pytest.raises(VersionError) as caught:
        Offer.decode(payload(v=version), who="node pi-07")
    message = str(caught.value)
    assert message.startswith("node pi-07: offer has protocol version ")
    assert "expected 1: upgrade the older party" in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "node pi-07: offer is not JSON"),
        (b"\xff\xfe\x00", "node pi-07: offer is not JSON"),
        (b"{", "node pi-07: offer is not JSON"),
        (b"[" * 200_000, "node pi-07: offer is not JSON"),
        (b"[1]", "node pi-07: offer is a JSON list, expected an object"),
        (b"null", "node pi-07: offer is a JSON NoneType, expected an object"),
        (b" " * (MAX_BYTES + 1), f"node pi-07: offer of {MAX_BYTES + 1} bytes, expected at most {MAX_BYTES}"),
        (payload(samples=0), "node pi-07: offer: samples is '0': Input should be greater than"),
        (payload(samples=2**24 + 1), "samples is '16777217': Input should be less than"),
        (payload(run="../etc"), "run is '../etc': String should match pattern"),
        (payload(update={"digest": HEX[:-1], "bytes": 1}), "update.digest is "),
        (payload(update={"digest": HEX, "bytes": MAX_BLOB_BYTES + 1}), "update.bytes is '268435457'"),
        (payload(metrics={"loss": float("nan")}), "metrics.loss is 'nan': Input should be a finite number"),
        (payload(metrics={"loss": 1e300}), "metrics.loss is '1e\\+300'"),
        (payload(round=None), "round is 'None': Input should be a valid integer"),
        (json.dumps({"v": 1}).encode(), "run is .*: Field required"),
        (payload(samples=10**4000), "samples is "),
        (payload(samples=int("9" * 4000)), "samples is "),
        (b'{"v":1,"run":' + b"9" * 5000 + b"}", "offer is not JSON"),
    ],
    ids=range(19),
)
def test_bad_message_is_refused_with_who_what_and_what_was_expected(data: bytes, message: str) -> None:
    with pytest.raises(MessageError, match=message) as caught:
        Offer.decode(data, who="node pi-07")
    assert len(str(caught.value)) < 400


def test_largest_message_is_read_and_one_byte_more_is_not() -> None:
    data = Ask().encode()
    assert Ask.decode(data + b" " * (MAX_BYTES - len(data)), who="n") == Ask()
    with pytest.raises(MessageError, match="bytes, expected at most"):
        Ask.decode(data + b" " * (MAX_BYTES - len(data) + 1), who="n")


@pytest.mark.parametrize("kind", [Want, Grant])
def test_runs_are_bounded_in_number(kind: type[Want] | type[Grant]) -> None:
    full = [[i, i + 1] for i in range(2_000)]
    assert len(kind.decode(_json(digest=HEX, missing=full), who="n").missing) == 2_000
    with pytest.raises(MessageError, match="missing is "):
        kind.decode(_json(digest=HEX, missing=[*full, [1, 2]]), who="n")
    with pytest.raises(MessageError, match=r"missing\.0"):
        kind.decode(_json(digest=HEX, missing=[[0, -1]]), who="n")
    with pytest.raises(MessageError, match=r"missing\.0"):
        kind.decode(_json(digest=HEX, missing=[[0]]), who="n")


def _json(**fields: object) -> bytes:
    return json.dumps({"v": 1, **fields}).encode()


def test_blob_has_both_bounds() -> None:
    for size in (1, MAX_BLOB_BYTES):
        assert BlobRef(digest=HEX, bytes=size).bytes == size
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        BlobRef(digest=HEX, bytes=0)


def test_unknown_state_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MessageError, match="state is 'asleep': Input should be 'init', 'ready', 'training'"):
        NodeStatus.decode(_json(state="asleep"), who="node x")
