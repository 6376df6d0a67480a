"""Who may come in: the Host header, the token and its cookie, and how slowly guesses are answered."""

import hashlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Final

from apiary.attempt_limiter import AttemptLimiter
from apiary_edge.web.sign_in_code import CodeBook, Instant

FREE_GUESSES: Final = 5
"""Wrong tokens of one address before it has to wait; an owner mistypes less often."""
MAX_WAIT_S: Final = 60.0
MAX_ADDRESSES: Final = 256
"""Addresses whose wrong tokens are remembered; the oldest is forgotten."""
PAUSE_S: Final = 0.3
"""Before a wrong token is answered."""
COOKIE_AGE_S: Final = 30 * 86400


class OwnerGate:
    """The token's keeper. `clock` is monotonic seconds, `pause` sleeps; safe for many threads.

    `names` are answered to beside the machine's own; `wall` is seconds since 1970.
    """

    def __init__(
        self,
        token: str,
        port: int,
        clock: Callable[[], float],
        pause: Callable[[float], None],
        *,
        names: Iterable[str] = (),
        wall: Callable[[], float] = time.time,
    ):
        self._clock = clock
        self._wall = wall
        self._codes = CodeBook(token, port, self._now())
        self._taking = threading.Lock()
        self._token = token.encode()
        # Cookies do not know ports: two nodes on one machine must not overwrite each other's.
        self._name = f"apiary_label_{port}"
        self._value = hmac.new(self._token, b"apiary labelling cookie", hashlib.sha256).hexdigest()
        self._pause = pause
        self._limiter = AttemptLimiter(_waits_until, clock, MAX_ADDRESSES)
        self._pausing = threading.Semaphore(1)
        name = socket.gethostname().lower()
        self._names = {"localhost", name, f"{name}.local", *(n.lower().rstrip(".") for n in names)}

    @property
    def cookie(self) -> str:
        """The Set-Cookie header of a login."""
        return f"{self._name}={self._value}; Path=/; Max-Age={COOKIE_AGE_S}; HttpOnly; SameSite=Strict"

    def host_is_ours(self, host: str) -> bool:
        """Whether a Host header is an address, or this machine's name.

        A page elsewhere that rebinds its name to our address comes with its own name; no address can be
        rebound, so any of them is fine.
        """
        name, colon, port = host.rpartition(":")
        if not colon or host.endswith("]"):
            name = host
        elif not port.isascii() or not port.isdigit():
            return False
        name = name.lower()
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.rstrip(".") in self._names
        return True

    def wait_s(self, address: str) -> float:
        """How long this address has to wait before its next token is looked at; 0: not at all."""
        return self._limiter.wait_s(address)

    def matches(self, token: str, address: str) -> bool:
        """Whether it is the token, where the address need not wait; nothing is remembered."""
        return self.wait_s(address) == 0 and self._is_token(token)

    def token_is_right(self, token: str, address: str) -> bool:
        """Compare in constant time; a wrong one is remembered against `address` and answered late."""
        if self._is_token(token):
            self._limiter.succeeded(address)
            return True
        self._refuse(address)
        return False

    def _refuse(self, address: str) -> None:
        self._limiter.failed(address)
        # One thread at a time sleeps, or guesses would keep the owner out.
        if self._pausing.acquire(blocking=False):
            try:
                self._pause(PAUSE_S)
            finally:
                self._pausing.release()

    def code_is_right(self, code: str, address: str) -> bool:
        """Whether a sign-in code is good, once; a wrong one counts as a wrong token does."""
        with self._taking:
            good = self._codes.take(code, self._now())
        if good:
            self._limiter.succeeded(address)
            return True
        self._refuse(address)
        return False

    def _now(self) -> Instant:
        return Instant(self._clock(), self._wall())

    def _is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(errors="replace"), self._token)

    def cookie_is_right(self, header: str) -> bool:
        """Whether a Cookie header holds ours."""
        try:
            found = SimpleCookie(header[:4096]).get(self._name)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self._value.encode())


def _waits_until(failures: Sequence[float]) -> float:
    """Twice as long after each wrong token beyond the free ones."""
    beyond = len(failures) - FREE_GUESSES
    return failures[-1] + min(MAX_WAIT_S, 2.0**beyond) if beyond >= 0 else 0.0
