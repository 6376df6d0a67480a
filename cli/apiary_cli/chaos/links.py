"""A proxy in front of the broker, one port a party, whose links can be reset, swallowed, slowed and leaky."""

import contextlib
import itertools
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from apiary_cli.chaos.packets import PacketStream, published, refusal

READ: Final = 16_384
BUFFER: Final = 256 * 1024
"""Bytes that one direction holds at most before it stops to read: a slow link pushes back."""
_TURN_S: Final = 0.02
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with zero seconds: closing sends RST instead of FIN."""


@dataclass(slots=True, eq=False)
class _Way:
    """One direction of one connection: what was read, and when it may go on."""

    source: socket.socket
    sink: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    packets: PacketStream = field(default_factory=PacketStream)
    held: int = 0
    ended: bool = False


@dataclass(slots=True)
class _Link:
    """A party's port and its weather."""

    listener: socket.socket
    port: int
    pairs: list[tuple[_Way, _Way]] = field(default_factory=list)
    dead_until: float = 0.0
    slow_until: float = 0.0
    delay_s: float = 0.0
    bytes_s: float = 0.0
    allowance: float = 0.0
    leaky_until: float = 0.0
    leaks: float = 0.0
    chance: random.Random = field(default_factory=random.Random)
    refused_until: float = 0.0


class Links:
    """Runs the proxies on one thread; every method may be called from another."""

    def __init__(self, broker_port: int, names: list[str]):
        self._target = ("127.0.0.1", broker_port)
        self._blobs = ""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._links: dict[str, _Link] = {}
        self.lost = 0
        """Messages that a leaky link took, acknowledged all the same."""
        self.damaged = 0
        """Chunks that it damaged."""
        for name in names:
            listener = socket.create_server(("127.0.0.1", 0), backlog=16)
            listener.setblocking(False)
            self._links[name] = _Link(listener, int(listener.getsockname()[1]))
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._thread.start()

    def port(self, name: str) -> int:
        """The port that this party connects to."""
        return self._links[name].port

    @property
    def ports(self) -> list[int]:
        """Every port of the proxies."""
        return [link.port for link in self._links.values()]

    def reset(self, name: str) -> int:
        """Break every connection of a party at once; returns how many there were."""
        with self._lock:
            link = self._links[name]
            count = len(link.pairs)
            for pair in list(link.pairs):
                self._drop(link, pair)
            return count

    def swallow(self, name: str, seconds: float) -> None:
        """Let nothing pass for a while, in either direction; what came meanwhile is lost with the link."""
        with self._lock:
            self._links[name].dead_until = time.monotonic() + seconds

    def slow(self, name: str, seconds: float, *, delay_s: float, bytes_s: float) -> None:
        """Delay everything by `delay_s`, and let only so many bytes a second pass, for a while."""
        with self._lock:
            link = self._links[name]
            link.slow_until = time.monotonic() + seconds
            link.delay_s, link.bytes_s, link.allowance = delay_s, bytes_s, 0.0

    def leak(self, name: str, seconds: float, *, share: float, seed: int, blobs: str) -> None:
        """Lose this share of all that a party publishes or gets, as a broker with a full queue does.

        Each is acknowledged, in silence. Of chunks (topics below `blobs`) half come damaged instead.
        """
        with self._lock:
            link = self._links[name]
            link.leaky_until = time.monotonic() + seconds
            link.leaks, link.chance = share, random.Random(seed)  # noqa: S311 - faults to repeat
            self._blobs = blobs

    def refuse(self, name: str, seconds: float) -> None:
        """Break a party's connections, and refuse its credentials for a while."""
        self.reset(name)
        with self._lock:
            self._links[name].refused_until = time.monotonic() + seconds

    def heal(self) -> None:
        """All links are good from now on."""
        with self._lock:
            now = time.monotonic()
            for link in self._links.values():
                for fault in ("dead_until", "slow_until", "leaky_until", "refused_until"):
                    setattr(link, fault, min(getattr(link, fault), now))

    def close(self) -> None:
        """End everything and free the ports."""
        self._stopping.set()
        self._thread.join(5.0)
        for link in self._links.values():
            for pair in list(link.pairs):
                self._drop(link, pair)
            link.listener.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                watched = self._watched()
            with selectors.DefaultSelector() as waits:
                for sock in watched:
                    with contextlib.suppress(ValueError, KeyError, OSError):  # closed meanwhile
                        waits.register(sock, selectors.EVENT_READ)
                waits.select(_TURN_S)
            with self._lock:
                now = time.monotonic()
                for link in self._links.values():
                    self._turn(link, now)
            time.sleep(0.001)

    def _watched(self) -> list[socket.socket]:
        now = time.monotonic()
        watched = [link.listener for link in self._links.values()]
        for link in self._links.values():
            if now >= link.dead_until:
                ways = itertools.chain(*link.pairs)
                watched += [way.source for way in ways if way.held < BUFFER and not way.ended]
        return watched

    def _turn(self, link: _Link, now: float) -> None:
        self._accept(link)
        if link.dead_until:
            if now < link.dead_until:
                return
            # The parties must notice that it was dead: what was swallowed is gone, so the link is, too.
            link.dead_until = 0.0
            for pair in list(link.pairs):
                self._drop(link, pair)
            return
        slow = now < link.slow_until
        if slow:
            link.allowance = min(link.bytes_s, link.allowance + link.bytes_s * _TURN_S)
        for pair in list(link.pairs):
            try:
                for way, back in (pair, pair[::-1]):
                    self._read(way, back, link, now)
                    self._write(way, link, now, slow=slow)
            except OSError:
                self._drop(link, pair)
                continue
            if any(way.ended and not way.waiting for way in pair):
                self._drop(link, pair, gently=True)

    def _accept(self, link: _Link) -> None:
        while True:
            try:
                near, _ = link.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, 1.0)
            except OSError:
                # The broker is down: the party sees its connection close at once.
                near.close()
                continue
            for sock in (near, far):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.pairs.append((_Way(near, far), _Way(far, near)))

    def _read(self, way: _Way, back: _Way, link: _Link, now: float) -> None:
        due = now + (link.delay_s if now < link.slow_until else 0.0)
        while way.held < BUFFER and not way.ended:
            try:
                data = way.source.recv(READ)
            except BlockingIOError:
                return
            if not data:
                way.ended = True
                return
            for packet in way.packets.feed(data):
                passed, answer = self._weather(packet, link, now)
                for one, to in ((passed, way), (answer, back)):
                    if one:
                        to.waiting.append((due, one))
                        to.held += len(one)
                if answer and link.refused_until > now:
                    back.ended = True

    def _weather(self, packet: bytes, link: _Link, now: float) -> tuple[bytes, bytes]:
        """What passes of a packet, and what its sender is answered in the receiver's name."""
        if now < link.refused_until and (answer := refusal(packet)) is not None:
            return b"", answer
        if now >= link.leaky_until or (message := published(packet)) is None:
            return packet, b""
        if link.chance.random() >= link.leaks:
            return packet, b""
        if message.topic.startswith(self._blobs) and link.chance.random() < 0.5:
            self.damaged += 1
            at = len(packet) - 1 - link.chance.randrange(50)
            return packet[:at] + bytes([packet[at] ^ 1 << link.chance.randrange(8)]) + packet[at + 1 :], b""
        self.lost += 1
        return b"", message.ack

    def _write(self, way: _Way, link: _Link, now: float, *, slow: bool) -> None:
        while way.waiting and way.waiting[0][0] <= now:
            due, data = way.waiting[0]
            part = data[: max(1, int(link.allowance))] if slow else data
            if slow and link.allowance < 1:
                return
            try:
                sent = way.sink.send(part)
            except BlockingIOError:
                return
            way.held -= sent
            if slow:
                link.allowance -= sent
            if sent == len(data):
                way.waiting.popleft()
            else:
                way.waiting[0] = (due, data[sent:])

    def _drop(self, link: _Link, pair: tuple[_Way, _Way], *, gently: bool = False) -> None:
        link.pairs.remove(pair)
        for sock in (pair[0].source, pair[0].sink):
            if not gently:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
