"""Requests to an `.eim` program and its responses. Pure: bytes and values, no socket, no clock.

Requests are JSON with an integer `id`; the program finds their end by counting braces, so none may stand in
a string. Answers end with a NUL on the socket, with a line end on stdout.
Source: edgeimpulse/example-standalone-inferencing-linux, source/eim.cpp.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apiary.errors import EimError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_REQUEST_BYTES: Final = 10 * 2**20 - 1
"""The program reads a request into a buffer of 10 MiB and ends itself where one is longer."""
MAX_ANSWER_BYTES: Final = 2**20
"""A thousand labels of 64 characters take a tenth of it."""
MAX_PIXELS: Final = 4096 * 4096
RESIZE_MODES: Final = ("none", "squash", "fit-shortest", "fit-longest")
_SHM_NAME: Final = re.compile(r"/?([A-Za-z0-9][A-Za-z0-9._-]{0,200})")


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Where a program takes its features from: float32[elements] at the start of /dev/shm/`name`."""

    name: str
    elements: int


@dataclass(frozen=True, slots=True)
class EimModel:
    """A program's model: a picture of width x height, grey (1) or RGB (3), to labels."""

    project: str
    deploy_version: int
    width: int
    height: int
    channels: int
    resize: str
    labels: tuple[str, ...]
    shared_memory: SharedMemory | None = None

    @property
    def features(self) -> int:
        """Numbers that one classification takes: one for each pixel."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Classified:
    """Probability of each label in the model's order, and how long it took by the program's own clock."""

    probabilities: Mapping[str, float]
    dsp_ms: float
    classification_ms: float

    @property
    def label(self) -> str:
        """The most probable label; the first of equals."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """Of the most probable label."""
        return self.probabilities[self.label]


def hello(number: int) -> bytes:
    """The first request; a program takes it once."""
    return _request({"hello": 1, "id": number})


def classify(features: Sequence[int], number: int) -> bytes:
    """Ask about packed pixels. Raises EimError where the program's buffer would overflow."""
    return _request({"classify": list(features), "id": number})


def classify_shared(elements: int, number: int) -> bytes:
    """Ask about the features that lie in shared memory."""
    return _request({"classify_shm": {"elements": elements}, "id": number})


def _request(value: dict[str, Any]) -> bytes:
    data = json.dumps(value, separators=(",", ":")).encode()
    if len(data) > MAX_REQUEST_BYTES:
        raise EimError(
            f"a request of {len(data)} bytes does not fit the program's buffer of {MAX_REQUEST_BYTES}: "
            "the model's input is too large to be sent without shared memory"
        )
    return data


class Answers:
    """Cuts a socket's bytes into answers; keeps at most `max_bytes` of an unfinished one."""

    def __init__(self, max_bytes: int = MAX_ANSWER_BYTES):
        self._rest = b""
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The answers that these bytes complete. Raises EimError."""
        *whole, self._rest = (self._rest + data).split(b"\0")
        if max(map(len, (*whole, self._rest))) > self._max_bytes:
            raise EimError(f"the program answers with more than {self._max_bytes} bytes")
        return [_object(part) for part in whole]


def accept(answer: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """An answer to request `number` that reports success. Raises EimError with the program's own words."""
    if answer.get("success") is not True:
        raise EimError(f"the program refuses: {str(answer.get('error') or 'it gives no reason')[:300]}")
    if answer.get("id") != number:
        raise EimError(f"the program answers request {answer.get('id')!r}, expected {number}")
    return answer


def read_info(printed: str) -> EimModel:
    """What `--print-info` printed: a banner, then the answer to hello. Raises EimError."""
    start = printed.find("{")
    if start < 0:
        raise EimError(f"--print-info printed no JSON, but {printed[:200]!r}")
    return read_hello(_object(printed[start:].encode()))


def read_hello(answer: Mapping[str, Any]) -> EimModel:
    """The model in an answer to hello. Raises EimError naming the field."""
    project, model = _part(answer, "project"), _part(answer, "model_parameters")
    if model.get("model_type") != "classification":
        raise EimError(f"the program is for {model.get('model_type')!r}, expected 'classification'")
    labels = model.get("labels")
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(x, str) for x in labels):
        raise EimError(f"the program's labels are {str(labels)[:200]}, expected two or more names")
    if len(set(labels)) < len(labels) or model.get("label_count", len(labels)) != len(labels):
        raise EimError(f"the program names {len(labels)} labels and counts {model.get('label_count')}")
    width, height = _whole(model, "image_input_width", 4096), _whole(model, "image_input_height", 4096)
    channels = _whole(model, "image_channel_count", 3)
    if channels == 2:
        raise EimError("the program takes 2 channels, expected 1 (grey) or 3 (RGB)")
    if (count := _whole(model, "input_features_count", MAX_PIXELS)) != width * height:
        raise EimError(f"the program takes {count} features, expected one a pixel of {width}x{height}")
    resize = model.get("image_resize_mode", "squash")
    if resize not in RESIZE_MODES:
        raise EimError(f"the program's resize mode is {resize!r}, expected one of {', '.join(RESIZE_MODES)}")
    version = project.get("deploy_version")
    return EimModel(
        project=str(project.get("name", ""))[:200],
        deploy_version=version if isinstance(version, int) else 0,
        width=width,
        height=height,
        channels=channels,
        resize=resize,
        labels=tuple(labels),
        shared_memory=_shared_memory(answer.get("features_shm"), width * height),
    )


def read_result(answer: Mapping[str, Any], labels: Sequence[str]) -> Classified:
    """Probabilities in an answer to classify. Raises EimError where labels or numbers do not hold."""
    found = _part(_part(answer, "result"), "classification")
    if set(found) != set(labels):
        raise EimError(
            f"the program names {', '.join(sorted(map(str, found)))[:200]}, "
            f"expected {', '.join(sorted(labels))[:200]}"
        )
    for label, value in found.items():
        # A quantised softmax may be a step of 1/256 beyond 1.
        if not _number(value) or not -0.01 <= value <= 1.01:
            raise EimError(f"the program gives {label!r} the probability {value!r}, expected 0 to 1")
    timing = answer.get("timing")
    times = timing if isinstance(timing, Mapping) else {}
    return Classified(
        {label: float(found[label]) for label in labels},
        _milliseconds(times.get("dsp")),
        _milliseconds(times.get("classification")),
    )


def pack(picture: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """uint8[H, W, 3 or 1] as one number a pixel, `r << 16 | g << 8 | b`; grey counts as r = g = b."""
    import numpy as np

    wide = np.broadcast_to(picture, (*picture.shape[:2], 3)).astype(np.uint32)
    red, green, blue = wide[..., 0], wide[..., 1], wide[..., 2]
    packed: NDArray[np.uint32] = (red << np.uint32(16)) | (green << np.uint32(8)) | blue
    return packed.reshape(-1)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise EimError(f"the program answers {data[:120]!r}, expected JSON") from None
    if not isinstance(value, dict):
        raise EimError(f"the program answers {data[:120]!r}, expected a JSON object")
    return value


def _part(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = value.get(key)
    if not isinstance(part, Mapping):
        raise EimError(f"the program's answer has no {key!r}: {str(dict(value))[:200]}")
    return part


def _whole(model: Mapping[str, Any], key: str, most: int) -> int:
    value = model.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise EimError(f"the program's {key} is {value!r}, expected 1 to {most}: is it for images?")
    return value


def _shared_memory(block: Any, features: int) -> SharedMemory | None:
    """The offer, where it is one that we can use; otherwise features are sent in the request."""
    if not isinstance(block, Mapping) or block.get("type") != "float32":
        return None
    name, elements = _SHM_NAME.fullmatch(str(block.get("name"))), block.get("elements")
    if name is None or not isinstance(elements, int) or not features <= elements <= MAX_PIXELS:
        return None
    return SharedMemory(name[1], elements)


def _milliseconds(value: Any) -> float:
    return max(0.0, float(value)) if _number(value) else 0.0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
