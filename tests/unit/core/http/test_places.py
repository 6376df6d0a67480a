"""Who gives way for a new connection."""

from __future__ import annotations

import pytest

from apiary.http.places import HttpLimits, Place, Room, party_of, room_for

LIMITS = HttpLimits(max_connections=4, max_of_address=3)


def places(*held: str) -> list[Place]:
    """`a` waits for its sender, `A` is at work or known; the oldest first."""
    return [Place(number, name.lower(), waits=name.islower()) for number, name in enumerate(held)]


@pytest.mark.parametrize(
    ("held", "comes", "expected"),
    [
        ("", "a", Room(free=True)),
        ("aa", "a", Room(free=True)),
        ("aaa", "a", Room(free=True, hang_up=0)),  # its own share is taken: the oldest of its own
        ("aaa", "b", Room(free=True)),
        ("Aaa", "a", Room(free=True, hang_up=1)),
        ("AAA", "a", Room(free=False)),
        ("baab", "c", Room(free=True, hang_up=0)),
        ("baaa", "c", Room(free=True, hang_up=1)),  # whoever holds the most gives way
        ("bAaA", "c", Room(free=True, hang_up=2)),
        ("ABCD", "e", Room(free=False)),
        ("ABCd", "e", Room(free=True, hang_up=3)),
    ],
)
def test_the_oldest_that_waits_gives_way(held: str, comes: str, expected: Room) -> None:
    assert room_for(comes, places(*held), LIMITS) == expected


def test_a_handshake_that_has_begun_gives_way_after_those_that_have_not() -> None:
    taken = [Place(number, "a", waits=True, began=number < 2) for number in range(3)]
    assert room_for("a", taken, LIMITS) == Room(free=True, hang_up=2)
    assert room_for("a", [*taken[:2], Place(2, "a", waits=False)], LIMITS) == Room(free=True, hang_up=0)


@pytest.mark.parametrize(
    ("host", "party"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8::7", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_a_machine_is_counted_once_however_many_addresses_it_has(host: str, party: str) -> None:
    assert party_of(host) == party
