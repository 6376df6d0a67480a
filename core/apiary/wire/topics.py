"""Every topic of a federation: how it is built, read back, its QoS and whether it is retained.

Control is JSON under one root, weights are chunks under another, so that a person can watch `apiary/#`
without the weights.
"""

import re
from dataclasses import dataclass
from enum import Enum

from apiary.errors import TopicError
from apiary.identity.roles import Role
from apiary.wire import Digest, NodeId

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\{(\w)\}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")


class TopicKind(Enum):
    """Pattern, QoS, retain flag, sender, and whether the sender signs where a fleet signs.

    In patterns `{n}` is a node or operator, `{d}` a digest, `{i}` a chunk's index, `{m}` a metric. Signed is
    what somebody acts on, or counts. Status, progress and metrics are for people, asks and wants cost a
    repetition; chunks are held to the digest in a signed message.
    """

    COORDINATOR_STATUS = ("coordinator/status", 1, True, Role.COORDINATOR, True)
    ROUND_CURRENT = ("round/current", 1, True, Role.COORDINATOR, True)
    ROUND_LAST = ("round/last", 1, True, Role.COORDINATOR, True)
    METRIC = ("metric/{m}", 1, True, Role.COORDINATOR, False)
    MODEL_CURRENT = ("model/current", 1, True, Role.COORDINATOR, True)
    NODE_STATUS = ("node/{n}/status", 1, True, Role.NODE, False)
    NODE_PROGRESS = ("node/{n}/progress", 0, False, Role.NODE, False)
    NODE_ASK = ("node/{n}/ask", 1, False, Role.NODE, False)
    NODE_NOTICE = ("node/{n}/notice", 1, False, Role.COORDINATOR, True)
    NODE_WANT = ("node/{n}/want", 1, False, Role.NODE, False)
    NODE_OFFER = ("node/{n}/offer", 1, False, Role.NODE, True)
    NODE_GRANT = ("node/{n}/grant", 1, False, Role.COORDINATOR, True)
    NODE_RECEIPT = ("node/{n}/receipt", 1, False, Role.COORDINATOR, True)
    NODE_HEALTH = ("node/{n}/health", 1, True, Role.NODE, False)
    NODE_PREDICTION = ("node/{n}/prediction", 1, False, Role.NODE, False)
    NODE_COMMAND = ("node/{n}/command", 1, False, Role.COORDINATOR, True)
    NODE_REPLY = ("node/{n}/reply", 1, False, Role.NODE, True)
    NODE_RELEASE = ("node/{n}/release", 1, True, Role.NODE, True)
    RELEASE_CURRENT = ("release/current", 1, True, Role.COORDINATOR, True)
    OPERATOR_REQUEST = ("operator/{n}/request", 1, False, Role.OPERATOR, True)
    OPERATOR_REPLY = ("operator/{n}/reply", 1, False, Role.COORDINATOR, True)
    CHUNK_DOWN = ("down/{d}/{i}", 1, False, Role.COORDINATOR, False)
    CHUNK_UP = ("up/{n}/{d}/{i}", 1, False, Role.NODE, False)
    """As nodes of the version before send their chunks, and all nodes to a coordinator of it."""
    UPLOAD = ("up/{n}", 1, False, Role.NODE, False)
    """A node's chunks; which of which blob stands in each. One topic: a node can leave one message there."""

    def __init__(self, pattern: str, qos: int, retain: bool, sender: Role, signed: bool):
        self.pattern = pattern
        self.parts: list[str] = _PART.findall(pattern)
        self.qos = qos
        self.retain = retain
        self.sender = sender
        self.signer = sender if signed else None
        """Whose signature messages of this kind carry where a fleet signs; None: they are not signed."""

    @property
    def is_blob(self) -> bool:
        """Whether this topic carries chunks rather than JSON."""
        return self in (TopicKind.CHUNK_DOWN, TopicKind.CHUNK_UP, TopicKind.UPLOAD)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic, read back into its parts; those that its kind has not are None."""

    kind: TopicKind
    node: NodeId | None = None
    digest: Digest | None = None
    index: int | None = None
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """Builder and parser for one federation's topics."""

    federation: str = "default"
    root: str = "apiary"
    blob_root: str = "apiary-blob"

    def build(
        self,
        kind: TopicKind,
        *,
        node: NodeId | None = None,
        digest: Digest | None = None,
        index: int | None = None,
        metric: str | None = None,
    ) -> str:
        """The topic of `kind` for these parts. Raises TopicError where one is missing or unfit."""
        parts = {"n": node, "d": digest, "i": None if index is None else str(index), "m": metric}
        for name in kind.parts:
            value = parts[name]
            if value is None or not _FITS[name].fullmatch(value):
                raise TopicError(f"{value!r} cannot stand for {{{name}}} in the topic {kind.pattern!r}")
        return f"{self._prefix(kind)}/{kind.pattern.format(**parts)}"

    def pattern(self, kind: TopicKind, *, node: NodeId | None = None, digest: Digest | None = None) -> str:
        """The subscription for every topic of `kind`, narrowed to a node or a digest where one is given."""
        levels = kind.pattern.format(n=node or "+", d=digest or "+", i="+", m="+")
        return f"{self._prefix(kind)}/{levels}"

    def parse(self, topic: str) -> Topic:
        """Read a topic back. Raises TopicError for one that is not of this federation."""
        for root, kinds in ((self.blob_root, _CHUNKS), (self.root, _CONTROL)):
            prefix = f"{root}/{self.federation}/"
            if topic.startswith(prefix):
                levels = topic[len(prefix) :]
                count, last = levels.count("/"), levels[levels.rfind("/") + 1 :]
                for kind, pattern in (*kinds.get((count, last), ()), *kinds.get((count, ""), ())):
                    if (found := pattern.fullmatch(levels)) is not None:
                        return _topic(kind, found.groupdict())
        raise TopicError(f"{topic[:200]!r} is not a topic of the federation {self.federation!r}")

    def _prefix(self, kind: TopicKind) -> str:
        return f"{self.blob_root if kind.is_blob else self.root}/{self.federation}"


_FITS = {"n": _NAME, "d": _DIGEST, "i": _INDEX, "m": _NAME}


_Shapes = dict[tuple[int, str], list[tuple[TopicKind, re.Pattern[str]]]]


def _shapes(*, blobs: bool) -> _Shapes:
    """Kinds by how many levels follow the first, and by the last; "" where that is a part of the topic."""
    found: _Shapes = {}
    for kind in TopicKind:
        if kind.is_blob == blobs:
            levels = kind.pattern.split("/")
            last = "" if levels[-1].startswith("{") else levels[-1]
            fits = _PART.sub(lambda part: f"(?P<{part[1]}>{_FITS[part[1]].pattern})", kind.pattern)
            found.setdefault((len(levels) - 1, last), []).append((kind, re.compile(fits)))
    return found


_CHUNKS, _CONTROL = _shapes(blobs=True), _shapes(blobs=False)


def _topic(kind: TopicKind, parts: dict[str, str]) -> Topic:
    return Topic(
        kind,
        node=NodeId(parts["n"]) if "n" in parts else None,
        digest=Digest(parts["d"]) if "d" in parts else None,
        index=int(parts["i"]) if "i" in parts else None,
        metric=parts.get("m"),
    )


def check_name(value: str, what: str) -> str:
    """`value` where it may stand in a topic; raises TopicError saying what names may look like."""
    if not _NAME.fullmatch(value):
        raise TopicError(
            f"{what} {value!r} cannot stand in a topic: "
            "use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return value
