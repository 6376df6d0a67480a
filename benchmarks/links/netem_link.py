"""A link with delay, loss and a rate: the kernel's `tc netem`, in network namespaces. Needs root.

    near (this process)  --veth--  router: netem on both ways out  --veth--  far

The router stands between, so that the ends' own interfaces count what is sent before any of it is lost, and
TCP there knows of a loss only by what does not arrive. Both ends send packets as a cable carries them, not
the 64 kB that a kernel may hand over a veth pair. Nothing is left when this process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CLONE_NEWNET: Final = 0x40000000
MTU: Final = 1500
ETHERNET_HEADER: Final = 14
QUEUE_BYTES: Final = 256_000
"""What waits at a narrow link before packets are dropped: a common router's, 2 s at 1 Mbit/s."""
NO_LIMIT: Final = 1_000_000
"""Packets that may wait where the link is not narrow: more than ever are on their way."""
_NETWORKS: Final = "10.213.77.0/29"
_NO_IPV6: Final = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
_FIRST: Final = ("sh", "-c", f"ip link set lo up && (test ! -e {_NO_IPV6} || echo 1 > {_NO_IPV6})")
"""In a new namespace: what IPv6 says of itself on each interface would be counted as sent."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one direction. `loss` is a share of the packets, `mbit` 10**6 bits a second, 0 without a limit."""

    delay_s: float = 0.0
    loss: float = 0.0
    mbit: float = 0.0

    def netem(self) -> list[str]:
        """The same in the words of `tc`. Its limit counts packets, those that the delay holds too."""
        words = ["netem", "limit", str(NO_LIMIT)]
        if self.mbit:
            words[2] = str(int((QUEUE_BYTES + self.mbit * 1e6 / 8 * self.delay_s) / MTU))
            words += ["rate", f"{self.mbit:g}mbit"]
        if self.delay_s:
            words += ["delay", f"{self.delay_s * 1e3:g}ms"]
        if self.loss:
            words += ["loss", f"{self.loss * 100:g}%"]
        return words


@dataclass(frozen=True, slots=True)
class End:
    """One end of the link, and the router's interface that faces it."""

    name: str
    address: str
    gate: str
    mac: str
    gate_mac: str


NEAR: Final = End("near", "10.213.77.1", "10.213.77.2", "02:00:00:00:00:01", "02:00:00:00:00:02")
FAR: Final = End("far", "10.213.77.5", "10.213.77.6", "02:00:00:00:00:05", "02:00:00:00:00:06")
ALL_LOST: Final = Shape(loss=1.0)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an end's interface sent, lost later or not, and what it got."""

    sent_frame_bytes: int
    sent_packets: int
    got_packets: int

    @property
    def sent_bytes(self) -> int:
        """Of IP packets, as any kind of link carries them: without Ethernet's headers."""
        return self.sent_frame_bytes - ETHERNET_HEADER * self.sent_packets


def own_network() -> None:
    """Give this process a network namespace of its own. Raises OSError without the right."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    run(*_FIRST)


def kernel_has_netem() -> bool:
    """Whether this process may shape a link here: it is root, and the kernel has netem or loads it."""
    try:
        tried = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", *Shape(loss=0.5).netem()]
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def run(*words: str) -> str:
    """Run a command; what it prints. Raises CalledProcessError, with what it said."""
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as e:
        e.add_note(f"it said: {e.stderr.strip()}")
        raise


class Network:
    """A network namespace, which a waiting process holds until `close` or its own parent's end."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo there; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"there\n":
            raise SystemExit("no network namespace: `unshare --net` ended at once")
        self.pid = self._holder.pid
        self.run(*_FIRST)

    def words(self, *words: str) -> list[str]:
        """A command that begins there."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def run(self, *words: str) -> str:
        """Run a command there; what it prints. Raises CalledProcessError."""
        return run(*self.words(*words))

    def close(self) -> None:
        """End the holder: the namespace goes with its last process."""
        self._holder.communicate()


class NetemLink:
    """Two networks joined by a router that shapes both ways alike. `cut` loses everything until `mend`."""

    def __init__(self, shape: Shape):
        self._shape = shape
        self._router = Network()
        self.far_network = Network()
        self._dropped = [0, 0]
        self._router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self._join(NEAR, run)
        self._join(FAR, self.far_network.run)
        self._shape_as(shape)

    @property
    def dropped(self) -> tuple[int, int]:
        """Packets that the shape lost, on the way to the far end and to the near end; not what a cut lost."""
        now = self._drops()
        return self._dropped[0] + now[0], self._dropped[1] + now[1]

    @property
    def near(self) -> Traffic:
        """Of the near end."""
        return _traffic("self", NEAR)

    @property
    def far(self) -> Traffic:
        """Of the far end."""
        return _traffic(str(self.far_network.pid), FAR)

    def cut(self) -> None:
        """Lose everything from now on, what is on its way too."""
        self._dropped = list(self.dropped)
        self._shape_as(ALL_LOST)

    def mend(self) -> None:
        """Carry again."""
        self._shape_as(self._shape)

    def close(self) -> None:
        """Remove the networks, and the interfaces with them."""
        run("ip", "link", "delete", NEAR.name)  # at once: with its network it would go a little later
        self.far_network.close()
        self._router.close()

    def _join(self, end: End, run_there: Callable[..., str]) -> None:
        to, router = f"to-{end.name}", self._router
        run_there(
            *("ip", "link", "add", end.name, "address", end.mac, "type", "veth"),
            *("peer", to, "address", end.gate_mac, "netns", str(router.pid)),
        )
        for run_at, name, address in ((run_there, end.name, end.address), (router.run, to, end.gate)):
            run_at("ip", "address", "add", f"{address}/30", "dev", name)
            run_at("ip", "link", "set", name, "gso_max_segs", "1", "up")
        # Nobody asks for an address over a link that may lose the question.
        run_there("ip", "neighbour", "add", end.gate, "lladdr", end.gate_mac, "dev", end.name)
        router.run("ip", "neighbour", "add", end.address, "lladdr", end.mac, "dev", to)
        # Raspberry Pi OS' congestion control, whatever is this machine's.
        run_there("ip", "route", "add", _NETWORKS, "via", end.gate, "congctl", "cubic")

    def _shape_as(self, shape: Shape) -> None:
        # A new handle makes a new queue: the old one goes with the packets in it.
        handle = "2:" if shape is ALL_LOST else "1:"
        for way in ("to-far", "to-near"):
            self._router.run("tc", "qdisc", "replace", "dev", way, "root", "handle", handle, *shape.netem())

    def _drops(self) -> tuple[int, int]:
        """Of the shape that is there now."""
        far, near = (
            drops(self._router.run("tc", "-s", "-j", "qdisc", "show", "dev", way), "1:")
            for way in ("to-far", "to-near")
        )
        return far, near


def drops(told: str, handle: str) -> int:
    """Packets that a queue has dropped, of `tc -s -j qdisc show`; 0 where no queue has that handle."""
    queues: list[dict[str, Any]] = json.loads(told)
    return sum(int(q["drops"]) for q in queues if q["handle"] == handle)


def traffic(told: str, interface: str) -> Traffic:
    """What an interface counts, of `/proc/PID/net/dev`. Raises ValueError where it is not there."""
    for line in told.splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == interface:
            count = [int(figure) for figure in figures.split()]
            return Traffic(sent_frame_bytes=count[8], sent_packets=count[9], got_packets=count[1])
    raise ValueError(f"no interface {interface} among the counters of its network:\n{told}")


def _traffic(pid: str, end: End) -> Traffic:
    return traffic(Path(f"/proc/{pid}/net/dev").read_text(), end.name)
