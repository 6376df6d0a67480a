"""What `make links` says to `tc`, and what it reads from the kernel's counters."""

from __future__ import annotations

import pytest
from benchmarks.links.netem_link import MTU, QUEUE_BYTES, Shape, Traffic, drops, traffic

# `tc -s -j qdisc show dev to-near` of iproute2 6.1, on Linux 6.1.
TOLD = (
    '[{"kind":"netem","handle":"1:","root":true,"refcnt":2,"options":{"limit":1000000,'
    '"loss-random":{"loss":0.05,"correlation":0},"ecn":false,"gap":0},"bytes":28815448,"packets":19033,'
    '"drops":968,"overlimits":3,"requeues":0,"backlog":1514,"qlen":1}]'
)
# /proc/PID/net/dev
COUNTERS = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  near: 2842003    3101    0    0    0     0          0         0  2889153    3205    0    0    0     0       0          0
"""  # noqa: E501


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(), "netem limit 1000000"),
        (Shape(delay_s=0.2), "netem limit 1000000 delay 200ms"),
        (Shape(delay_s=0.01, loss=0.05), "netem limit 1000000 delay 10ms loss 5%"),
        # 256 kB wait, and 25 kB are on their way, in packets.
        (Shape(delay_s=0.2, loss=0.05, mbit=1.0), "netem limit 187 rate 1mbit delay 200ms loss 5%"),
    ],
)
def test_a_shape_in_the_words_of_tc(shape: Shape, words: str) -> None:
    assert shape.netem() == words.split()


def test_a_link_without_delay_holds_the_queue_alone() -> None:
    assert Shape(mbit=8.0).netem()[:3] == ["netem", "limit", str(QUEUE_BYTES // MTU)]


def test_what_a_cut_loses_is_not_counted_as_the_shapes_loss() -> None:
    assert drops(TOLD, "1:") == 968
    assert drops(TOLD.replace('"1:"', '"2:"'), "1:") == 0
    assert drops("[]", "1:") == 0


def test_an_interface_counts_what_it_sent_and_what_it_got() -> None:
    counted = traffic(COUNTERS, "near")
    assert counted == Traffic(sent_frame_bytes=2_889_153, sent_packets=3_205, got_packets=3_101)
    assert counted.sent_bytes == 2_889_153 - 3_205 * 14


def test_an_interface_that_is_gone_is_named() -> None:
    with pytest.raises(ValueError, match="no interface far"):
        traffic(COUNTERS, "far")
