"""What an access list lets a user read of a subscription."""

from __future__ import annotations

import pytest

from apiary.identity.access import AccessList, Reach
from apiary.identity.rights import access_list

ACL = AccessList(access_list(operators=["ann"], viewers=["vic"], shut_out=["gone"]))
CASES = [
    ("pi-1", "apiary/default/round/current", Reach.ALL),
    ("pi-1", "apiary/default/node/pi-1/grant", Reach.ALL),
    ("pi-1", "apiary-blob/default/down/abc/+", Reach.ALL),
    ("pi-1", "$share/g/apiary/default/round/current", Reach.ALL),
    ("pi-1", "apiary/default/node/+/grant", Reach.SOME),
    ("pi-1", "#", Reach.SOME),
    ("pi-1", "apiary-blob/default/#", Reach.SOME),
    ("pi-1", "apiary/default/node/pi-2/grant", Reach.NONE),
    ("pi-1", "apiary-blob/default/up/pi-2/abc/0", Reach.NONE),
    ("pi-1", "apiary-blob/default/up/#", Reach.NONE),
    ("pi-1", "$SYS/#", Reach.NONE),
    ("pi-1", "$CONTROL/dynamic-security/v1/response", Reach.NONE),
    ("coordinator", "apiary-blob/default/up/+/+/+", Reach.ALL),
    ("coordinator", "$SYS/broker/publish/messages/dropped", Reach.ALL),
    ("vic", "apiary/default/round/current", Reach.ALL),
    ("vic", "apiary/#", Reach.SOME),
    # The patterns would give it to everyone; a `deny` takes it back.
    ("vic", "apiary-blob/default/down/abc/+", Reach.NONE),
    ("vic", "apiary-blob/#", Reach.NONE),
    ("ann", "apiary/default/operator/ann/reply", Reach.ALL),
    ("ann", "apiary/default/operator/bob/reply", Reach.NONE),
    ("gone", "apiary/default/round/current", Reach.NONE),
]


@pytest.mark.parametrize(("user", "subscription", "reach"), CASES)
def test_reach(user: str, subscription: str, reach: Reach) -> None:
    assert ACL.reach(user, subscription) is reach


def test_a_level_more_or_less_is_another_topic() -> None:
    acl = AccessList("pattern read a/+\npattern read b/#\ntopic read c")
    assert acl.reach("x", "a/b") is Reach.ALL
    assert acl.reach("x", "a") is Reach.NONE
    assert acl.reach("x", "a/b/c") is Reach.NONE
    assert acl.reach("x", "a/#") is Reach.SOME
    assert acl.reach("x", "b") is Reach.ALL
    assert acl.reach("x", "b/c/d") is Reach.ALL
    assert acl.reach("x", "c") is Reach.NONE  # for who has no name


def test_writing_is_no_reading() -> None:
    assert AccessList("user a\ntopic write t").reach("a", "t") is Reach.NONE
    assert AccessList("user a\ntopic t").reach("a", "t") is Reach.ALL
    assert AccessList("user a\ntopic t").reach("b", "t") is Reach.NONE
