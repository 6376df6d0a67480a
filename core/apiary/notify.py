"""A service's notifications to systemd (sd_notify(3)): ready, status, watchdog, stopping.

One datagram each to the socket that NOTIFY_SOCKET names; where there is none, nothing is sent. The watchdog
is fed by `turned`, which the service's own loop calls after each turn, never by a thread: a loop that hangs
in one step starves it, and systemd starts the service again.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final

log = logging.getLogger(__name__)

MAX_STATUS_CHARS: Final = 200
_FEEDS: Final = 4
"""Signs of life in a watchdog's time; systemd asks for two, the rest is for turns that take long."""


class Notifier:
    """One service's line to systemd. `address` as in NOTIFY_SOCKET, None: nobody listens.

    `watchdog_s` is how long systemd waits for a sign of life, None where it does not; `clock` is monotonic.
    """

    def __init__(self, address: str | None, watchdog_s: float | None, clock: Callable[[], float]):
        self.watchdog_s = watchdog_s if address else None
        self._address = address
        self._clock = clock
        self._socket: socket.socket | None = None
        self._fed_at: float | None = None
        self._said = ""
        self._complained = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], clock: Callable[[], float]) -> Notifier:
        """What systemd left in the environment. It is taken out, so that no child speaks for the service."""
        address = environ.pop("NOTIFY_SOCKET", None) or None
        microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if address is not None and address[0] not in "/@":
            log.warning(
                "NOTIFY_SOCKET=%.100s is neither a path nor an abstract name; nothing is sent", address
            )
            address = None
        if not microseconds:
            return cls(address, None, clock)
        if not microseconds.isdecimal() or int(microseconds) == 0:
            log.warning(
                "WATCHDOG_USEC=%.40s is no count of microseconds; the watchdog is not fed", microseconds
            )
            return cls(address, None, clock)
        ours = pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if ours else None, clock)

    def ready(self, status: str = "") -> None:
        """The service has started: units that come after it may start. The watchdog runs from here."""
        self._fed_at = self._clock()
        self._send("READY=1", *self._status(status))

    def turned(self, status: str = "") -> None:
        """The loop has made a turn: a sign of life where one is due, the status where it is another one."""
        lines = self._status(status)
        now = self._clock()
        due = self.watchdog_s is not None and (
            self._fed_at is None or now - self._fed_at >= self.watchdog_s / _FEEDS
        )
        if due:
            self._fed_at = now
            lines.append("WATCHDOG=1")
        if lines:
            self._send(*lines)

    def extend(self, seconds: float) -> None:
        """Starting or stopping may take so long from now; to be sent again before that is over."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self, status: str = "stopping") -> None:
        """The service ends in good order."""
        self._send("STOPPING=1", *self._status(status))

    def close(self) -> None:
        """Let the socket go."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _status(self, text: str) -> list[str]:
        # One line: a newline would begin another assignment.
        text = " ".join(text.split())[:MAX_STATUS_CHARS]
        if not text or text == self._said:
            return []
        self._said = text
        return [f"STATUS={text}"]

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                # A service manager that is slow to read must not hold the loop.
                self._socket.setblocking(False)
            name = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
            self._socket.sendto("\n".join(lines).encode(errors="replace"), name)
        except OSError as e:
            # Not sent: the next turn tries again.
            self._fed_at, self._said = None, ""
            if not self._complained:
                self._complained = True
                log.warning(
                    "systemd cannot be notified (NOTIFY_SOCKET=%.100s): %s", self._address, e.strerror
                )
