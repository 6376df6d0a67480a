"""What one node writes comes to an operator's terminal and into the logs."""

from __future__ import annotations

import json
import re

from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import OPERATOR, THIEF, Ground
from tests.broker.secured import connect, sent

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary.wire.topics import TopicKind, Topics

TOPICS = Topics()
MARK = "owned"
SAID = f"\x1b]0;{MARK}\x07\x1b[2J\x9b31m\u202e\r\x08{MARK}\n04:00:00 INFO    all is well"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@attack(
    "sequences that control a terminal, in a status, labels, progress and what is no message",
    mend="printable",
)
def control_characters(ground: Ground) -> Outcome:
    ground.ready()
    bus = ground.broker.party(THIEF)
    connect(bus)
    status = {"v": 1, "state": "ready", "why": SAID, "model": SAID, "version": SAID, "labels": {SAID[:60]: 3}}
    messages = [
        (TopicKind.NODE_STATUS, json.dumps(status)),
        (TopicKind.NODE_PROGRESS, json.dumps({"v": 1, "run": SAID, SAID: 1})),
        (TopicKind.NODE_HEALTH, json.dumps({"v": SAID})),
        (TopicKind.NODE_ASK, json.dumps({"v": 1, SAID: SAID}, ensure_ascii=False)),
        (TopicKind.NODE_WANT, SAID),
    ]
    for kind, text in messages:
        bus.publish(TOPICS.build(kind, node=NodeId(THIEF)), text.encode(), qos=1, retain=kind.retain)
    sent(bus)
    ground.until("it is known", lambda: ground.state_of(THIEF) is not None)
    shown = [(ground.folder / "coordinator.log").read_text(errors="replace")]
    config = ("--config", str(ground.settings_file(OPERATOR)))
    for words in (("nodes",), ("nodes", "--json"), ("run", "list"), ("release", "status")):
        done = ground.command(*words, *config)
        shown += [done.stdout, done.stderr]
    gone = NodeStatus(state="lost", why="gone").encode()
    bus.publish(TOPICS.build(TopicKind.NODE_STATUS, node=NodeId(THIEF)), gone, qos=1, retain=True)
    sent(bus)
    bus.close()
    assert any(MARK in text for text in shown), "what it wrote is shown nowhere"
    raw = sum(len(CONTROL.findall(text)) for text in shown)
    assert raw == 0, f"{raw} control characters came through"
    escaped = sum(text.count("\\x1b") for text in shown)
    return Outcome(
        f"{len(messages)} messages; {escaped} escapes are shown as text", ground.round_under(lambda: None)
    )
