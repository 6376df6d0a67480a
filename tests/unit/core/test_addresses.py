"""Hosts, ports and URLs, read and printed."""

from __future__ import annotations

import pytest

from apiary.addresses import Address, is_loopback, reachable, read_address, read_host, read_https, url


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("broker.local", "broker.local"),
        (" broker \n", "broker"),
        ("10.0.0.5", "10.0.0.5"),
        ("fd00::5", "fd00::5"),
        ("[fd00::5]", "fd00::5"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("mqtt_broker", "mqtt_broker"),
        ("server.example.org.", "server.example.org."),
    ],
)
def test_a_host(text: str, host: str) -> None:
    assert read_host(text) == host


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mqtt://broker.local:1883", "is a URL.*its port apart: broker.local and 1883"),
        ("https://[fd00::5]:8443/", "is a URL.*its port apart: fd00::5 and 8443"),
        ("broker.local:8883", "has a port in it.*broker.local and 8883"),
        ("[fd00::5]:8883", "has a port in it.*fd00::5 and 8883"),
        ("[broker]", "between brackets an IPv6 address"),
        ("bro ker", "neither a host name nor an IP address"),
        ("10.0.0.256", "neither"),
        ("10.0.0", "neither"),
        ("fd00:::5", "neither|has a port"),
        ("fd00::5%", "neither"),
        ("bro\x00ker", "neither"),
        ("a" * 254, "neither"),
        ("", "expected a name or an address"),
        ("   ", "expected a name or an address"),
    ],
)
def test_what_is_no_host_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_host(text)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a", "a:1883"),
        ("a:1884", "a:1884"),
        ("::1", "[::1]:1883"),
        ("[::1]", "[::1]:1883"),
        ("[::1]:1884", "[::1]:1884"),
        ("10.0.0.5:65535", "10.0.0.5:65535"),
    ],
)
def test_an_address_and_how_it_is_printed(text: str, printed: str) -> None:
    address = read_address(text, 1883)
    assert str(address) == printed
    assert read_address(printed, 1) == address


@pytest.mark.parametrize("text", ["a:0", "a:65536", "http://a:1883", "a:b", "[::1]:x", ":1883", "a b:1"])
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|neither|nothing"):
        read_address(text, 1883)


def test_a_url_of_a_service() -> None:
    assert read_https("https://broker.local:8443") == Address("broker.local", 8443)
    assert read_https("https://broker.local/") == Address("broker.local", 443)
    assert read_https("https://[fd00::5]:8443") == Address("fd00::5", 8443)
    assert url("https", "fd00::5", 8443) == "https://[fd00::5]:8443"
    assert url("http", "10.0.0.5", 4912, "/x") == "http://10.0.0.5:4912/x"


@pytest.mark.parametrize(
    "text",
    [
        "http://broker.local:8443", "broker.local:8443", "https://", "https://:8443", "https://fd00::5:8443",
        "https://broker.local:port", "https://broker.local:99999", "https://bro ker:8443", "https://a:0",
        "https://[fd00::5", "https://broker.local:8443/v1", "https://me@broker.local", "https://a?x",
    ],
)  # fmt: skip
def test_what_is_no_such_url(text: str) -> None:
    with pytest.raises(ValueError, match="expected https://HOST:PORT"):
        read_https(text)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST.")))
    everywhere = "0.0.0.0"  # noqa: S104 - compared, not bound
    assert not any(map(is_loopback, (everywhere, "::", "10.0.0.5", "broker.local", "fe80::1%eth0")))
    assert [reachable(h) for h in (everywhere, "::", "10.0.0.5")] == ["127.0.0.1", "::1", "10.0.0.5"]
