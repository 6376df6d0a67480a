"""Hosts, ports and URLs: how they are read and how they are printed. Pure.

The one place that knows of the brackets around an IPv6 address (RFC 3986, section 3.2.2).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = "127.0.0.1"
"""Where a broker listens that is for its own machine alone."""
_NAME: Final = re.compile(
    r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?"
)
"""A host name; an underscore is no part of one by RFC 1123, but resolvers take it and containers have it."""
_ZONE: Final = re.compile(r"[A-Za-z0-9._-]{1,32}")


@dataclass(frozen=True, slots=True)
class Address:
    """A host, without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{in_url(self.host)}:{self.port}"


def in_url(host: str) -> str:
    """`host` as it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def url(scheme: str, host: str, port: int, path: str = "") -> str:
    """`SCHEME://HOST:PORT` and `path`."""
    return f"{scheme}://{Address(host, port)}{path}"


def read_host(text: str) -> str:
    """A host by name or address, with or without brackets; blanks around it are taken off.

    Raises ValueError that says what to write instead.
    """
    host = text.strip()
    if "://" in host or host.startswith("//"):
        raise ValueError(f"{text!r} is a URL: expected a name or an address{_instead(host)}")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        if not _is_ipv6(inner):
            raise ValueError(f"{text!r}: between brackets an IPv6 address is expected")
        return inner
    if _is_ipv6(host) or _is_name(host):
        return host
    _, colon, after = host.rpartition(":")
    if colon and after.isdigit():
        raise ValueError(f"{text!r} has a port in it: expected a name or an address{_instead('//' + host)}")
    if not host:
        raise ValueError("nothing: expected a name or an address")
    raise ValueError(f"{text!r} is neither a host name nor an IP address")


def read_address(text: str, default_port: int) -> Address:
    """`HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`. Raises ValueError."""
    whole = text.strip()
    before, colon, after = whole.rpartition(":")
    if colon and after.isdigit() and not _is_ipv6(whole) and "://" not in whole:
        if not 1 <= int(after) <= 65535:
            raise ValueError(f"{text!r}: port {after} is none, expected 1 to 65535")
        return Address(read_host(before), int(after))
    return Address(read_host(whole), default_port)


def read_https(text: str, default_port: int = 443) -> Address:
    """The host and port of `https://HOST[:PORT]`, with nothing after it but a slash. Raises ValueError."""
    expected = "expected https://HOST:PORT (an IPv6 address in brackets)"
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise ValueError(f"{text!r}: {e}; {expected}") from None
    if parts.scheme != "https" or not host:
        raise ValueError(f"{text!r}: {expected}")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r}: more than host and port; {expected}")
    if port == 0:
        raise ValueError(f"{text!r}: port 0 is none; {expected}")
    try:
        return Address(read_host(in_url(host)), port or default_port)
    except ValueError as e:
        raise ValueError(f"{e}; {expected}") from None


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine alone, as far as the text shows."""
    bare = host.partition("%")[0]
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return host.lower().rstrip(".") in ("localhost", "ip6-localhost") or host.lower().endswith(
            ".localhost"
        )


def reachable(host: str) -> str:
    """Where this machine reaches what listens on `host`: loopback where that is every address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared only


def _instead(host: str) -> str:
    try:
        parts = urlsplit(host if "://" in host else f"//{host.lstrip('/')}")
        inner, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if not inner:
        return ""
    return f", and its port apart: {inner}" + (f" and {port}" if port else "")


def _is_ipv6(text: str) -> bool:
    bare, percent, zone = text.partition("%")
    if percent and not _ZONE.fullmatch(zone):
        return False
    try:
        ipaddress.IPv6Address(bare)
    except ValueError:
        return False
    return True


def _is_name(text: str) -> bool:
    if re.fullmatch(r"[0-9.]+", text):  # digits and dots are an IPv4 address or a mistake
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            return False
        return True
    return _NAME.fullmatch(text) is not None
