"""MQTT 5 by hand: a client that sends what no library would, as fast as the broker takes it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SECONDS: Final = 20.0


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">H", len(data)) + data


def _packet(first: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, digit = left >> 7, left & 0x7F
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([first]) + length + body


class RawClient:
    """A link with a device's own certificate. `session_s`: how long the broker is to remember it."""

    def __init__(self, port: int, files: Path, client_id: str, *, session_s: int = 0):
        context = ssl.create_default_context(cafile=files / "tls" / "ca.pem")
        context.load_cert_chain(files / "tls" / "cert.pem", files / "tls" / "key.pem")
        plain = socket.create_connection(("127.0.0.1", port), _SECONDS)
        self._sock = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self._sock.settimeout(_SECONDS)
        self.sent = 0
        """Messages, or topics subscribed to."""
        properties = b"\x11" + struct.pack(">I", session_s) if session_s else b""
        body = _text("MQTT") + b"\x05\x02" + struct.pack(">H", 60) + bytes([len(properties)]) + properties
        self._sock.sendall(_packet(0x10, body + _text(client_id)))
        answer = self._sock.recv(1000)
        assert answer[:1] == b"\x20" and answer[3] == 0, f"not let in: {answer!r}"

    def publish(self, topics: Iterable[str], payload: bytes, *, qos: int, retain: bool) -> bool:
        """Send to each topic; False once the broker has ended the link."""
        with contextlib.suppress(OSError):
            for topic in topics:
                mid = struct.pack(">H", self.sent % 65_000 + 1) if qos else b""
                self._sock.sendall(_packet(0x30 | qos << 1 | retain, _text(topic) + mid + b"\x00" + payload))
                self.sent += 1
                self._drain()
            return True
        return False

    def subscribe(self, topics: Iterable[str], batch: int = 50) -> bool:
        """Subscribe to each topic; False once the broker has ended the link."""
        waiting: list[str] = []
        with contextlib.suppress(OSError):
            for topic in topics:
                waiting.append(topic)
                if len(waiting) == batch:
                    self._subscribe(waiting)
                    waiting.clear()
            if waiting:
                self._subscribe(waiting)
            return True
        return False

    def _subscribe(self, topics: list[str]) -> None:
        body = (
            struct.pack(">H", self.sent % 65_000 + 1) + b"\x00" + b"".join(_text(t) + b"\x01" for t in topics)
        )
        self._sock.sendall(_packet(0x82, body))
        self.sent += len(topics)
        self._drain()

    def _drain(self) -> None:
        """Answers are thrown away; a broker whose answers nobody reads stops reading."""
        self._sock.setblocking(False)
        try:
            while self._sock.recv(65_536):
                pass
            raise ConnectionResetError("closed")
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        finally:
            self._sock.settimeout(_SECONDS)

    def close(self) -> None:
        """Vanish."""
        with contextlib.suppress(OSError):
            self._sock.close()
