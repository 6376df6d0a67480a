"""`apiary broker-log`: filter mosquitto's log on its way to the journal, stdin to stdout.

The broker's unit runs it. mosquitto 2.0 logs who was denied what at `log_type debug` only, among a line for
every packet. A subscription to topics of others it does not log at all: it grants it and delivers nothing.
This filter drops the lines of packets, adds the certificate's name to those of denials, judges subscriptions
by the access list, and counts what comes in floods instead of passing it on.
"""

import argparse
import contextlib
import fcntl
import os
import re
import selectors
import signal
import time
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Final

from apiary.identity.access import AccessList, Reach

EXAMPLES: Final = """examples:
  apiary broker-log /etc/mosquitto/apiary/acl.conf < mosquitto.log
  mosquitto -c mosquitto.conf 2> >(apiary broker-log /etc/mosquitto/apiary/acl.conf)       in bash
"""
WINDOW_S: Final = 10.0
PER_WINDOW: Final = 20
"""Lines of one kind about one peer in a window; the rest is counted."""
MEMORY_WINDOW_S: Final = 60.0
MEMORY_CUTS: Final = 3
MEMORY_USERS: Final = 2
"""So many cuts of so many users within that time: what one of them left behind fills the memory."""
MAX_CLIENTS: Final = 20_000
MAX_LINE: Final = 65_536
MAX_BYTES: Final = 2**20
"""The pipe's, where the kernel gives so much: what mosquitto may say before it waits for us."""
GATHER_S: Final = 0.01
_PACKET: Final = (b"Sending ", b"Received ", b"No will ", b"Will message ", b"\t", b"Warning: ACL pattern ")
"""Of every packet; and of patterns for all nodes alike, which need no %u."""
_SUBSCRIBE: Final = b"Received SUBSCRIBE from "
_CONNECTED: Final = re.compile(r"New client connected from \S+ as (.*) \(p\d, c\d, k\d+(?:, u'(.*)')?\)\.$")
_DENIED: Final = re.compile(r"Denied (?:PUBLISH|SUBSCRIBE) from (.*) \(d\d, ")
_NO_MEMORY: Final = re.compile(r"Client (.*) disconnected due to out of memory\.$")
_FILTER: Final = re.compile(r"\t(.*) \(QoS \d\)$")
_STRANGER: Final = re.compile(
    r"(?:New|Client) connection from (\S+?)(?::\d+ on port| failed)|OpenSSL Error"
    r"|Client <unknown>|Socket error"
)


class MemoryCuts:
    """Whether a broker at its `memory_limit` is to be started anew.

    mosquitto disconnects the party whose request no memory is left for. A flooder's clean session is freed
    with that, and all is well. What it left behind (a session that is to be kept) keeps the memory full: then
    others are disconnected, too, whatever they publish (mosquitto 2.0.11, measured).
    """

    def __init__(self) -> None:
        self._cut: deque[tuple[float, str]] = deque(maxlen=100)

    def cut_off(self, user: str, now: float) -> tuple[str, ...]:
        """A user was cut off for want of memory: the users lately, the first one first, where it is time."""
        self._cut.append((now, user))
        while self._cut[0][0] <= now - MEMORY_WINDOW_S:
            self._cut.popleft()
        users = tuple(dict.fromkeys(user for _, user in self._cut))
        if len(users) < MEMORY_USERS or len(self._cut) < MEMORY_CUTS:
            return ()
        self._cut.clear()
        return users


class BrokerLog:
    """The filter: lines in, lines out. `now` is monotonic, in seconds."""

    def __init__(self, acl_file: Path):
        self._acl_file = acl_file
        self._acl = AccessList("")
        self._acl_stamp = (0, 0)
        self._users: OrderedDict[str, str] = OrderedDict()
        self._subscriber: str | None = None
        self._memory = MemoryCuts()
        self.full_by: tuple[str, ...] = ()
        """Whom the broker cut off for want of memory, where it is to be started anew."""
        self._window_began = 0.0
        self._in_window: Counter[tuple[str, str]] = Counter()
        """Lines since then, by kind and peer."""

    def line(self, raw: bytes, now: float) -> list[str]:
        """What is to be written for one line of mosquitto's, without its end."""
        at = raw.find(b": ") + 2 if raw[:4].isdigit() else 0
        if raw.startswith(_PACKET, at):
            return self._packet(raw, at, now)
        self._subscriber = None
        text = raw.decode(errors="replace")
        if found := _CONNECTED.search(text):
            user = self._users[found[1]] = found[2] or ""
            self._users.move_to_end(found[1])
            if len(self._users) > MAX_CLIENTS:
                self._users.popitem(last=False)
            return self._bounded("connects", user, text, now)
        if found := _DENIED.search(text):
            user = self._users.get(found[1], "?")
            return self._bounded("denied messages", user, f"{text} of user '{user}'", now)
        if found := _NO_MEMORY.search(text):
            user = self._users.get(found[1], found[1])
            self.full_by = self.full_by or self._memory.cut_off(user, now)
            return self._bounded("cuts for want of memory", user, f"{text} It is user '{user}'", now)
        if found := _STRANGER.search(text):
            return self._bounded("lines about strangers", found[1] or "", text, now)
        return [*self.tick(now), text]

    def tick(self, now: float) -> list[str]:
        """The lines about floods in a window that is over."""
        if now - self._window_began < WINDOW_S:
            return []
        over = [
            f"Flood: {count - PER_WINDOW} more {kind}{f' of {peer!r}' if peer else ''} "
            f"within {WINDOW_S:.0f} s, not written one by one"
            for (kind, peer), count in self._in_window.most_common()
            if count > PER_WINDOW
        ]
        self._window_began = now
        self._in_window.clear()
        return over[:PER_WINDOW]

    def _packet(self, raw: bytes, at: int, now: float) -> list[str]:
        if raw.startswith(_SUBSCRIBE, at):
            self._subscriber = raw[at + len(_SUBSCRIBE) :].decode(errors="replace")
        elif self._subscriber is not None and raw.startswith(b"\t", at):
            return self._subscription(self._subscriber, raw[at:].decode(errors="replace"), now)
        else:
            self._subscriber = None
        return []

    def _subscription(self, client: str, text: str, now: float) -> list[str]:
        found, user = _FILTER.match(text), self._users.get(client)
        if found is None or user is None:
            return []
        match self._rights().reach(user, found[1]):
            case Reach.ALL:
                return []
            case Reach.SOME:
                verdict, why = "Narrowed", "it gets what it may read there"
            case Reach.NONE:
                verdict, why = "Denied", "nothing there is for it to read"
        text = f"{verdict} SUBSCRIBE from {client} ('{found[1]}') of user '{user}': {why}"
        return self._bounded("denied subscriptions", user, text, now)

    def _bounded(self, kind: str, peer: str, text: str, now: float) -> list[str]:
        before = self.tick(now)
        self._in_window[kind, peer] += 1
        return [*before, text] if self._in_window[kind, peer] <= PER_WINDOW else before

    def _rights(self) -> AccessList:
        """The list as it is now; where it cannot be read, as it was."""
        try:
            status = self._acl_file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._acl_stamp:
                self._acl, self._acl_stamp = AccessList(self._acl_file.read_text(encoding="utf-8")), stamp
        except (OSError, ValueError):
            pass
        return self._acl


def passed_on(log: BrokerLog, raw: bytes, now: float) -> list[str]:
    """`log.line(raw, now)`; a line that it stumbles over comes as it was, and the broker is not silenced."""
    try:
        return log.line(raw, now)
    except Exception as e:
        return [raw.decode(errors="replace"), f"Error: the filter of this log failed on that line: {e!r}"]


def start_anew(users: tuple[str, ...]) -> str:
    """End the broker, which is this process's parent, as a crash would; what to log.

    Its unit starts it again without what it kept (deploy/roles/broker). An orderly end would save that.
    """
    named = ", ".join(map(repr, users[:5]))
    broker = os.getppid()
    try:
        if Path(f"/proc/{broker}/comm").read_text(encoding="utf-8").strip() != "mosquitto":
            raise ProcessLookupError
        os.kill(broker, signal.SIGKILL)
    except OSError:
        return f"Error: the broker's memory stays full, users cut off: {named}. Start it without its database"
    return (
        f"Error: the broker's memory stays full (memory_limit), users cut off: {named}. It is started anew "
        "without what it kept; the first of them is the likely cause (`apiary pki revoke`)"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("acl_file", type=Path, metavar="ACL_FILE", help="the broker's access list")


def run(args: argparse.Namespace) -> int:
    """Filter until mosquitto closes its end. A SIGTERM for the whole service does not cut its last lines."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log, rest = BrokerLog(args.acl_file), b""
    with contextlib.suppress(OSError):
        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, MAX_BYTES)
    with selectors.DefaultSelector() as ready:
        ready.register(0, selectors.EVENT_READ)
        while True:
            out = [] if ready.select(WINDOW_S) else log.tick(time.monotonic())
            if not out:
                # mosquitto writes each line by itself: read by many at once, they cost half.
                time.sleep(GATHER_S)
                data = os.read(0, MAX_BYTES)
                if not data:
                    return 0
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-MAX_LINE:]
                now = time.monotonic()
                for raw in lines:
                    out += passed_on(log, raw, now)
                if log.full_by:
                    out.append(start_anew(log.full_by))
                    log.full_by = ()
                # Lines of packets alone would not end a window.
                out += log.tick(now)
            if out:
                with contextlib.suppress(OSError):  # the journal is away: the broker is not to feel it
                    os.write(1, ("\n".join(out) + "\n").encode())
