"""A node outside a release's wave decides about it."""

from __future__ import annotations

import shutil
import time
from typing import Any

from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import HONEST, THIEF, Ground
from tests.broker.secured import connect, sent
from tests.places import COLOURS

from apiary.wire import NodeId
from apiary.wire.messages import NodeRelease
from apiary.wire.topics import TopicKind, Topics

TOPICS = Topics()
PICTURES = 2**40


def report(ground: Ground, node: str, rollout: dict[str, Any], **said: Any) -> None:
    """A node's own report, by its own certificate."""
    release = rollout["release"]
    topic = TOPICS.build(TopicKind.NODE_RELEASE, node=NodeId(node))
    told = NodeRelease(
        state="healthy",
        release=release["name"],
        digest=release["file"]["digest"],
        attempt=release["attempt"],
        current=release["name"],
        **said,
    )
    bus = ground.broker.party(node)
    connect(bus)
    sealed = ground.gate(node).seal(TopicKind.NODE_RELEASE, topic, told.encode())
    bus.publish(topic, sealed, qos=1, retain=True)
    sent(bus)
    bus.close()


def rollout_of(ground: Ground) -> dict[str, Any]:
    code, told = ground.ask("release", "status")
    assert code == 0, told
    return dict(told["rollout"] or {})


def over(ground: Ground, name: str) -> Any:
    told = rollout_of(ground)
    return told if told["release"]["name"] == name and told["state"] in ("done", "halted") else None


def rolled_out(ground: Ground, name: str, outsider: dict[str, Any], honest: dict[str, Any]) -> dict[str, Any]:
    """How a release ends of which the thief reports before the members of its waves do."""
    file = ground.folder / f"{name}.tflite"
    shutil.copy(COLOURS / "model.tflite", file)
    with file.open("ab") as f:
        f.write(name.encode())  # another file, and so another digest
    code, told = ground.ask(
        "release", "create", "--file", str(file), "--name", name, "--labels", "blue,green,red"
    )
    assert code == 0, told
    ground.until("it rolls out", lambda: rollout_of(ground).get("release", {}).get("name") == name)
    begun = rollout_of(ground)
    report(ground, THIEF, begun, **outsider)
    time.sleep(1.0)
    for node in HONEST:
        report(ground, node, begun, **honest)
    return dict(ground.until(f"{name} is out or halted", lambda: over(ground, name), 60.0))


@attack(
    "a node outside the wave reports on a good release, and on a bad one, with 2^40 pictures", mend="members"
)
def outsider(ground: Ground) -> Outcome:
    ground.ready()
    better: dict[str, Any] = {"accuracy": 0.95, "accuracy_before": 0.9, "pictures": 20}
    worse: dict[str, Any] = {"accuracy": 0.5, "accuracy_before": 0.9, "pictures": 20}
    says_bad: dict[str, Any] = {"accuracy": 0.0, "accuracy_before": 1.0, "pictures": PICTURES}
    says_good: dict[str, Any] = {"accuracy": 1.0, "accuracy_before": 0.0, "pictures": PICTURES}
    number = int(time.time())
    good = rolled_out(ground, f"good-{number}", says_bad, better)
    assert good["state"] == "done", f"the good release is {good['state']}: {good['why']}"
    bad = rolled_out(ground, f"bad-{number}", says_good, worse)
    assert bad["state"] == "halted", f"the bad release is {bad['state']}"
    return Outcome(
        "it said that the good one is bad, and that the bad one is good", f"the good one; {bad['why']}"
    )
