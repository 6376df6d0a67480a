"""What is put in place of a mend, in the processes of a row that must not hold then.

`site/sitecustomize.py` calls one of these at the start of a process; modules are imported as they are needed.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable
from typing import Any, Final

_NOT_SILENT: Final = 1e9
_SLOW_S: Final = 0.5
Mend = Callable[[], None]


def _named(where: str) -> Any:
    """`package.module` or `package.module:Class`."""
    module, _, name = where.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def _put(where: str, name: str, value: Any) -> Mend:
    def put() -> None:
        place = _named(where)
        assert hasattr(place, name), f"{where} has no {name}: the mend is elsewhere now"
        setattr(place, name, value)

    return put


def _all(*puts: Mend) -> Mend:
    def put() -> None:
        for one in puts:
            one()

    return put


def _wrapped(where: str, name: str, wrap: Callable[..., Any]) -> Mend:
    """`wrap` is called with what was there, then with the arguments."""

    def put() -> None:
        place = _named(where)
        before = getattr(place, name)
        setattr(place, name, lambda *a, **k: wrap(before, *a, **k))

    return put


# -- as it was before


def _any_synced_row(on_synced: Any, self: Any, value: object) -> None:
    """A row of a node that is counted already is journaled once more."""
    round_ = self._runner.round
    if again := [row for row in self._syncing if row.node in round_.accepted]:
        self._journal.accept(round_.run, round_.number, again)
    on_synced(self, value)


def _all_rows_or_none(self: Any, run: str, number: int, rows: Any) -> list[Any]:
    from dataclasses import astuple

    insert = "INSERT INTO accepted VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    self.commit(*((insert, (run, number, *astuple(row)[:-1], row.offer.model_dump_json())) for row in rows))
    return list(rows)


def _forget_what_is_over(self: Any, now: float) -> None:
    self.issued = [i for i in self.issued if i.not_after > now - 365 * 86_400]


def _any_text(body: dict[str, Any], key: str, most: int) -> str:
    value = body.get(key)
    assert isinstance(value, str) and 0 < len(value) <= most
    return value


def _mark_by_name(self: Any, signer: str, topic: str, issued: int, **_: object) -> int:
    query = "SELECT issued FROM mark WHERE signer = ? AND topic = ?"
    row = self._db.execute(query, (signer, topic)).fetchone()
    newest = int(row[0]) if row else 0
    if issued > newest:
        self._write_mark(signer, topic, issued, None)
    return newest


def _bad_for_anybody(rollout: Any) -> str | None:
    """Whoever reports counts, with as many pictures as it says."""
    reports = [r for n in rollout.having("healthy") if (r := rollout.about(n)) is not None and r.pictures]
    pictures = sum(r.pictures for r in reports)
    lost = sum(((r.accuracy_before or 0.0) - (r.accuracy or 0.0)) * r.pictures for r in reports)
    return "worse" if pictures and lost / pictures > rollout.policy.max_accuracy_drop else None


def _token_among_the_words(print_result: Any, args: Any, result: Any, *lines: str) -> None:
    if "token" in result:
        lines = (*lines[:-1], f"{lines[-1]} --token {result['token']}")
    print_result(args, result, *lines)


def _slowly(screen: Any, *given: Any) -> Any:
    time.sleep(_SLOW_S)
    return screen(*given)


def _first_come(party: str, taken: Any, limits: Any) -> Any:
    from apiary.http.places import Room

    return Room(free=len(taken) < limits.max_connections)


def _whoever_it_is(self: Any, environ: Any) -> Any:
    from apiary.http.connection import BodyAllowance

    return BodyAllowance(self._max_body_bytes, known=True)


def _whoever_signed(self: Any, at: Any, topic: str, payload: bytes) -> bytes:
    return re.sub(rb',"issued":[0-9]+,"cert":"[^"]*","sig":"[^"]*"}\Z', b"}", payload)


def _no_kernel() -> Any:
    from apiary.process.confinement import Kernel

    return Kernel(0, "")


_ROUND: Final = "apiary_coordinator.round"
_NOTHING_ABSORBED: Final = _put("apiary_cli.pki.index:Index", "absorb", lambda *_: 0)
MENDS: Final[dict[str, Mend]] = {
    # A complete update is in nobody's hand, and a row that the journal refuses holds up the others.
    "in-hand": _all(
        _put(f"{_ROUND}.collector:Collector", "_in_hand", lambda *_: False),
        _wrapped(f"{_ROUND}.collector:Collector", "_screen", _slowly),
        _wrapped(f"{_ROUND}.collector:Collector", "_on_synced", _any_synced_row),
        _put("apiary_coordinator.journal:Journal", "accept", _all_rows_or_none),
    ),
    # The cap on weights is what a claim may be at all.
    "weights": _put(f"{_ROUND}.runner", "weight_cap", lambda samples, goal, ratio: 2**24),
    # The bound on norms is the setting's alone.
    "norms": _put(f"{_ROUND}.runner", "norm_bound", lambda last, model, clip, most: most),
    # Nothing is left out of a mean.
    "leave-out": _put(f"{_ROUND}.aggregation", "without_harmful", lambda pulls, found, *_, **__: ([], found)),
    # An update's numbers are not looked at.
    "numbers": _put("apiary_coordinator.updates.screening", "_screen_numbers", lambda *_: None),
    # An update may have the bytes that the setting allows, whatever the model.
    "bytes": _put(f"{_ROUND}.runner", "_most_bytes", lambda bounds, plan, server: bounds.max_bytes),
    # No node is ever silent.
    "silence": _put("apiary_coordinator.fleet.roster", "SILENT_AFTER", _NOT_SILENT),
    # Whoever reports on a release decides about it.
    "members": _put("apiary_coordinator.releases.rollout", "_too_bad", _bad_for_anybody),
    # Marks are kept by name, and a number from the next year is one.
    "ahead": _all(
        _wrapped(
            "apiary.identity.signing:Verifier",
            "__init__",
            lambda init, *a, **k: init(*a, **{**k, "max_ahead": None}),
        ),
        _put("apiary.identity.replay_guard:DiskMarks", "admit", _mark_by_name),
    ),
    # Requests are known as long as the process lives.
    "requests": _wrapped(
        "apiary_coordinator.operators.requests:OperatorRequests",
        "__init__",
        lambda init, self, outlet, clock, journal=None: init(self, outlet, clock, None),
    ),
    # Any clock is believed, and what is long over is forgotten, revoked or not.
    "clock": _all(
        _put("apiary_cli.pki.index:Index", "believes", lambda *_: True),
        _put("apiary_cli.pki.index:Index", "forget", _forget_what_is_over),
        _NOTHING_ABSORBED,
    ),
    # A list names what the index does.
    "lists": _NOTHING_ABSORBED,
    # Whether a certificate may be renewed is looked at before the lock is taken.
    "lock": _wrapped(
        "apiary_cli.pki.folder:CaFolder",
        "issue",
        lambda issue, *a, **k: issue(*a, **{**k, "permit": _anybody}),
    ),
    # A text of a request may hold half a character.
    "text": _put("apiary_cli.pki.enrolment", "_text", _any_text),
    # The command that `apiary pki token` prints has the token in it.
    "token": _wrapped("apiary_cli.pki.authority", "print_result", _token_among_the_words),
    # What was retained stays when a node is revoked.
    "clear": _put("apiary_cli.pki.broker_files", "_clear", lambda *_: None),
    # What controls a terminal reaches it.
    "printable": _put("apiary.printable", "_CONTROLS", re.compile("(?!)")),
    # Nobody gives way: the first that come keep their places.
    "places": _put("apiary.http.server", "room_for", _first_come),
    # Everybody's body is read, and any number at once.
    "bodies": _all(
        _put("apiary_edge.web.site:Site", "allowance", _whoever_it_is),
        _put("apiary.http.server:HttpServer", "reserve", lambda *_: True),
    ),
    # The kernel offers neither Landlock nor seccomp.
    "confinement": _put("apiary.process.confinement", "this_kernel", _no_kernel),
    # Nobody's signature is verified, and everybody may write everything (`Ground.take_out`).
    "rights": _put("apiary.identity.credentials:SigningGate", "open", _whoever_signed),
    # Of the setting up, `rows/stolen_keys.py`: two federations have one authority.
    "own-authority": lambda: None,
}
"""By the name in `attack(..., mend=)`."""


def _anybody(index: object, now: float) -> None:
    """A permit."""
