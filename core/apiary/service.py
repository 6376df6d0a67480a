"""The loop that the coordinator and a node share: wait for the bus, take what came, do what is due.

One thread runs it. What a party does beside its own part (releases, commands, metrics, the camera) is a
`Feature` that the loop calls; the loop knows that there are features, not which.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from apiary.bus.bus import BrokerLimits, Bus, Connected, Disconnected, PublishRefused, Received
from apiary.bus.inlet import Delivery, Inlet
from apiary.bus.outlet import Outlet, Tap, no_tap
from apiary.complaints import Complaints
from apiary.errors import BusError, StoreError, TopicError, WireError
from apiary.identity.gate import OPEN, MessageGate
from apiary.wire import NodeId
from apiary.wire.messages import Message
from apiary.wire.topics import Topic, TopicKind, Topics

_LAST_POLLS: Final = 20
_LAST_POLL_S: Final = 0.05
"""At the end the broker has a second to take the last message; nothing depends on it."""


class Feature:
    """Does nothing; a feature overrides what it needs. WireError and StoreError are logged, nothing more.

    No call may block the loop: what takes more than some milliseconds belongs to a worker or a child process.
    """

    kinds: tuple[TopicKind, ...] = ()
    """The kinds of topics whose messages it receives."""

    def start(self, now: float) -> None:
        """The service starts; before the first connect."""

    def received(self, delivery: Delivery) -> None:
        """A message on a topic of `kinds`."""

    def connected(self) -> None:
        """The connection is new: what was published last may not have arrived."""

    def tick(self, now: float) -> None:
        """A turn of the loop, at least twice a second."""

    def close(self) -> None:
        """The service stops."""


F = TypeVar("F", bound=Feature)


class Service(Generic[F]):
    """One party's loop. A subclass sets `features` and overrides what begins with an underscore below.

    `clock` is monotonic, in seconds. With `node` the topics are narrowed to those of that node.
    """

    kinds: tuple[TopicKind, ...] = ()
    """The kinds of topics whose messages the service itself receives."""
    features: Sequence[F] = ()

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        *,
        clock: Callable[[], float],
        gate: MessageGate = OPEN,
        tap: Tap = no_tap,
        node: NodeId | None = None,
    ):
        self._bus = bus
        self._topics = topics
        self._clock = clock
        self._tap = tap
        self._only = node
        self._log = logging.getLogger(type(self).__module__)
        self._outlet = Outlet(bus, topics, tap, gate)
        self._complaints = Complaints(self._log)
        self._inlet = Inlet(gate, self._complaints)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return False

    def run(self, should_stop: Callable[[], bool], turned: Callable[[], None] = lambda: None) -> None:
        """Turn until `should_stop`, or until it is `over`; `turned` is called after each turn."""
        while not self.over and not should_stop():
            self.step(0.5)
            turned()

    def step(self, timeout_s: float) -> None:
        """One turn: wait for the bus at most `timeout_s`, take what came, do what is due."""
        for event in self._bus.poll(self._wait_s(timeout_s)):
            match event:
                case Received():
                    self._receive(event)
                case Connected(limits):
                    self.connected(limits)
                case Disconnected(error, retry_s):
                    self._log.warning("%s; next attempt in %.0f s", error, retry_s)
                    self._disconnected(error)
                case PublishRefused(topic, reason):
                    self._log.warning("the broker refused topic=%s reason=%s", topic, reason)
        now = self._clock()
        self._work(now)
        for feature in self.features:
            self._guarded(partial(feature.tick, now))
        self._flush(now)

    def connected(self, limits: BrokerLimits) -> None:
        """The broker accepted the connection: publish again what it may have forgotten."""
        self._log.info("broker connected protocol=%s", limits.protocol)
        self._outlet.restore()
        self.renew()

    def renew(self) -> None:
        """The connection is new, or the party at its other end: what was published last may be lost."""
        for feature in self.features:
            self._guarded(feature.connected)

    # -- for subclasses --------------------------------------------------------------------------------

    def _received(self, delivery: Delivery) -> None:
        """A message for the service itself; one of a feature's kinds comes here, too."""

    def _disconnected(self, error: BusError) -> None:
        """The connection broke, or an attempt failed."""

    def _disk_failed(self, error: StoreError) -> None:
        """The disk refused; the same error is logged again after ten minutes."""
        self._complaints.trouble(error, self._clock())

    def _wait_s(self, timeout_s: float) -> float:
        """How long this turn may wait for the bus."""
        return timeout_s

    def _work(self, now: float) -> None:
        """What is due, before the features' turn."""

    def _flush(self, now: float) -> None:
        """What is to be sent, after the features' turn."""

    # -- parts -----------------------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        """Subscribe, and start the features."""
        kinds = {*self.kinds, *(kind for feature in self.features for kind in feature.kinds)}
        for kind in sorted(kinds, key=lambda kind: kind.name):
            self._bus.subscribe(self._topics.pattern(kind, node=self._only))
        for feature in self.features:
            feature.start(now)

    def _close(self, last: Message) -> None:
        """Stop the features, publish the last message, disconnect."""
        for feature in self.features:
            feature.close()
        self._outlet.send(last, self._only)
        for _ in range(_LAST_POLLS):
            if self._bus.backlog == 0 or not self._bus.connected:
                break
            self._bus.poll(_LAST_POLL_S)
        self._bus.close()

    def _receive(self, event: Received) -> None:
        """Decode once, then hand on: the service first, then each feature that receives this kind."""
        try:
            topic = self._topics.parse(event.topic)
        except TopicError as e:
            self._log.debug("%s", e)
        else:
            self._guarded(partial(self._deliver, topic, event), topic.node or "")

    def _deliver(self, topic: Topic, event: Received) -> None:
        delivery = self._inlet.open(topic, event)
        if delivery is None:
            return
        self._guarded(partial(self._received, delivery), topic.node or "")
        for feature in self.features:
            if topic.kind in feature.kinds:
                self._guarded(partial(feature.received, delivery), topic.node or "")

    def _guarded(self, act: Callable[[], object], who: str = "") -> None:
        """Do something for a peer: its faults, and the disk's, are logged, and the loop goes on."""
        try:
            act()
        except WireError as e:
            self._complaints.about(who, e)
        except StoreError as e:
            self._disk_failed(e)
