"""The words of the `.eim` protocol: pure, each wrong answer with its message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apiary.eim import protocol
from apiary.eim.protocol import EimModel, SharedMemory
from apiary.errors import EimError


def hello(**changes: Any) -> dict[str, Any]:
    """As a real program answers, with some model parameters changed."""
    model = {
        "input_features_count": 48,
        "image_input_width": 8,
        "image_input_height": 6,
        "image_channel_count": 3,
        "image_resize_mode": "squash",
        "labels": ["cat", "dog"],
        "label_count": 2,
        "model_type": "classification",
        "sensor": 3,
        "has_anomaly": 0,
    }
    project = {"id": 1, "owner": "o", "name": "hats", "deploy_version": 4}
    return {"id": 1, "success": True, "project": project, "model_parameters": model | changes}


def test_requests_are_what_the_program_reads() -> None:
    assert protocol.hello(1) == b'{"hello":1,"id":1}'
    assert protocol.classify([0, 16777215], 2) == b'{"classify":[0,16777215],"id":2}'
    assert protocol.classify_shared(48, 3) == b'{"classify_shm":{"elements":48},"id":3}'


def test_a_request_that_would_overflow_the_program_is_not_sent() -> None:
    fits = (protocol.MAX_REQUEST_BYTES - len(b'{"classify":[],"id":1}') + 1) // 9
    assert len(protocol.classify([16777215] * fits, 1)) <= protocol.MAX_REQUEST_BYTES
    with pytest.raises(EimError, match="does not fit the program's buffer"):
        protocol.classify([16777215] * (fits + 2), 1)


def test_answers_come_whole_however_they_are_cut() -> None:
    stream = b'{"id":1}\n\0{"id":2,"x":"\\u0000"}\n\0'
    for step in range(1, len(stream) + 1):
        answers = protocol.Answers()
        found = [a for i in range(0, len(stream), step) for a in answers.feed(stream[i : i + step])]
        assert found == [{"id": 1}, {"id": 2, "x": "\0"}]


def test_both_sides_of_the_longest_answer() -> None:
    assert protocol.Answers(10).feed(b'{"a":"bc"}\0') == [{"a": "bc"}]
    for data in (b'{"a":"bcd"}\0', b"x" * 11):
        with pytest.raises(EimError, match="more than 10 bytes"):
            protocol.Answers(10).feed(data)


@pytest.mark.parametrize("data", [b"<html>\0", b"\xff\xfe\0", b"[1]\0", b"\0", b"[" * 100_000 + b"\0"])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(EimError, match=r"expected (a )?JSON"):
        protocol.Answers().feed(data)


def test_the_model_is_read() -> None:
    assert protocol.read_hello(hello()) == EimModel("hats", 4, 8, 6, 3, "squash", ("cat", "dog"))
    assert protocol.read_hello(hello()).features == 48


def test_print_info_is_read_from_the_first_brace() -> None:
    printed = "Edge Impulse Linux impulse runner - printing model metadata\n" + json.dumps(hello()) + "\n\n"
    assert protocol.read_info(printed) == protocol.read_hello(hello())
    with pytest.raises(EimError, match="printed no JSON, but 'cannot execute"):
        protocol.read_info("cannot execute")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "object_detection"}, "is for 'object_detection', expected 'classification'"),
        ({"labels": ["cat"]}, "expected two or more names"),
        ({"labels": [1, 2]}, "expected two or more names"),
        ({"labels": None}, "expected two or more names"),
        ({"labels": ["cat", "cat"]}, "names 2 labels and counts 2"),
        ({"label_count": 3}, "names 2 labels and counts 3"),
        ({"image_input_width": 0}, "image_input_width is 0, expected 1 to 4096: is it for images"),
        ({"image_input_width": True}, "image_input_width is True"),
        ({"image_input_height": 5000}, "image_input_height is 5000"),
        ({"image_channel_count": 2}, "2 channels, expected 1 .grey. or 3"),
        ({"input_features_count": 144}, "takes 144 features, expected one a pixel of 8x6"),
        ({"image_resize_mode": "stretch"}, "resize mode is 'stretch', expected one of none, squash"),
    ],
)
def test_a_model_that_is_not_ours_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EimError, match=says):
        protocol.read_hello(hello(**changes))


def test_an_answer_without_its_parts_is_refused() -> None:
    for part in ("project", "model_parameters"):
        answer = hello()
        del answer[part]
        with pytest.raises(EimError, match=f"no '{part}'"):
            protocol.read_hello(answer)


def test_only_the_answer_to_this_request_counts() -> None:
    assert protocol.accept({"success": True, "id": 4}, 4)["id"] == 4
    with pytest.raises(EimError, match="answers request 3, expected 4"):
        protocol.accept({"success": True, "id": 3}, 4)
    with pytest.raises(EimError, match="refuses: out of arena"):
        protocol.accept({"success": False, "error": "out of arena", "id": 4}, 4)
    with pytest.raises(EimError, match="refuses: it gives no reason"):
        protocol.accept({"id": 4}, 4)


@pytest.mark.parametrize(
    ("offer", "taken"),
    [
        ({"name": "/eim-1", "size_bytes": 192, "type": "float32", "elements": 48}, SharedMemory("eim-1", 48)),
        ({"name": "eim.1", "type": "float32", "elements": 50}, SharedMemory("eim.1", 50)),
        ({"name": "/../etc/passwd", "type": "float32", "elements": 48}, None),
        ({"name": "/a/b", "type": "float32", "elements": 48}, None),
        ({"name": "/.hidden", "type": "float32", "elements": 48}, None),
        ({"name": "/x", "type": "uint8", "elements": 48}, None),
        ({"name": "/x", "type": "float32", "elements": 47}, None),
        ({"name": "/x", "type": "float32", "elements": 2**40}, None),
        ({"name": "/x", "type": "float32"}, None),
        ("/x", None),
    ],
)
def test_shared_memory_is_taken_where_it_is_safe(offer: Any, taken: SharedMemory | None) -> None:
    assert protocol.read_hello(hello() | {"features_shm": offer}).shared_memory == taken


def result(found: Any, **more: Any) -> dict[str, Any]:
    return {"id": 2, "success": True, "result": {"classification": found}} | more


def test_a_result_is_in_the_models_order() -> None:
    timing = {"dsp": 3, "classification": 41, "anomaly": 0}
    got = protocol.read_result(result({"dog": 0.75, "cat": 0.25}, timing=timing), ("cat", "dog"))
    assert list(got.probabilities.items()) == [("cat", 0.25), ("dog", 0.75)]
    assert (got.label, got.probability) == ("dog", 0.75)
    assert (got.dsp_ms, got.classification_ms) == (3.0, 41.0)


def test_odd_timing_is_no_reason_to_drop_a_result() -> None:
    for timing in (None, {}, {"dsp": "x", "classification": -1}, {"classification": float("inf")}, [1]):
        got = protocol.read_result(result({"cat": 1, "dog": 0}, timing=timing), ("cat", "dog"))
        assert (got.dsp_ms, got.classification_ms) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"cat": 1.0}, "names cat, expected cat, dog"),
        ({"cat": 1.0, "dog": 0.0, "cow": 0.0}, "names cat, cow, dog, expected cat, dog"),
        ({"cat": float("nan"), "dog": 0.0}, "'cat' the probability nan, expected 0 to 1"),
        ({"cat": 1.2, "dog": 0.0}, "'cat' the probability 1.2"),
        ({"cat": -0.2, "dog": 0.0}, "'cat' the probability -0.2"),
        ({"cat": "1", "dog": 0.0}, "'cat' the probability '1'"),
        ({"cat": True, "dog": 0.0}, "'cat' the probability True"),
        ([0.5, 0.5], "no 'classification'"),
    ],
)
def test_a_result_that_does_not_hold_is_refused(found: Any, says: str) -> None:
    with pytest.raises(EimError, match=says):
        protocol.read_result(result(found), ("cat", "dog"))


def test_pixels_are_packed_red_first() -> None:
    picture = np.array([[[1, 2, 3], [255, 255, 255]], [[0, 0, 0], [255, 0, 128]]], np.uint8)
    assert protocol.pack(picture).tolist() == [0x010203, 0xFFFFFF, 0, 0xFF0080]
    assert protocol.pack(np.array([[[7], [255]]], np.uint8)).tolist() == [0x070707, 0xFFFFFF]


def test_a_packed_pixel_survives_float32() -> None:
    picture = np.arange(256 * 4 * 3, dtype=np.uint32).reshape(-1, 4, 3).astype(np.uint8)
    packed = protocol.pack(picture)
    assert (packed.astype(np.float32).astype(np.uint32) == packed).all()


@pytest.mark.parametrize(
    "module", ["apiary.eim.protocol", "apiary.eim.elf", "apiary_edge.eim.client"], ids=lambda m: m
)
def test_numpy_is_not_taken_before_a_picture_comes(module: str) -> None:
    said = f"import sys, {module}\nsys.exit('numpy' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0


def test_words_of_chance_raise_nothing_but_our_error() -> None:
    import random

    chance = random.Random(3)
    good = json.dumps(hello()).encode()
    readers: list[Callable[[Any], Any]] = [
        protocol.read_hello,
        lambda a: protocol.read_result(a, ("cat", "dog")),
        lambda a: protocol.accept(a, 1),
    ]
    values: list[Any] = [None, [], {}, "", -1, 1e400, True, "x" * 50, [[]], {"labels": {}}]
    for _ in range(2000):
        data = bytearray(good)
        data[chance.randrange(len(data))] = chance.randrange(256)
        answer = hello()
        part = chance.choice(["project", "model_parameters"])
        answer[part][chance.choice(list(answer[part]))] = chance.choice(values)
        for read in readers:
            try:
                read(answer)
                for parsed in protocol.Answers().feed(bytes(data) + b"\0"):
                    read(parsed)
            except EimError:
                pass
