"""The predictions page and its API, whose paths and fields are those of Edge Impulse's runner."""

import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from apiary.errors import ModelError
from apiary_edge.predicting import http_upload
from apiary_edge.predicting.camera_view import CameraState
from apiary_edge.predicting.corrections import Corrections
from apiary_edge.predicting.live import NO_MODEL, LivePredictor, Shown
from apiary_edge.predicting.model_files import ModelFile
from apiary_edge.web.gate import OwnerGate
from apiary_edge.web.site import Environ, Problem, Response, Site, as_json, body_of, not_found

MAX_BARS: Final = 10
"""Labels with their probabilities that the page is sent of each frame."""
KEYED: Final = frozenset({"/api/info", "/api/image", "/api/now"})


def site(
    live: LivePredictor,
    gate: OwnerGate,
    corrections: Corrections,
    *,
    node: str,
    federation: str,
    camera: Callable[[], CameraState],
) -> Site:
    """The WSGI application. `camera` is where frames come from, or why none come."""
    pages = Predictions(live, corrections, node, federation, camera)
    return Site(
        "predictions page",
        gate,
        pages,
        package="apiary_edge.predicting",
        keyed=KEYED,
        max_body_bytes=http_upload.MAX_BYTES,
        node=node,
    )


class Predictions:
    """What the page asks for, again and again: each answer is small, and made once for all who look."""

    def __init__(
        self,
        live: LivePredictor,
        corrections: Corrections,
        node: str,
        federation: str,
        camera: Callable[[], CameraState],
    ):
        self._live = live
        self._corrections = corrections
        self._node = node
        self._federation = federation
        self._camera = camera
        self._posting = threading.Lock()

    def get(self, path: str, query: Mapping[str, str]) -> Response:
        """The model, the newest prediction, its frame."""
        match path.split("/"):
            case ["", "api", "info"]:
                return as_json(self._info())
            case ["", "api", "now"]:
                return as_json(self._now(look="look" in query))
            case ["", "frame", number] if number.isascii() and number.isdigit() and len(number) < 16:
                shown = self._live.shown(int(number))
                if shown is None:
                    raise Problem(HTTPStatus.NOT_FOUND, "this frame is no longer kept")
                return Response(HTTPStatus.OK, shown.jpeg(), "image/jpeg")
            case _:
                raise not_found()

    def post(self, path: str, environ: Environ) -> Response:
        """A picture to look at, a correction, its undoing."""
        match path:
            case "/api/image":
                return self._look_at(environ)
            case "/api/correct":
                return self._corrections.correct(environ)
            case "/api/undo":
                return self._corrections.undo(environ)
            case _:
                raise not_found()

    def _look_at(self, environ: Environ) -> Response:
        # One at a time: a large picture takes its memory while it is decoded.
        with self._posting:
            data = http_upload.picture_of(
                body_of(environ, http_upload.MAX_BYTES), environ.get("CONTENT_TYPE", "")
            )
            width, height = http_upload.size_of(data)
            answered, found = self._live.classify(
                lambda model: http_upload.frame_of(data, model.input, whole=not model.squashes)
            )
        side = self._live.input
        label = self._live.label_of(answered)
        return as_json(
            {
                "result": {
                    "classification": {k: round(p, 6) for k, p in answered.probabilities.items()},
                    "resizeMode": "squash",
                    "resized": {
                        "originalWidth": width,
                        "originalHeight": height,
                        "newWidth": side.width if side else 0,
                        "newHeight": side.height if side else 0,
                    },
                },
                "timing": _timing(answered.preprocess_ms, answered.inference_ms),
                "label": label,
                "model": _model(found),
            }
        )

    def _now(self, *, look: bool) -> dict[str, Any]:
        """With `look` the frame will be shown: it gets a digest, by which it may be corrected for a while."""
        shown, found = self._live.newest, self._live.model
        camera = self._camera()
        digest = self._corrections.looked.keep(shown) if look and shown is not None else None
        return {
            "node": self._node,
            "federation": self._federation,
            "camera": {"text": camera.text, "todo": camera.todo, "works": camera.works},
            "model": _model(found) if found is not None else None,
            "labels": len(found.labels) if found is not None else 0,
            "trouble": self._live.trouble,
            "shown": _shown(shown, self._live.age_s(shown), digest) if shown is not None else None,
        }

    def _info(self) -> dict[str, Any]:
        found, side = self._live.model, self._live.input
        if found is None or side is None:
            raise ModelError(self._live.trouble or NO_MODEL)
        return {
            "project": {
                "id": 0,
                "owner": self._federation,
                "name": found.name,
                "deploy_version": 1,
            },
            "modelParameters": {
                "model_type": "classification",
                "sensor": 3,
                "sensorType": "camera",
                "image_input_width": side.width,
                "image_input_height": side.height,
                "image_input_frames": 1,
                "image_channel_count": side.channels,
                "image_resize_mode": "squash",
                "input_features_count": side.width * side.height,
                "label_count": len(found.labels),
                "labels": list(found.labels),
                "has_anomaly": 0,
                "thresholds": [],
            },
            "node": self._node,
            "model": _model(found),
        }


def _model(found: ModelFile) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "digest": found.digest,
        "accuracy": found.accuracy,
        "tested_on": found.tested_on,
        "personal": found.personal,
    }


def _shown(shown: Shown, age_s: float, digest: str | None) -> dict[str, Any]:
    answered = shown.answered
    return {
        "digest": digest,
        "number": shown.number,
        "at": shown.at,
        "age_s": round(age_s, 1),
        "label": shown.label,
        "bars": [[label, round(p, 4)] for label, p in answered.top(MAX_BARS)],
        "timing": _timing(answered.preprocess_ms, answered.inference_ms),
    }


def _timing(preprocess_ms: float, inference_ms: float) -> dict[str, float]:
    """By the runner's names: `dsp` is what comes before the model."""
    return {"dsp": round(preprocess_ms, 3), "classification": round(inference_ms, 3), "anomaly": 0}
