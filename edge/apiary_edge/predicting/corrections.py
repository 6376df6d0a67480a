"""A wrong prediction becomes a labelled picture: the one that was predicted on, whatever is live by then."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from apiary.errors import DataError
from apiary_edge.capture.worker import encode
from apiary_edge.samples.model import Added, Duplicate, Incoming, Outdated, check_id
from apiary_edge.web.site import Environ, Problem, Response, as_json, json_body, text

if TYPE_CHECKING:
    from apiary_edge.predicting.live import Shown
    from apiary_edge.samples.store import SampleStore

WHO: Final = "predictions"


@dataclass(frozen=True, slots=True)
class Looked:
    """A picture that a page was given: the file that the store would hold, and what the model can say."""

    data: bytes
    labels: tuple[str, ...]
    at: float


class LookedAt:
    """The pictures that pages were given last, by digest; bounded in bytes, the newest stays. Thread-safe."""

    def __init__(self, quality: int, max_bytes: int):
        self._quality = quality
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Looked] = OrderedDict()
        self._numbers: dict[int, str] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, shown: Shown) -> str:
        """The digest of the frame's picture, which is kept from now on. A frame is encoded once."""
        with self._lock:
            known = self._numbers.get(shown.number)
            if known is not None and known in self._kept:
                self._kept.move_to_end(known)
                return known
            # As capture encodes it: a frame that was captured, too, is the same picture in the store.
            data = encode(shown.frame, self._quality)
            digest = hashlib.sha256(data).hexdigest()
            before = self._kept.pop(digest, None)
            self._bytes += len(data) - (len(before.data) if before else 0)
            self._kept[digest] = Looked(data, tuple(shown.model.labels), shown.at)
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1].data)
            self._numbers = {n: d for n, d in self._numbers.items() if d in self._kept} | {
                shown.number: digest
            }
            return digest

    def get(self, digest: str) -> Looked | None:
        """The picture, while it is kept; asking for one keeps it longer."""
        with self._lock:
            if (found := self._kept.get(digest)) is not None:
                self._kept.move_to_end(digest)
            return found


class Corrections:
    """Puts pictures that were looked at into the store, with the label that their owner gives."""

    def __init__(self, stores: Callable[[], SampleStore], looked: LookedAt, source: str):
        self.looked = looked
        self._stores = stores
        self._source = source

    def correct(self, environ: Environ) -> Response:
        """`{digest, label, was}`: label that picture. Raises Problem, DataError, StoreError.

        `was` is its label in the store as the owner knows it, null for none; another is a question (409).
        """
        body = json_body(environ)
        digest, label = check_id(text(body, "digest")), text(body, "label")
        was = None if body.get("was") is None else text(body, "was")
        looked = self.looked.get(digest)
        if looked is None:
            raise Problem(
                HTTPStatus.GONE,
                "this picture is no longer kept, and was not labelled: hold the next one first",
            )
        if label not in looked.labels:
            raise DataError(f"{label[:80]!r} is none of the model's labels")
        return self._label(looked, label, was)

    def undo(self, environ: Environ) -> Response:
        """`{id, label, before}`: give a picture its label of before, unless somebody gave it another."""
        body = json_body(environ)
        sample, label = check_id(text(body, "id")), text(body, "label")
        before = None if body.get("before") is None else text(body, "before")
        done = self._stores().label_shown({sample: label}, before, WHO)
        return _outdated(done) if isinstance(done, Outdated) else as_json({"id": sample, "label": before})

    def _label(self, looked: Looked, label: str, was: str | None) -> Response:
        store = self._stores()
        outcome = store.add(Incoming(looked.data, self._source, captured_at=looked.at))
        if not isinstance(outcome, Added | Duplicate):
            raise Problem(HTTPStatus.INSUFFICIENT_STORAGE, f"the picture was not taken: {outcome.why}")
        sample, added = outcome.id, isinstance(outcome, Added)
        done = store.label_shown({sample: None if added else was}, label, WHO)
        if isinstance(done, Outdated):
            return _outdated(done)
        before = was if done.changed else label
        return as_json({"id": sample, "label": label, "before": None if added else before, "added": added})


def _outdated(found: Outdated) -> Response:
    if found.gone:
        raise Problem(HTTPStatus.GONE, "this picture was deleted meanwhile")
    label = found.samples[0].label
    has = f"has the label {label!r}" if label is not None else "has no label"
    why = f"this picture {has} in the store by now"
    return as_json({"error": why, "label": label}, HTTPStatus.CONFLICT)
