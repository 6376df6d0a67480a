"""The release that nodes predict with, how far it is rolled out, and what each node reports of it."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from apiary.tags import matches
from apiary.wire.messages.base import (
    MAX_LABELS,
    BlobRef,
    Count,
    Hex,
    Label,
    Message,
    Name,
    Number,
    Part,
    Text,
    Unit,
)
from apiary.wire.topics import TopicKind

MAX_CANARIES: Final = 500
MAX_PINS: Final = 500
MAX_PINNED: Final = 8
"""Releases that pins may name beside the two of the roll-out; each is sent in full."""

ReleaseKind = Literal["tflite", "eim"]
Machine = Literal["aarch64", "armv7", "x86_64"]
RolloutState = Literal["rolling", "paused", "done", "halted", "aborted"]
NodeReleaseState = Literal["none", "fetching", "testing", "healthy", "failed", "unfit"]
# Not \w: with its repetitions, all letters of Unicode took 17 MB of every process that imports this.
_WORD: Final = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
Rule = Annotated[str, StringConstraints(pattern=f"^{_WORD}={_WORD}$")]
Serial = Annotated[int, Field(ge=1, lt=2**53)]


class PictureShape(Part):
    """What a model takes: uint8 pictures of this size, resized so; with `letters` a line of text as one."""

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    channels: Literal[1, 3]
    resize: Literal["none", "squash", "fit-shortest", "fit-longest"] = "squash"
    letters: Annotated[str, Field(max_length=256)] | None = None


class Release(Part):
    """What one release is. `machine` is None where any node can run the file (`.tflite`).

    `accuracy` is on the server's held-out pictures; `created` and `expires` are seconds since 1970.
    `relabels`: other labels than those of the release before are meant. `attempt` counts how often
    it was tried: a node that refused one attempt tries the next.
    """

    name: Name
    file: BlobRef
    kind: ReleaseKind
    machine: Machine | None = None
    labels: Annotated[list[Label], Field(min_length=2, max_length=MAX_LABELS)]
    input: PictureShape
    accuracy: Unit | None = None
    contributors: Count = 0
    run: Name | None = None
    created: Count = 0
    expires: Count | None = None
    min_version: Text = ""
    relabels: bool = False
    attempt: Annotated[int, Field(ge=1, le=10**6)] = 1

    def same(self, name: str | None, digest: str | None, attempt: int) -> bool:
        """Whether these name this attempt at this release."""
        return (name, digest, attempt) == (self.name, self.file.digest, self.attempt)


class ReleaseCurrent(Message):
    """The manifest and how far it goes; always signed. A lower `serial` than one seen before is a replay.

    A node takes the release that it is pinned to, by its name or a rule on its tags (`site=north`);
    otherwise `release` where it is one of the `canaries` or its place is below `share`; otherwise `stable`,
    and none where that is None.
    """

    kind: ClassVar[TopicKind] = TopicKind.RELEASE_CURRENT
    serial: Serial
    state: RolloutState
    release: Release
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    canaries: Annotated[list[Name], Field(max_length=MAX_CANARIES)] = Field(default_factory=list)
    stable: Release | None = None
    pins: Annotated[dict[Name, Name], Field(max_length=MAX_PINS)] = Field(default_factory=dict)
    tag_pins: Annotated[dict[Rule, Name], Field(max_length=MAX_PINS)] = Field(default_factory=dict)
    pinned: Annotated[list[Release], Field(max_length=MAX_PINNED)] = Field(default_factory=list)

    def wanted(self, node: str, tags: Mapping[str, str]) -> Release | None:
        """The release for this node; None where it is to have none."""
        name = pinned_to(node, tags, self.pins, self.tag_pins)
        if name is not None:
            known = (self.release, *([self.stable] if self.stable else []), *self.pinned)
            if (found := next((r for r in known if r.name == name), None)) is not None:
                return found
        if node in self.canaries or place(node, self.release.file.digest) < self.share:
            return self.release
        return self.stable


class NodeRelease(Message):
    """How a node stands to the release that is meant for it, by its own test on its own pictures.

    `release`, `digest` and `attempt` are of the one it is to have, `current` the one it predicts with.
    `pictures` is how many held-out ones the accuracies are of: of this release, and of the one before it.
    """

    kind: ClassVar[TopicKind] = TopicKind.NODE_RELEASE
    state: NodeReleaseState
    serial: Annotated[int, Field(ge=0, lt=2**53)] = 0
    release: Name | None = None
    digest: Hex | None = None
    attempt: Count = 0
    current: Name | None = None
    why: Text | None = None
    accuracy: Unit | None = None
    accuracy_before: Unit | None = None
    pictures: Count = 0
    inference_ms: Number | None = None
    crashes: Count = 0
    machine: Name | None = None

    def about(self, release: Release) -> bool:
        """Whether it is about this attempt at this release."""
        return release.same(self.release, self.digest, self.attempt)


def place(node: str, digest: str) -> float:
    """Where a node stands in the order in which a release reaches the fleet: 0 (first) to 1, never 1.

    Another release has another order, so that not always the same nodes try what is new.
    """
    return int(hashlib.sha256(f"{node}/{digest}".encode()).hexdigest()[:13], 16) / 16**13


def pinned_to(
    node: str, tags: Mapping[str, str], pins: Mapping[str, str], tag_pins: Mapping[str, str]
) -> str | None:
    """The release that a node is pinned to, by its name or else by a rule on its tags."""
    if node in pins:
        return pins[node]
    return next((tag_pins[rule] for rule in sorted(tag_pins) if matches(tags, [rule])), None)
