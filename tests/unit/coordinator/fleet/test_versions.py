"""One warning for all nodes of another version."""

from __future__ import annotations

from apiary.wire import NodeId
from apiary_coordinator.fleet.versions import AGAIN_S, SETTLE_S, VersionWarning


def versions(**nodes: str) -> dict[NodeId, str]:
    return {NodeId(node): version for node, version in nodes.items()}


def test_one_warning_names_all_once_none_comes_any_more() -> None:
    warning = VersionWarning("0.2.0")
    assert warning.due(versions(a="0.2.0", b=""), 0.0) is None
    assert warning.due(versions(a="0.2.0", b="0.1.0"), 100.0) is None
    assert warning.due(versions(a="0.2.0", b="0.1.0", c="0.1.0"), 105.0) is None
    found = versions(a="0.2.0", b="0.1.0", c="0.1.0", d="0.3.0")
    assert warning.due(found, 106.0) is None
    assert warning.due(found, 106.0 + SETTLE_S) == (
        "3 nodes run another version than the coordinator (0.2.0): 0.1.0: b, c; 0.3.0: d. "
        "How to upgrade: docs/operations.md"
    )
    assert warning.due(found, 106.0 + 10 * AGAIN_S) is None


def test_an_upgrade_on_its_way_is_no_news_and_a_further_node_is_after_a_while() -> None:
    warning = VersionWarning("0.2.0")
    warning.due(versions(a="0.1.0", b="0.1.0"), 0.0)
    assert warning.due(versions(a="0.1.0", b="0.1.0"), SETTLE_S) is not None
    assert warning.due(versions(a="0.2.0", b="0.1.0"), 1000.0) is None
    assert warning.due(versions(a="0.2.0", b="0.1.0"), 2000.0) is None
    found = versions(a="0.2.0", b="0.1.0", c="0.1.0")
    assert warning.due(found, 2001.0) is None
    assert warning.due(found, 2001.0 + SETTLE_S) is not None
    again = versions(b="0.1.0", c="0.1.0", d="0.1.0")
    warning.due(again, 2020.0)
    assert warning.due(again, 2020.0 + SETTLE_S) is None
    assert warning.due(again, 2011.0 + AGAIN_S) is not None
