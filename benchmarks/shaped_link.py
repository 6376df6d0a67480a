"""A link with delay, loss and a rate: two TUN interfaces, and between them every packet waits or is lost.

The kernel's `netem` does the same and is not built into every kernel; this needs only TUN, and takes packets
after the interface has counted them, so that its counters show what was sent, lost or not. Both ends have a
network namespace of their own that ends with its process: nothing is left behind, whatever is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

MTU: Final = 1500
CLONE_NEWNET: Final = 0x40000000
QUEUE_BYTES: Final = 256_000
"""What waits at a narrow link before packets are dropped: a common router's, 2 s at 1 Mbit/s."""
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one direction. `loss` is a share of the packets, `mbit` 10**6 bits a second, 0 without a limit."""

    delay_s: float = 0.0
    loss: float = 0.0
    mbit: float = 0.0


def own_network() -> None:
    """Give this process a network namespace of its own, with a loopback. Raises OSError without the right."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    ip("link", "set", "lo", "up")


def ip(*words: str, netns_of: int | None = None) -> None:
    """Run `ip`, in the network of another process where one is given. Raises CalledProcessError."""
    inside = ["nsenter", "--target", str(netns_of), "--net"] if netns_of is not None else []
    subprocess.run([*inside, "ip", *words], check=True, capture_output=True)


class Direction:
    """Packets one way: dropped, or queued until they would have arrived."""

    def __init__(self, shape: Shape, seed: int):
        self.shape = shape
        self.dropped = 0
        self._chance = random.Random(seed)
        self._free_at = 0.0

    def arrival(self, size: int, now: float) -> float | None:
        """When a packet sent now comes out, None where it is lost."""
        if self.shape.loss and self._chance.random() < self.shape.loss:
            self.dropped += 1
            return None
        begins = max(now, self._free_at)
        if self.shape.mbit:
            rate = self.shape.mbit * 1e6 / 8
            if (begins - now) * rate > QUEUE_BYTES:
                self.dropped += 1
                return None
            begins += size / rate
            self._free_at = begins
        return begins + self.shape.delay_s


class ShapedLink:
    """Two interfaces and a thread between them. `cut` lets nothing through until `mend`."""

    def __init__(self, near: str, far: str, shape: Shape, *, seed: int = 1):
        self.names = (near, far)
        self._fds = [_tun(near), _tun(far)]
        self._ways = [Direction(shape, seed), Direction(shape, seed + 1)]
        self._broken = threading.Event()
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="shaped-link", daemon=True)

    @property
    def dropped(self) -> tuple[int, int]:
        """Packets lost from the near end, and from the far end."""
        return self._ways[0].dropped, self._ways[1].dropped

    def start(self) -> None:
        """Begin to carry."""
        self._thread.start()

    def cut(self) -> None:
        """Lose everything from now on."""
        self._broken.set()

    def mend(self) -> None:
        """Carry again."""
        self._broken.clear()

    def close(self) -> None:
        """Stop, and remove both interfaces."""
        os.write(self._stop_w, b"\0")
        self._thread.join(5.0)
        for fd in (*self._fds, self._stop_r, self._stop_w):
            os.close(fd)

    def _carry(self) -> None:
        selector = selectors.DefaultSelector()
        for side, fd in enumerate(self._fds):
            selector.register(fd, selectors.EVENT_READ, side)
        selector.register(self._stop_r, selectors.EVENT_READ, None)
        order = itertools.count()
        late: list[tuple[float, int, int, bytes]] = []
        ready: deque[tuple[int, bytes]] = deque()
        while True:
            now = time.monotonic()
            while late and late[0][0] <= now:
                _, _, side, packet = heapq.heappop(late)
                ready.append((side, packet))
            while ready:
                side, packet = ready.popleft()
                if not self._broken.is_set():
                    _put(self._fds[1 - side], packet)
            wait = max(0.0, late[0][0] - now) if late else None
            for key, _ in selector.select(wait):
                if key.data is None:
                    return
                now = time.monotonic()
                try:
                    packets = _packets(int(key.fd))
                except OSError:
                    return  # the interface has gone with its namespace
                for packet in packets:
                    at = self._ways[key.data].arrival(len(packet), now)
                    if at is not None and not self._broken.is_set():
                        heapq.heappush(late, (at, next(order), key.data, packet))


def _tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def _packets(fd: int, most: int = 64) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < most:
        try:
            found.append(os.read(fd, MTU + 100))
        except BlockingIOError:
            break
    return found


def _put(fd: int, packet: bytes) -> None:
    # The interface is down or full: a lost packet, which is what links do.
    with contextlib.suppress(OSError):
        os.write(fd, packet)
