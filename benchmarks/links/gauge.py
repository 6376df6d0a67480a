"""Whether a link is what its shape says: a known stream across it, counted at both ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.links.netem_link import ETHERNET_HEADER, MTU, NEAR, NetemLink, Shape
from benchmarks.measuring.processes import python

PACKETS = 10_000
AT_ONCE = 20
PAYLOAD = MTU - 20 - 8
"""Bytes of a datagram that fills a packet."""
FRAME = MTU + ETHERNET_HEADER
SHAPE = Shape(delay_s=0.2, loss=0.05)
_SOME_LOSS, _SOME_S = 0.01, 0.05
"""4.6 standard deviations of the loss; what a busy machine may add to a delay."""


@dataclass(frozen=True, slots=True)
class Gauged:
    """Of a stream from the far end: frames counted as sent, bytes of each, share lost, least delay."""

    packets: int
    frame: float
    loss: float
    delay_s: float

    def wrong(self, shape: Shape) -> list[str]:
        """What is not as the shape says, in words."""
        told = []
        if (self.packets, self.frame) != (PACKETS, FRAME):
            told.append(f"{self.packets} frames of {self.frame:.1f} bytes counted, {PACKETS} of {FRAME} sent")
        if abs(self.loss - shape.loss) > _SOME_LOSS:
            told.append(f"{self.loss:.1%} lost, expected {shape.loss:.1%}")
        if not shape.delay_s <= self.delay_s <= shape.delay_s + _SOME_S:
            told.append(f"a delay of {self.delay_s:.3f} s, expected {shape.delay_s:.3f}")
        return told


def gauge(shape: Shape = SHAPE) -> Gauged:
    """Send datagrams from the far end, without a rate, and look at the counters."""
    link = NetemLink(shape)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as at:
            at.bind((NEAR.address, 0))
            before, got = link.far, link.near.got_packets
            command = [*python("links.gauge"), str(at.getsockname()[1])]
            with subprocess.Popen(link.far_network.words(*command)):
                at.settimeout(60.0)
                # The quickest of a few: this machine may be busy.
                delay_s = min(age(at.recv(MTU)) for _ in range(100))
            time.sleep(2 * shape.delay_s + 0.1)
            after, got = link.far, link.near.got_packets - got
            packets = after.sent_packets - before.sent_packets
            frame = (after.sent_frame_bytes - before.sent_frame_bytes) / packets
            return Gauged(packets, frame, 1 - got / packets, delay_s)
    finally:
        link.close()


def age(datagram: bytes) -> float:
    """Seconds since it was sent: all processes here share a clock."""
    return time.monotonic() - float(datagram)


def send(port: int) -> None:
    """The stream, each datagram beginning with when it was sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
        to.connect((NEAR.address, port))
        for i in range(PACKETS):
            to.send(str(time.monotonic()).encode().ljust(PAYLOAD))
            if i % AT_ONCE == 0:
                time.sleep(0.001)


if __name__ == "__main__":
    send(int(sys.argv[1]))
