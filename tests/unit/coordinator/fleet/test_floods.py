from __future__ import annotations

from apiary.wire import NodeId
from apiary_coordinator.fleet.floods import MOST, PERIOD_S, Floods

A, B = NodeId("a"), NodeId("b")


def test_who_sends_too_much_is_named_once_in_each_period() -> None:
    floods = Floods()
    named = [floods.sent(A, i / 100) for i in range(2 * MOST)]
    assert named.index(True) == MOST and named.count(True) == 1
    assert not floods.sent(B, 20.0), "each is counted by itself"
    assert not floods.sent(A, PERIOD_S)
    assert any(floods.sent(A, PERIOD_S + 1) for _ in range(MOST))


def test_a_message_now_and_then_is_none() -> None:
    floods = Floods()
    assert not any(floods.sent(A, i * PERIOD_S / MOST) for i in range(10 * MOST))
