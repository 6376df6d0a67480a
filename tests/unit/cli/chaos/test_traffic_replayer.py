"""Chunks that are repeated in another's place, whoever sent them."""

from __future__ import annotations

import msgpack
import pytest

from apiary_cli.chaos.traffic_replayer import _renumbered


def test_a_chunk_becomes_the_one_behind_it() -> None:
    assert msgpack.unpackb(_renumbered(msgpack.packb(["digest", 3, b"data"]))) == ["digest", 4, b"data"]


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        msgpack.packb(7),
        msgpack.packb(["a", "b"]),
        msgpack.packb(["a"]),
        b"\xff" * 40,
    ],
)
def test_what_is_no_chunk_is_sent_all_the_same(junk: bytes) -> None:
    assert _renumbered(junk) == junk[::-1]
