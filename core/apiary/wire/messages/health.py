"""How a node's machine is. Pure."""

from typing import Annotated, ClassVar

from pydantic import Field

from apiary.wire.messages.base import Count, Message, Number, Text
from apiary.wire.topics import TopicKind

Flags = Annotated[list[Text], Field(max_length=8)]


class NodeHealth(Message):
    """A node's machine; keys that it cannot read are left out. MB are 10**6 bytes.

    `throttled` is what the firmware complains of now (under-voltage, frequency capped, throttled, soft
    temperature limit), `throttled_since_boot` what it has. `memory_available_mb` knows the limits of control
    groups; `service_mb` is the node's own service without its children.
    """

    kind: ClassVar[TopicKind] = TopicKind.NODE_HEALTH
    temperature_c: Number | None = None
    throttled: Flags | None = None
    throttled_since_boot: Flags | None = None
    memory_mb: Count | None = None
    memory_available_mb: Count | None = None
    disk_mb: Count | None = None
    disk_free_mb: Count | None = None
    load: Number | None = None
    cores: Count | None = None
    uptime_s: Count | None = None
    service_mb: Count | None = None
