"""A rogue client of the broker: it records all traffic, and publishes it again, late or damaged."""

import contextlib
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgpack

from apiary.bus.bus import Received
from apiary.bus.inlet import decode
from apiary.bus.mqtt import MqttBus
from apiary.errors import WireError
from apiary.settings import BrokerSettings
from apiary.wire.messages import Announcement, Receipt
from apiary.wire.messages.base import Message
from apiary.wire.topics import TopicKind, Topics
from apiary_cli.chaos.states import SeenStates

KEPT: Final = 24
"""Messages kept of each kind: those of the last rounds."""
AT_ONCE: Final = 12
"""Messages that one fault repeats."""
_REPEATED: Final = (
    TopicKind.ROUND_CURRENT,
    TopicKind.COORDINATOR_STATUS,
    TopicKind.NODE_STATUS,
    TopicKind.NODE_ASK,
    TopicKind.NODE_NOTICE,
    TopicKind.NODE_WANT,
    TopicKind.NODE_OFFER,
    TopicKind.NODE_GRANT,
    TopicKind.NODE_RECEIPT,
    TopicKind.CHUNK_DOWN,
    TopicKind.CHUNK_UP,
    TopicKind.UPLOAD,
)


class TrafficReplayer:
    """Watches a federation's whole traffic; follows the run's progress, and repeats or damages messages."""

    def __init__(self, port: int, topics: Topics, nodes: Sequence[str] = ()):
        self.messages = 0
        """Messages seen since the present round was announced first."""
        self.receipts = 0
        """Updates of the present round that were accepted, as the receipts say."""
        self.round = 0
        self.finishing = False
        """The last round is being judged: faults that are left are dealt now."""
        self.states = SeenStates(nodes)
        self._repeated_lately: deque[tuple[str, bytes]] = deque(maxlen=4 * AT_ONCE)
        self._damaged_lately: deque[tuple[str, bytes]] = deque(maxlen=4 * AT_ONCE)
        self._topics = topics
        self._kept: dict[TopicKind, deque[tuple[str, bytes]]] = {k: deque(maxlen=KEPT) for k in _REPEATED}
        self._bus = MqttBus(
            BrokerSettings(host="127.0.0.1", port=port, retry_max_s=0.5), client_id="chaos-replayer"
        )
        self._bus.subscribe(f"{topics.root}/{topics.federation}/#")
        self._bus.subscribe(f"{topics.blob_root}/{topics.federation}/#")

    @property
    def blobs(self) -> str:
        """What the topics of chunks begin with."""
        return f"{self._topics.blob_root}/"

    def poll(self, timeout_s: float) -> int:
        """Take what came; how many messages of others that were."""
        return sum(self._note(e) for e in self._bus.poll(timeout_s) if isinstance(e, Received))

    def close(self) -> None:
        """Leave."""
        self._bus.close()

    def repeat(self, seed: int) -> str | None:
        """Publish recorded messages again, unchanged, in another order; None without a connection."""
        chance = random.Random(seed)  # noqa: S311 - faults to repeat, nothing to guess
        messages = self._draw(chance)
        self._repeated_lately += messages
        return self._publish(messages, chance)

    def corrupt(self, seed: int) -> str | None:
        """Publish damaged copies of recorded messages; None without a connection."""
        chance = random.Random(seed)  # noqa: S311
        messages = [self._damaged(chance, t, p) for t, p in self._draw(chance)]
        self._damaged_lately += messages
        return self._publish(messages, chance)

    def _draw(self, chance: random.Random) -> list[tuple[str, bytes]]:
        kinds = [kind for kind, kept in self._kept.items() if kept]
        return [chance.choice(self._kept[chance.choice(kinds)]) for _ in range(AT_ONCE)] if kinds else []

    def _publish(self, messages: list[tuple[str, bytes]], chance: random.Random) -> str | None:
        chance.shuffle(messages)
        # Not retained: what the broker keeps is the parties' own business.
        count = sum(self._bus.publish(topic, payload, qos=1, retain=False) for topic, payload in messages)
        return f"{count} messages" if count else None

    def _damaged(self, chance: random.Random, topic: str, payload: bytes) -> tuple[str, bytes]:
        match ("chunk" if topic.startswith(self.blobs) else "message", chance.randrange(3)):
            case ("chunk", 0):
                at = chance.randrange(len(payload))
                flipped = bytes([payload[at] ^ (1 << chance.randrange(8))])
                return topic, payload[:at] + flipped + payload[at + 1 :]
            case ("chunk", 1) | ("message", 0):
                return topic, payload[: chance.randrange(len(payload))]
            case ("chunk", _):
                # A good one in another's place.
                place, _, index = topic.rpartition("/")
                if not index.isdigit():  # one topic for all of a node's chunks: the place is in the envelope
                    return topic, _renumbered(payload)
                return f"{place}/{int(index) + 1}", payload
            case (_, 1):
                return topic, chance.randbytes(len(payload))
            case _:
                return topic, payload.replace(b'"v":1', b'"v":2').replace(b'"v": 1', b'"v": 2')

    def _note(self, event: Received) -> int:
        if (event.topic, event.payload) in self._damaged_lately:
            return 0  # our own, come back
        try:
            topic = self._topics.parse(event.topic)
        except WireError:
            return 0
        if topic.kind in self._kept and event.payload and not event.retained:
            self._kept[topic.kind].append((event.topic, event.payload))
        with contextlib.suppress(WireError):
            message = decode(topic, event.payload)
            if isinstance(message, Announcement):
                self._announced(message)
            elif isinstance(message, Receipt):
                self.receipts += message.state == "accepted" and message.round == self.round
            if isinstance(message, Message) and (event.topic, event.payload) not in self._repeated_lately:
                self.states.heard(topic.node, message)
        self.messages += 1
        return 1

    def _announced(self, announcement: Announcement) -> None:
        if announcement.state != "finished" and announcement.round > self.round:
            self.round, self.messages, self.receipts = announcement.round, 0, 0
        if announcement.round == announcement.rounds == self.round and announcement.state == "evaluating":
            self.finishing = True


def _renumbered(payload: bytes) -> bytes:
    """A chunk as the one behind it; what a misbehaving node sent in a chunk's place is turned round."""
    try:
        digest, number, *rest = msgpack.unpackb(payload)
        return bytes(msgpack.packb([digest, number + 1, *rest]))
    except (ValueError, TypeError):
        return payload[::-1]
