"""What an access list lets a user read of a subscription."""

from __future__ import annotations

import pytest

from apiary.identity.access import AccessList, Reach
from apiary.identity.rights import access_list
from apiary.wire.topics import Topics

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
    ("pi-1", "apiary-blob/default/up/pi-1", Reach.NONE),
    # Another federation on the same broker.
    ("pi-1", "apiary/orchard/node/pi-1/grant", Reach.NONE),
    ("coordinator", "apiary/orchard/node/pi-1/offer", Reach.NONE),
    ("coordinator", "apiary-blob/default/up/+", Reach.ALL),
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


def writes(acl: str) -> list[str]:
    return [line.split(" ", 2)[2] for line in acl.splitlines() if line.startswith("pattern write")]


def test_what_a_node_can_leave_on_the_broker_is_a_handful_of_topics() -> None:
    """A retained message stays after its sender: whoever may write to `+` can leave any number."""
    for line in writes(access_list()):
        assert "+" not in line and "#" not in line, line
    assert len(writes(access_list())) <= 12
    old = writes(access_list(old_chunk_topics=True))
    assert set(old) - set(writes(access_list())) == {"apiary-blob/default/up/%u/+/+"}


def test_several_federations_each_have_their_lines() -> None:
    made = access_list(places=[Topics("one"), Topics("two")])
    assert "pattern write apiary/one/node/%u/offer" in made
    assert "pattern write apiary-blob/two/up/%u" in made
    assert "default" not in made
