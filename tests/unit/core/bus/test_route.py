"""Which address is tried next."""

from __future__ import annotations

import socket
from collections import Counter

import pytest

from apiary.addresses import Address
from apiary.bus.route import Endpoint, Route, Single
from apiary.errors import BrokerUnreachable

THREE = [Address(f"127.0.0.{i}", 1883) for i in (1, 2, 3)]


def hosts(route: Route, count: int) -> list[str]:
    return [route.next().numeric for _ in range(count)]


def test_a_pass_tries_each_once_and_the_next_begins_at_the_same() -> None:
    route = Route(THREE, "pi-07-abc")
    first = hosts(route, 3)
    assert sorted(first) == [a.host for a in THREE]
    assert route.left == 0
    assert hosts(route, 3) == first
    route.begin()
    assert hosts(route, 1) == first[:1]
    assert hosts(Route(THREE, "pi-07-abc"), 3) == first, "a party keeps to its own"


def test_a_fleet_spreads() -> None:
    firsts = Counter(Route(THREE, f"pi-{i}").next().numeric for i in range(300))
    assert len(firsts) == 3
    assert min(firsts.values()) > 60


def test_a_name_with_several_addresses_is_as_several_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    v6 = [(socket.AF_INET6, 1, 6, "", (f"fd00::{i}", 1883, 0, 0)) for i in (1, 2)]
    v4 = [(socket.AF_INET, 1, 6, "", (f"10.0.0.{i}", 1883)) for i in (1, 2, 3)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: v6 + v4)
    cluster = [Address("cluster.test", 1883)]
    firsts = Counter()  # type: Counter[str]
    for i in range(60):
        found = hosts(Route(cluster, f"pi-{i}"), 5)
        assert all(":" in h for h in found[:2]), "the system's preference of families holds"
        assert len(set(found)) == 5
        firsts[found[0]] += 1
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: list(reversed(v6)) + list(reversed(v4)))
        assert hosts(Route(cluster, f"pi-{i}"), 5) == found, "however the resolver shuffles"
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: v6 + v4)
    assert len(firsts) == 2


def test_an_unknown_name_is_passed_over() -> None:
    route = Route([Address("no-such-host.invalid", 1883), Address("127.0.0.1", 1884)], "a")
    got = []
    for _ in range(2):
        try:
            got.append(route.next().numeric)
        except BrokerUnreachable as e:
            got.append(str(e))
    assert "127.0.0.1" in got
    assert any("broker no-such-host.invalid:1883: the name is not known" in g for g in got)


def test_a_single_endpoint() -> None:
    one = Endpoint(Address("cluster.test", 1883), socket.AF_INET, ("10.0.0.2", 1883))
    route = Single(one)
    assert [route.next(), route.next()] == [one, one]
