"""The labelling page as a WSGI application: what it shows, and what each change may hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from apiary.errors import DataError, StoreError
from apiary.learn.folder import labels as naming
from apiary_edge.labelling.keys import keys, likened
from apiary_edge.labelling.thumbnails import SIDES, Thumbnails
from apiary_edge.samples.model import (
    Filter,
    Order,
    Outdated,
    Sample,
    SampleId,
    SampleState,
    check_id,
    check_label,
)
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import OwnerGate
from apiary_edge.web.site import (
    Environ,
    Problem,
    Response,
    Site,
    as_json,
    json_body,
    not_found,
    text,
)

MAX_IDS: Final = 500
"""In one request; 500 ids of 67 bytes fit the body."""
WHO: Final = "page"
ENOUGH: Final = 30
"""Trained pictures that a label should have: with a frozen base, tens a class is where curves flatten."""
BALANCE: Final = 3
"""A label should have at least this part of the largest one's, or the model learns to say the largest."""
RULE: Final = (
    f"A label should have {ENOUGH} pictures to train on, and at least a third as many as the largest label. "
    "Held-out pictures test the model and do not count. It is a rule of thumb: more variety helps more than "
    "more of the same."
)


def site(pages: Labelling, gate: OwnerGate, node: str = "") -> Site:
    """The WSGI application; its title names the `node`."""
    return Site("labelling page", gate, pages, package="apiary_edge.labelling", node=node)


@dataclass(slots=True)
class Labelling:
    """What the owner sees and changes; `stores` gives the calling thread's store.

    `labels` are offered whether or not a picture has them, and where there are none, what `modelled` names:
    the labels of the federation's model. With `may_add` false there are no others.
    """

    stores: Callable[[], SampleStore]
    held_out_share: float
    labels: tuple[str, ...] = ()
    may_add: bool = True
    modelled: Callable[[], tuple[str, ...]] = tuple
    thumbnails: Thumbnails = field(default_factory=Thumbnails)

    # -- looking ---------------------------------------------------------------------------------------

    def get(self, path: str, query: Mapping[str, str]) -> Response:
        """The counts, a part of the samples, a picture."""
        match path.split("/"):
            case ["", "api", "state"]:
                return as_json(self._state())
            case ["", "api", "page"]:
                return as_json(self._page(query))
            case ["", "picture", size, sample] if size in SIDES:
                return self._picture(size, check_id(sample))
            case _:
                raise not_found()

    def _state(self) -> dict[str, Any]:
        counts = self.stores().counts()
        labels = self._known(counts.labelled, counts.suggested)
        numbers = self._numbers(labels)
        step = self.stores().latest_step()
        return {
            "labels": list(numbers),
            "keys": self._keys(numbers),
            "undo": None if step is None else {"step": step.number, "who": step.who, "count": step.changed},
            "may_add": self.may_add,
            "labelled": dict(counts.labelled),
            "held_out": sum(counts.held_out.values()),
            "suggested": sum(counts.suggested.values()),
            "unlabelled": counts.unlabelled,
            "total": counts.total,
            "needed": needed(counts.trainable, labels, self.held_out_share),
            "rule": RULE,
        }

    def _known(self, *more: Iterable[str]) -> list[str]:
        found = list(self.labels or self.modelled())
        if self.may_add or not found:
            found += sorted({label for one in more for label in one} - set(found))
        return found

    def _numbers(self, labels: list[str]) -> dict[str, int]:
        try:
            return self.stores().number_labels(labels)
        except StoreError:  # a full disk: the page still shows what is there, with the keys that it had
            known = self.stores().numbers()
            fresh = [label for label in labels if label not in known]
            known |= {label: i for i, label in enumerate(fresh, max(known.values(), default=0) + 1)}
            return {label: known[label] for label in sorted(labels, key=lambda one: known[one])}

    def _keys(self, numbers: Mapping[str, int]) -> dict[str, str]:
        """Of the labels that are shown; one that is not for a while keeps its key from others."""
        return {
            label: key
            for label, key in keys({**self.stores().numbers(), **numbers}).items()
            if label in numbers
        }

    def _page(self, query: Mapping[str, str]) -> dict[str, Any]:
        try:
            state = query.get("state", "todo")
            which = Filter(
                state=None if state in ("todo", "all") else SampleState(state),
                labelled=False if state == "todo" else None,
                label=query.get("label") or None,
            )
            order = Order(query.get("order", "uncertain"))
            limit, offset = int(query.get("limit", "50")), int(query.get("offset", "0"))
        except ValueError as e:
            raise Problem(HTTPStatus.BAD_REQUEST, f"not a filter: {str(e)[:100]}") from None
        page = self.stores().page(which, order, limit=limit, offset=offset)
        return {"samples": [_sample(s) for s in page.samples], "total": page.total, "offset": page.offset}

    def _picture(self, size: str, sample: SampleId) -> Response:
        path = self.stores().path(sample)
        if path is None:
            raise Problem(HTTPStatus.NOT_FOUND, "there is no such picture")
        data = self.thumbnails.get(sample, path, size)
        return Response(HTTPStatus.OK, data, "image/jpeg", (("Cache-Control", "private, max-age=600"),))

    def _label(self, store: SampleStore, body: Mapping[str, Any]) -> Response:
        was = _was(body)
        label = None
        if body.get("label") is not None:
            label = check_label(naming.readable(text(body, "label")))
            known = self._known(store.labels())
            if not self.may_add and label not in known:
                raise DataError(f"{label!r} is none of this node's labels: {', '.join(self.labels)}")
            if body.get("new") is not True and (other := likened(label, known)) is not None:
                why = f"{other!r} or {label!r}? They differ in case, blanks or form only"
                return as_json({"error": why, "alike": other, "label": label}, HTTPStatus.CONFLICT)
        done = store.label_shown(was, label, WHO)
        if isinstance(done, Outdated):
            return _outdated(done)
        return as_json({"changed": done.changed, "step": done.step, "label": label})

    def _delete(self, store: SampleStore, body: Mapping[str, Any]) -> Response:
        was = _was(body)
        if body.get("confirm") != len(was):
            raise DataError("confirm must be the number of pictures: deleting cannot be undone")
        done = store.delete_shown(was)
        if isinstance(done, Outdated):
            return _outdated(done)
        for sample in was:
            self.thumbnails.forget(sample)
        return as_json({"deleted": done})

    # -- changing --------------------------------------------------------------------------------------

    def post(self, path: str, environ: Environ) -> Response:
        """A labelling, its undoing, a deletion."""
        body = json_body(environ)
        store = self.stores()
        match path:
            case "/api/label":
                return self._label(store, body)
            case "/api/undo":
                return _undo(store, body)
            case "/api/delete":
                return self._delete(store, body)
            case _:
                raise not_found()


def _undo(store: SampleStore, body: Mapping[str, Any]) -> Response:
    step = body.get("step")
    if not isinstance(step, int):
        raise DataError("step: expected the number of the labelling to undo")
    latest = store.latest_step()
    if latest is None:
        return as_json({"samples": [], "who": None})
    undone = store.undo(step)
    if undone is None:
        why = "this is not the latest labelling: it was undone already, or another came after it"
        return as_json({"error": why}, HTTPStatus.CONFLICT)
    found = (store.get(i) for i in undone.ids[:MAX_IDS])
    return as_json({"samples": [_sample(s) for s in found if s is not None], "who": undone.who})


def _outdated(found: Outdated) -> Response:
    gone = f"{naming.pictures(len(found.gone))} gone: deleted meanwhile"
    changed = f"{naming.pictures(len(found.samples))} labelled by somebody else meanwhile"
    parts = [text for text, of in ((changed, found.samples), (gone, found.gone)) if of]
    answer = {
        "error": f"{' and '.join(parts)}; nothing was changed",
        "samples": [_sample(s) for s in found.samples],
        "gone": list(found.gone),
    }
    return as_json(answer, HTTPStatus.CONFLICT if found.samples else HTTPStatus.GONE)


def needed(trainable: Mapping[str, int], labels: Sequence[str], held_out_share: float) -> dict[str, int]:
    """More pictures to label, by label; those that will be held out are added to what is missing."""
    aim = max(ENOUGH, math.ceil(max(trainable.values(), default=0) / BALANCE))
    kept = max(0.1, 1 - held_out_share)
    return {label: math.ceil(max(0, aim - trainable.get(label, 0)) / kept) for label in labels}


def _sample(s: Sample) -> dict[str, Any]:
    suggestion = (
        {"label": s.suggestion.label, "probability": s.suggestion.probability} if s.suggestion else None
    )
    return {
        "id": s.id,
        "label": s.label,
        "suggestion": suggestion,
        "held_out": s.held_out,
        "captured_at": s.captured_at,
        "source": s.source,
        "labelled_by": s.labelled_by,
        "width": s.width,
        "height": s.height,
    }


def _was(body: Mapping[str, Any]) -> dict[SampleId, str | None]:
    """The samples of a request with the labels that they were shown with: a list, or one for all."""
    ids = _ids(body)
    was = body.get("was", 0)
    labels = was if isinstance(was, list) else [was] * len(ids)
    if len(labels) != len(ids) or not all(one is None or isinstance(one, str) for one in labels):
        raise DataError("was: expected the label that each picture was shown with, null for none")
    return dict(zip(ids, labels, strict=True))


def _ids(body: Mapping[str, Any]) -> list[SampleId]:
    ids = body.get("ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_IDS or not all(isinstance(i, str) for i in ids):
        raise DataError(f"ids: expected a list of 1 to {MAX_IDS} sample ids")
    return list(dict.fromkeys(check_id(i) for i in ids))
