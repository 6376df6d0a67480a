"""Topics are built and read back; what does not fit is refused by name."""

from __future__ import annotations

import pytest

from apiary.bus.patterns import matches
from apiary.errors import TopicError
from apiary.wire import Digest, NodeId
from apiary.wire.topics import Kind, Topic, Topics, check_name

TOPICS = Topics("farm")
NODE, DIGEST = NodeId("pi-07"), Digest("0123456789abcdef" * 4)


def build(kind: Kind) -> str:
    return TOPICS.build(kind, node=NODE, digest=DIGEST, index=12, metric="accuracy")


@pytest.mark.parametrize("kind", Kind)
def test_what_is_built_is_read_back(kind: Kind) -> None:
    got = TOPICS.parse(build(kind))
    assert got == Topic(
        kind,
        node=NODE if "{n}" in kind.pattern else None,
        digest=DIGEST if "{d}" in kind.pattern else None,
        index=12 if "{i}" in kind.pattern else None,
        metric="accuracy" if "{m}" in kind.pattern else None,
    )


@pytest.mark.parametrize("kind", Kind)
def test_pattern_of_a_kind_covers_its_topics_and_no_other_kinds(kind: Kind) -> None:
    pattern = TOPICS.pattern(kind)
    assert [k for k in Kind if matches(pattern, build(k))] == [kind]


def test_pattern_narrows_to_a_node_or_a_digest() -> None:
    assert TOPICS.pattern(Kind.NODE_GRANT, node=NODE) == "apiary/farm/node/pi-07/grant"
    assert TOPICS.pattern(Kind.CHUNK_UP, digest=DIGEST) == f"apiary-blob/farm/up/+/{DIGEST}/+"


def test_weights_are_outside_of_what_people_watch() -> None:
    watched = [k for k in Kind if matches("apiary/#", build(k))]
    assert set(Kind) - set(watched) == {Kind.CHUNK_DOWN, Kind.CHUNK_UP} == {k for k in Kind if k.is_blob}


def test_only_progress_may_be_lost_on_the_way() -> None:
    assert [k for k in Kind if k.qos != 1] == [Kind.NODE_PROGRESS]


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
        (Kind.NODE_STATUS, {}, r"None cannot stand for \{n\} in the topic 'node/\{n\}/status'"),
        (Kind.NODE_STATUS, {"node": "a/b"}, "'a/b' cannot stand"),
        (Kind.NODE_STATUS, {"node": "+"}, r"'\+' cannot stand"),
        (Kind.CHUNK_DOWN, {"digest": DIGEST, "index": -1}, "'-1' cannot stand"),
        (Kind.CHUNK_DOWN, {"digest": "abc", "index": 1}, "'abc' cannot stand"),
    ],
)
def test_unfit_part_is_refused_when_building(kind: Kind, parts: dict[str, object], message: str) -> None:
    with pytest.raises(TopicError, match=message):
        TOPICS.build(kind, **parts)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "x" * 64])
def test_names_that_may_stand(name: str) -> None:
    assert check_name(name, "node") == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a+", "#", "ä", "a\n", "x" * 65, "$SYS"])
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(TopicError, match=r"node .* cannot stand in a topic: use 1 to 64 letters"):
        check_name(name, "node")
