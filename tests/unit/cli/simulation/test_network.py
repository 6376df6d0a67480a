"""The virtual clock and its links: bytes take their time, in order, and are lost with their link."""

from __future__ import annotations

import pytest

from apiary.bus.bus import Connected, Disconnected, Event, Received, Will
from apiary_cli.simulation.network import NodeBus, SimulatedLink, VirtualNetwork

LINK = SimulatedLink(latency_s=0.5, up_bytes_s=1000.0, down_bytes_s=2000.0)


class Listener:
    """A node's end that notes when it is woken, and by what."""

    def __init__(self, network: VirtualNetwork, link: SimulatedLink = LINK, name: str = "pi-1"):
        self.network = network
        self.got: list[tuple[float, Event]] = []
        self.bus: NodeBus = network.node_bus(name, Will(f"status/{name}", b"lost"), link, self.step)

    def step(self) -> None:
        self.got += [(self.network.now, event) for event in self.bus.poll(0)]

    def times(self, kind: type) -> list[float]:
        return [round(at, 3) for at, event in self.got if isinstance(event, kind)]


def run(network: VirtualNetwork, until: float) -> None:
    while network.advance(until):
        pass


def test_time_jumps_from_plan_to_plan_in_order() -> None:
    network, seen = VirtualNetwork(), []
    for when in (3.0, 1.0, 2.0, 1.0):
        network.at(when, lambda when=when: seen.append((when, network.now)))  # type: ignore[misc]
    network.at(-5.0, lambda: seen.append((0.0, network.now)))
    run(network, 2.5)
    assert seen == [(0.0, 0.0), (1.0, 1.0), (1.0, 1.0), (2.0, 2.0)]
    assert network.now == 2.5
    run(network, 10.0)
    assert seen[-1] == (3.0, 3.0)


def test_messages_queue_on_the_link_up() -> None:
    network = VirtualNetwork()
    server = network.server_bus("server", None)
    server.subscribe("up/#")
    node = Listener(network)
    server.poll(0)
    node.step()
    for _ in range(2):
        node.bus.publish("up/a", bytes(936))  # 1,000 bytes with its topic and headers
    assert node.bus.backlog == 2
    got = []
    while network.now < 10:
        got += [(round(network.now, 3), e) for e in server.poll(0.25) if isinstance(e, Received)]
    assert [at for at, _ in got] == [1.5, 2.5], "a second each on the link, then the way"
    node.step()
    assert node.bus.backlog == 0


def test_the_broker_has_two_messages_on_their_way_to_a_node() -> None:
    network = VirtualNetwork()
    node = Listener(network, SimulatedLink(latency_s=1.0, up_bytes_s=1e9, down_bytes_s=1e9))
    node.bus.subscribe("down")
    node.step()
    for _ in range(5):
        network.publish("down", b"x", retain=False)
    run(network, 60.0)
    assert node.times(Received) == [1.0, 1.0, 3.0, 3.0, 5.0], "a round trip for two"


def test_the_server_is_woken_by_others_and_waits_no_longer_than_it_said() -> None:
    network = VirtualNetwork()
    server = network.server_bus("server", None)
    assert [type(e) for e in server.poll(0.5)] == [Connected]
    network.at(2.0, server.wake)
    assert server.poll(0.5) == [] and network.now == 0.5
    assert server.poll(5.0) == [] and network.now == 2.0


def test_a_node_that_vanishes_loses_what_is_on_its_way_and_comes_back() -> None:
    network = VirtualNetwork()
    server = network.server_bus("server", None)
    server.subscribe("#")
    node = Listener(network)
    server.poll(0)
    node.step()
    node.bus.publish("up/a", bytes(500))
    node.bus.vanish(30.0)
    network.at(30.0, node.step)
    got: list[Event] = []
    while network.now < 40:
        got += server.poll(0.5)
    assert [(e.topic, e.payload) for e in got if isinstance(e, Received)] == [("status/pi-1", b"lost")]
    assert node.times(Disconnected) == node.times(Connected)[1:] == [30.0]


@pytest.mark.parametrize("link", [LINK, SimulatedLink(0.0, 1e12, 1e12)])
def test_what_a_node_gets_keeps_its_order(link: SimulatedLink) -> None:
    network = VirtualNetwork()
    node = Listener(network, link)
    node.bus.subscribe("down/+")
    node.step()
    for i in range(50):
        network.publish(f"down/{i}", bytes(37 * i % 101), retain=False)
    run(network, 1000.0)
    assert [e.topic for _, e in node.got if isinstance(e, Received)] == [f"down/{i}" for i in range(50)]
