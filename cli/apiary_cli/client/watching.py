"""A party that only listens: every control message of a federation, decoded, as the views want it."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from apiary.bus.bus import Disconnected, Received
from apiary.bus.client_id import passing_id
from apiary.bus.inlet import Inlet
from apiary.bus.mqtt import MqttBus
from apiary.complaints import Complaints
from apiary.errors import WireError
from apiary.identity.gate import OPEN, MessageGate
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import BrokerSettings, Settings
from apiary.wire import NodeId
from apiary.wire.messages import Message, ReleaseCurrent
from apiary.wire.topics import TopicKind, Topics
from apiary_cli.terminal.once import first_connection

log = logging.getLogger(__name__)

WATCHED: Final = (
    TopicKind.ROUND_CURRENT,
    TopicKind.ROUND_LAST,
    TopicKind.MODEL_CURRENT,
    TopicKind.COORDINATOR_STATUS,
    TopicKind.NODE_STATUS,
    TopicKind.NODE_PROGRESS,
    TopicKind.NODE_HEALTH,
    TopicKind.NODE_RELEASE,
    TopicKind.RELEASE_CURRENT,
)
Seen = tuple[TopicKind, NodeId | None, Message]


class Watcher:
    """Listens under a name of its own; publishes nothing."""

    def __init__(self, broker: BrokerSettings, topics: Topics, gate: MessageGate = OPEN):
        self._topics = topics
        self._inlet = Inlet(gate, Complaints(log))
        self._timeout_s = broker.connect_timeout_s
        self._bus = MqttBus(broker, client_id=passing_id(f"{topics.federation}-watch"), will=None)
        for kind in WATCHED:
            self._bus.subscribe(topics.pattern(kind))

    def poll(self, timeout_s: float) -> list[Seen]:
        """What came within `timeout_s`; what cannot be read is left out."""
        seen: list[Seen] = []
        for event in self._bus.poll(timeout_s):
            if isinstance(event, Received) and event.payload:
                try:
                    topic = self._topics.parse(event.topic)
                    if (opened := self._inlet.open(topic, event)) is None:
                        continue
                    content = opened.content
                    if isinstance(content, bytes):
                        content = ReleaseCurrent.decode(content, who=event.topic)
                except WireError as e:
                    log.debug("%s", e)
                    continue
                if content is not None:
                    seen.append((topic.kind, topic.node, content))
            elif isinstance(event, Disconnected):
                log.warning("%s; next attempt in %.0f s", event.error, event.retry_s)
        return seen

    def retained(self, quiet_s: float = 0.5) -> Iterator[Seen]:
        """What the broker holds: all that comes until nothing new has come for `quiet_s`.

        Raises the first attempt's BusError where no broker answers.
        """
        first_connection(self._bus, self._timeout_s, lambda: False)
        heard = time.monotonic()
        while time.monotonic() - heard < quiet_s:
            for seen in self.poll(0.1):
                heard = time.monotonic()
                yield seen

    def close(self) -> None:
        """Leave."""
        self._bus.close()


@contextmanager
def watch(settings: Settings) -> Iterator[Watcher]:
    """A watcher of this federation that verifies messages and signs none, for a `with` block."""
    only_read = settings.security.model_copy(update={"cert": None, "key": None})
    gate = load_gate(only_read, Role.VIEWER, None, None, time.time)
    with closing(Watcher(settings.broker, settings.topics, gate)) as watcher:
        yield watcher
