"""Who may write and read what, as one table. `broker/acl.conf` and docs/security.md are made from it.

`own`: under the party's own name only (`node/pi-07/...`, `up/pi-07/...`, `operator/alice/...`). What a role
is not named for, it may not do. The broker enforces this by topic; signatures hold even where it does not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from apiary.identity.roles import Role
from apiary.wire.topics import TopicKind, Topics


class Access(Enum):
    """How far a right goes."""

    NONE = "-"
    OWN = "own"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Right:
    """Of one role on one kind of topic."""

    write: Access = Access.NONE
    read: Access = Access.NONE


_NO: Final = Right()
_W: Final = Right(write=Access.ALL)
_R: Final = Right(read=Access.ALL)
_RW: Final = Right(Access.ALL, Access.ALL)
_OWN_W: Final = Right(write=Access.OWN)
_OWN_R: Final = Right(read=Access.OWN)
_OWN_WR: Final = Right(Access.OWN, Access.OWN)

PARTIES: Final = (Role.COORDINATOR, Role.NODE, Role.OPERATOR, Role.VIEWER)

# The coordinator reads what it wrote itself too: it learns so that the broker forgot, or another one writes.
_SAID_TO_ALL: Final = (_RW, _R, _R, _R)
_SAID_TO_NODE: Final = (_RW, _OWN_R, _R, _R)
_SAID_BY_NODE: Final = (_R, _OWN_W, _R, _R)

_TABLE: Final[Mapping[TopicKind, tuple[Right, Right, Right, Right]]] = {
    #                         coordinator, node, operator, viewer
    TopicKind.COORDINATOR_STATUS: _SAID_TO_ALL,
    TopicKind.ROUND_CURRENT: _SAID_TO_ALL,
    TopicKind.ROUND_LAST: _SAID_TO_ALL,
    TopicKind.MODEL_CURRENT: _SAID_TO_ALL,
    TopicKind.RELEASE_CURRENT: _SAID_TO_ALL,
    TopicKind.METRIC: (_RW, _NO, _R, _R),
    # A node hears its own status: so it learns of another that has its id.
    TopicKind.NODE_STATUS: (_R, _OWN_WR, _R, _R),
    TopicKind.NODE_HEALTH: _SAID_BY_NODE,
    TopicKind.NODE_PROGRESS: _SAID_BY_NODE,
    TopicKind.NODE_PREDICTION: _SAID_BY_NODE,
    TopicKind.NODE_RELEASE: _SAID_BY_NODE,
    TopicKind.NODE_ASK: _SAID_BY_NODE,
    TopicKind.NODE_WANT: _SAID_BY_NODE,
    TopicKind.NODE_OFFER: _SAID_BY_NODE,
    TopicKind.NODE_NOTICE: _SAID_TO_NODE,
    TopicKind.NODE_GRANT: _SAID_TO_NODE,
    TopicKind.NODE_RECEIPT: _SAID_TO_NODE,
    # A request and its reply concern the two alone: a node's log may stand in a reply.
    TopicKind.NODE_COMMAND: (_RW, _OWN_R, _NO, _NO),
    TopicKind.NODE_REPLY: (_R, _OWN_W, _NO, _NO),
    TopicKind.OPERATOR_REQUEST: (_R, _NO, _OWN_W, _NO),
    TopicKind.OPERATOR_REPLY: (_W, _NO, _OWN_R, _NO),
    # Weights are for who trains and who aggregates; a node's update is read by the coordinator alone.
    TopicKind.CHUNK_DOWN: (_RW, _R, _NO, _NO),
    TopicKind.CHUNK_UP: (_R, _OWN_W, _NO, _NO),
    TopicKind.UPLOAD: (_R, _OWN_W, _NO, _NO),
}


def right(role: Role, kind: TopicKind) -> Right:
    """What `role` may do with topics of `kind`."""
    return _TABLE[kind][PARTIES.index(role)] if role in PARTIES else _NO


def access_list(
    *,
    coordinators: Iterable[str] = ("coordinator",),
    operators: Iterable[str] = (),
    viewers: Iterable[str] = (),
    wardens: Iterable[str] = (),
    shut_out: Iterable[str] = (),
    extra: Iterable[str] = (),
    places: Iterable[Topics] = (Topics(),),
    old_chunk_topics: bool = False,
) -> str:
    """mosquitto's `acl_file`: a node by pattern, everyone else by name; `shut_out` may do nothing at all.

    `wardens` may ask the dynamic security plugin to end a connection, and clear what a revoked node left.
    `extra`: lines besides, for everyone. `places`: the federations. `old_chunk_topics`: nodes of the version
    before may send their chunks, a topic each; without it one node can have about ten retained messages.
    """
    named_places = tuple(places)
    lines = [
        "# Who may do what (`acl_file` of mosquitto), made from the table in docs/security.md: do not edit.",
        "# A user name is the common name of a certificate, or that of the password file.",
        "# mosquitto grants a forbidden subscription and delivers nothing: reads are filtered, not refused.",
        "# The second level is the federation, by name: with `+` a node could leave messages in any.",
        "",
        "# Every node, by pattern: %u is its user name.",
        *(f"pattern {line}" for line in _rights(Role.NODE, "%u", named_places, old_chunk_topics)),
        "# A message to itself: `apiary doctor`.",
        *(f"pattern readwrite {p.root}/{p.federation}/node/%u/doctor" for p in named_places),
        "# Sensors in Home Assistant (edge.predict.home_assistant); `apiary pki` adds pki.acl_extra:",
        "# pattern write homeassistant/sensor/%u/+/config",
        *extra,
    ]
    named = ((Role.COORDINATOR, coordinators), (Role.OPERATOR, operators), (Role.VIEWER, viewers))
    for role, names in named:
        for name in sorted(names):
            lines += ["", f"# {role}", f"user {name}", *_no_node(name, named_places)]
            lines += [f"topic deny {t}" for t in _not_for(role, named_places)]
            lines += [f"topic {line}" for line in _rights(role, name, named_places, old_chunk_topics)]
            if role is not Role.VIEWER:
                lines.append("topic read $SYS/#")
    for name in sorted(wardens):
        lines += ["", "# ends connections of the revoked, and clears what they left", f"user {name}"]
        lines += [f"topic deny {t}" for t in _not_for(Role.SERVER, named_places)]
        for p in named_places:
            lines += [f"topic readwrite {p.root}/{p.federation}/node/+/#"]
            lines += [f"topic readwrite {p.blob_root}/{p.federation}/up/#"]
        lines.append("topic readwrite $CONTROL/dynamic-security/#")
    for name in sorted(shut_out):
        lines += ["", "# revoked", f"user {name}", "topic deny #"]
    return "\n".join(lines) + "\n"


def _rights(role: Role, name: str, places: Sequence[Topics], old_chunk_topics: bool) -> Iterable[str]:
    """What the table gives to a party: `write apiary/default/node/pi-07/status`."""
    for place in places:
        for kind in TopicKind:
            r = right(role, kind)
            granted = [("write", r.write), ("read", r.read)]
            if kind is TopicKind.CHUNK_UP and not old_chunk_topics and role is Role.NODE:
                continue
            if r.write is r.read is Access.ALL:
                granted = [("readwrite", Access.ALL)]
            for verb, access in granted:
                if access is not Access.NONE:
                    yield f"{verb} {_topic(kind, name, place, own=access is Access.OWN)}"


def _topic(kind: TopicKind, name: str, place: Topics, *, own: bool) -> str:
    levels = [
        name if own and level == "{n}" else "+" if level.startswith("{") else level
        for level in kind.pattern.split("/")
    ]
    return "/".join([place.blob_root if kind.is_blob else place.root, place.federation, *levels])


def _not_for(role: Role, places: Sequence[Topics]) -> Iterable[str]:
    """What the patterns give to every user, and the table not to this role."""
    for place in places:
        for kind in TopicKind:
            if right(Role.NODE, kind).read is Access.ALL and right(role, kind) == _NO:
                yield _topic(kind, "", place, own=False)


def _no_node(name: str, places: Sequence[Topics]) -> list[str]:
    """The patterns hold for every user: who is no node shall not pass for one that has its name."""
    return [
        f"topic deny {tree}"
        for p in places
        for tree in (f"{p.root}/{p.federation}/node/{name}/#", f"{p.blob_root}/{p.federation}/up/{name}/#")
    ]
