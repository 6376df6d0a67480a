"""Digests of held-out pictures as a blob: bounded, sorted, compared without unpacking it."""

from __future__ import annotations

import hashlib

from apiary.wire.held_out import MAX_ENTRIES, PREFIX_BYTES, encode, fits, shared


def digest(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def test_what_both_have_is_counted() -> None:
    blob = encode(digest(i) for i in range(1000))
    assert len(blob) == 1000 * PREFIX_BYTES and blob == encode(digest(i % 1000) for i in range(1999, -1, -1))
    assert shared(blob, [digest(i) for i in range(995, 1010)]) == 5
    assert shared(blob, []) == 0 and shared(blob, [digest(5000)]) == 0
    first, last = blob[:PREFIX_BYTES].hex(), blob[-PREFIX_BYTES:].hex()
    assert shared(blob, [first + "0" * 48, last + "f" * 48, "0" * 64, "f" * 64]) == 2


def test_what_is_no_such_blob_has_nothing() -> None:
    assert encode([]) == b"" and not fits(0)
    assert shared(b"", [digest(1)]) == 0
    assert shared(encode([digest(1)])[:-1], [digest(1)]) == 0


def test_both_sides_of_the_bound() -> None:
    assert fits(MAX_ENTRIES * PREFIX_BYTES) and not fits((MAX_ENTRIES + 1) * PREFIX_BYTES)
    assert not fits(PREFIX_BYTES + 1)
    assert len(encode(f"{i:016x}" + "0" * 48 for i in range(MAX_ENTRIES + 5))) == MAX_ENTRIES * PREFIX_BYTES
