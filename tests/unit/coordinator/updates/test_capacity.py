"""How many uploads are granted at once: each limit, from both sides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apiary.bus.broker import default_conf
from apiary.settings import Settings
from apiary.wire.chunks import CHUNK_BYTES, count
from apiary_coordinator.updates.capacity import (
    ALWAYS,
    EAGER_BYTES,
    MEMORY_SHARE,
    MOST,
    OTHER_QUEUE,
    OUR_QUEUE,
    OUR_RECEIVE_MAXIMUM,
    SHARE,
    most_uploads,
)

OURS = OUR_RECEIVE_MAXIMUM
UNKNOWN = 0
PLENTY = 64 * 2**30


def test_what_is_taken_for_granted_of_our_broker_is_what_its_configuration_says() -> None:
    text = default_conf().read_text()
    said = {k: int(v) for k, v in re.findall(r"^(max_\w+) (\d+)$", text, re.MULTILINE)}
    assert said["max_inflight_messages"] == OUR_RECEIVE_MAXIMUM
    assert (said["max_queued_messages"], said["max_queued_bytes"]) == OUR_QUEUE


@pytest.mark.parametrize(
    ("update_bytes", "limits", "memory", "expected"),
    [
        (1, OURS, PLENTY, MOST),
        (840_000, OURS, PLENTY, 39),
        (840_000, UNKNOWN, PLENTY, 39),
        (14_000_000, OURS, PLENTY, 10),
        (14_000_000, UNKNOWN, PLENTY, 6),
        (14_000_000, OURS, 512 * 2**20, 4),
        (14_000_000, OURS, 4 * 8 * 14_000_000, 4),
        (100_000_000, OURS, PLENTY, 2),
        (256 * 2**20, OURS, PLENTY, 1),
        (256 * 2**20, UNKNOWN, 2**20, 1),
    ],
)
def test_usual_models(update_bytes: int, limits: int, memory: int, expected: int) -> None:
    assert most_uploads(update_bytes, limits, memory) == expected


def test_most_and_one_more() -> None:
    at = EAGER_BYTES // MOST
    assert most_uploads(at, OURS, PLENTY) == MOST
    assert most_uploads(at // 2, OURS, PLENTY) == MOST
    assert most_uploads(at + at // MOST + 1, OURS, PLENTY) == MOST - 1


def test_more_than_ten_only_while_they_are_small() -> None:
    at = EAGER_BYTES // (ALWAYS + 1)
    assert most_uploads(at, OURS, PLENTY) == ALWAYS + 1
    assert most_uploads(at + 1, OURS, PLENTY) == ALWAYS


def test_queue_in_messages() -> None:
    room = int(SHARE * OTHER_QUEUE[0])
    fits = room // ALWAYS * CHUNK_BYTES
    assert count(fits) * ALWAYS == room
    assert most_uploads(fits, UNKNOWN, PLENTY) == ALWAYS
    assert most_uploads(fits + 1, UNKNOWN, PLENTY) == ALWAYS - 1
    assert most_uploads(fits + 1, 20, PLENTY) == ALWAYS, "what is in flight waits nowhere"


def test_queue_in_bytes() -> None:
    fits = int(SHARE * OUR_QUEUE[1]) // ALWAYS
    assert most_uploads(fits, OURS, PLENTY) == ALWAYS
    assert most_uploads(fits + 1, OURS, PLENTY) == ALWAYS - 1


def test_memory_of_the_machine() -> None:
    size = 4_000_000
    memory = int(5 * size / MEMORY_SHARE)
    assert most_uploads(size, OURS, memory) == 5
    assert most_uploads(size, OURS, memory - 8) == 4


def test_an_operator_may_say_a_number(tmp_path: Path) -> None:
    assert Settings.model_validate({}).coordinator.max_uploads is None
    assert Settings.model_validate({"coordinator": {"max_uploads": 3}}).coordinator.max_uploads == 3


def test_what_the_broker_queues_may_be_said() -> None:
    assert most_uploads(14_000_000, UNKNOWN, PLENTY) == 6
    assert most_uploads(14_000_000, UNKNOWN, PLENTY, queue_messages=10_000) == ALWAYS
    assert most_uploads(40_000_000, UNKNOWN, PLENTY, queue_messages=10_000) == 5, "its bytes as by default"
    assert most_uploads(14_000_000, OURS, PLENTY, queue_messages=500) == 4
    assert most_uploads(14_000_000, OURS, PLENTY, queue_bytes=56_000_000) == 3
    assert most_uploads(14_000_000, OURS, PLENTY, queue_messages=10) == 1
