"""Loud the first time, quiet then, and bounded by subject: one flood does not hide another complaint."""

from __future__ import annotations

import logging

import pytest

from apiary.complaints import AGAIN_S, MAX_SAID, MAX_TROUBLES, Complaints
from apiary.errors import MessageError, SignatureRefused, StoreError

LOG = logging.getLogger("apiary.test_complaints")


def test_once_a_peer_and_kind(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOG)
    with caplog.at_level(logging.DEBUG, LOG.name):
        for who in ("pi-1", "pi-2", "pi-1"):
            complaints.about(who, MessageError(f"{who} says nonsense"))
        complaints.about("pi-1", SignatureRefused("pi-1 is forged"))
    levels = [(r.levelname, r.message) for r in caplog.records]
    assert levels == [
        ("WARNING", "pi-1 says nonsense"),
        ("WARNING", "pi-2 says nonsense"),
        ("DEBUG", "pi-1 says nonsense"),
        ("WARNING", "pi-1 is forged"),
    ]


def test_a_flood_of_one_kind_is_cut_and_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOG)
    for i in range(MAX_SAID + 500):
        complaints.once("another version", f"pi-{i}", f"pi-{i} runs version 0")
    assert len(caplog.records) == MAX_SAID + 1
    assert caplog.messages[-1].startswith("another version: logged for 2000 so far; further ones only with")
    complaints.about("apiary/F/node/pi-1/offer", SignatureRefused("pi-1 is forged"))
    assert caplog.messages[-1] == "pi-1 is forged"


def test_trouble_that_comes_back_is_said_again_and_another_at_once(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOG)
    with caplog.at_level(logging.DEBUG, LOG.name):
        for now, text in ((0.0, "full"), (1.0, "full"), (1.0, "worn"), (AGAIN_S, "full")):
            complaints.trouble(StoreError(text), now)
    levels = [(r.levelname, r.message) for r in caplog.records]
    assert levels == [("ERROR", "full"), ("DEBUG", "full"), ("ERROR", "worn"), ("ERROR", "full")]


def test_ever_new_trouble_takes_no_more_memory() -> None:
    complaints = Complaints(LOG)
    for i in range(5 * MAX_TROUBLES):
        complaints.trouble(StoreError(f"cannot write {i}"), 0.0)
    assert len(complaints._told) <= MAX_TROUBLES
