"""Topics are built and read back; what does not fit is refused by name."""

from __future__ import annotations

import pytest

from apiary.bus.bus import matches
from apiary.errors import TopicError
from apiary.wire import Digest, NodeId
from apiary.wire.topics import Topic, TopicKind, Topics, check_name

TOPICS = Topics("farm")
NODE, DIGEST = NodeId("pi-07"), Digest("0123456789abcdef" * 4)


def build(kind: TopicKind) -> str:
    return TOPICS.build(kind, node=NODE, digest=DIGEST, index=12, metric="accuracy")


@pytest.mark.parametrize("kind", TopicKind)
def test_what_is_built_is_read_back(kind: TopicKind) -> None:
    got = TOPICS.parse(build(kind))
    assert got == Topic(
        kind,
        node=NODE if "{n}" in kind.pattern else None,
        digest=DIGEST if "{d}" in kind.pattern else None,
        index=12 if "{i}" in kind.pattern else None,
        metric="accuracy" if "{m}" in kind.pattern else None,
    )


@pytest.mark.parametrize("kind", TopicKind)
def test_pattern_of_a_kind_covers_its_topics_and_no_other_kinds(kind: TopicKind) -> None:
    pattern = TOPICS.pattern(kind)
    assert [k for k in TopicKind if matches(pattern, build(k))] == [kind]


def test_pattern_narrows_to_a_node_or_a_digest() -> None:
    assert TOPICS.pattern(TopicKind.NODE_GRANT, node=NODE) == "apiary/farm/node/pi-07/grant"
    assert TOPICS.pattern(TopicKind.CHUNK_UP, digest=DIGEST) == f"apiary-blob/farm/up/+/{DIGEST}/+"


def test_weights_are_outside_of_what_people_watch() -> None:
    watched = [k for k in TopicKind if matches("apiary/#", build(k))]
    assert (
        set(TopicKind) - set(watched)
        == {TopicKind.CHUNK_DOWN, TopicKind.CHUNK_UP, TopicKind.UPLOAD}
        == {k for k in TopicKind if k.is_blob}
    )


def test_only_progress_may_be_lost_on_the_way() -> None:
    assert [k for k in TopicKind if k.qos != 1] == [TopicKind.NODE_PROGRESS]


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "apiary",
        "apiary/farm",
        "apiary/farm/",
        "apiary/other/round/current",
        "apiary/farm/round/current/",
        "apiary/farm/round/currents",
        "apiary/farm/node//status",
        "apiary/farm/node/-x/status",
        "apiary/farm/node/a b/status",
        "apiary/farm/node/" + "a" * 65 + "/status",
        "apiary/farm/node/pi\n/status",
        f"apiary-blob/farm/down/{DIGEST}/01",
        f"apiary-blob/farm/down/{DIGEST}/-1",
        f"apiary-blob/farm/down/{DIGEST}/12345678",
        f"apiary-blob/farm/down/{DIGEST.upper()}/1",
        f"apiary-blob/farm/down/{DIGEST[:-1]}/1",
        "x" * 100_000,
    ],
)
def test_foreign_topic_is_refused(topic: str) -> None:
    with pytest.raises(TopicError, match="is not a topic of the federation 'farm'") as caught:
        TOPICS.parse(topic)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("kind", "parts", "message"),
    [
        (TopicKind.NODE_STATUS, {}, r"None cannot stand for \{n\} in the topic 'node/\{n\}/status'"),
        (TopicKind.NODE_STATUS, {"node": "a/b"}, "'a/b' cannot stand"),
        (TopicKind.NODE_STATUS, {"node": "+"}, r"'\+' cannot stand"),
        (TopicKind.CHUNK_DOWN, {"digest": DIGEST, "index": -1}, "'-1' cannot stand"),
        (TopicKind.CHUNK_DOWN, {"digest": "abc", "index": 1}, "'abc' cannot stand"),
    ],
)
def test_unfit_part_is_refused_when_building(kind: TopicKind, parts: dict[str, object], message: str) -> None:
    with pytest.raises(TopicError, match=message):
        TOPICS.build(kind, **parts)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "x" * 64])
def test_names_that_may_stand(name: str) -> None:
    assert check_name(name, "node") == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a+", "#", "ä", "a\n", "x" * 65, "$SYS"])
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(TopicError, match=r"node .* cannot stand in a topic: use 1 to 64 letters"):
        check_name(name, "node")
