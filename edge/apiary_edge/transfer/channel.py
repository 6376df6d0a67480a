"""A node's way to the broker: its messages under its own name, and plain publishes on the same connection."""

from dataclasses import dataclass

from apiary.bus.bus import Bus
from apiary.bus.outlet import Outlet
from apiary.wire import NodeId
from apiary.wire.messages import Message
from apiary.wire.topics import Topics


@dataclass(frozen=True, slots=True)
class NodeChannel:
    """What every part of a node publishes through."""

    node: NodeId
    bus: Bus
    topics: Topics
    outlet: Outlet

    def send(self, message: Message) -> None:
        """Publish a message of this node, on its own topic."""
        self.outlet.send(message, self.node)
