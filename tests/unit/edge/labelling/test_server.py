"""The labelling page by a real socket."""

from __future__ import annotations

import http.client
import ipaddress
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.unit.edge.labelling.parts import BOUNDS, TOKEN

from apiary.errors import NotReady, SettingsError
from apiary.settings import EdgeSettings
from apiary_edge.labelling.server import _address_of, check_host, lan_address, make_server
from apiary_edge.samples.model import SampleId
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.site import MAX_BODY_BYTES


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", "example.org", "224.0.0.1"])  # noqa: S104 - refused
def test_listens_on_one_address_of_the_own_network_only(host: str) -> None:
    with pytest.raises(SettingsError, match=r"expected (an IP address|one address of the local network)"):
        check_host(host)


def test_this_machines_own_address_is_one_of_its_network_or_there_is_none_yet() -> None:
    try:
        found = lan_address()
    except NotReady as e:
        assert "no address in a network yet" in str(e)
    else:
        assert not ipaddress.ip_address(found).is_loopback


def test_an_interface_has_the_address_that_the_kernel_says() -> None:
    assert _address_of("lo") == "127.0.0.1" and _address_of("none-such") is None


def test_a_real_server_bounds_what_it_reads(store: SampleStore, ids: list[SampleId], tmp_path: Path) -> None:
    edge = EdgeSettings(state_dir=tmp_path, store=BOUNDS)
    server = make_server(edge, TOKEN, host="127.0.0.1", port=0, labels=["a"])
    thread = threading.Thread(target=server.run, name="labelling-page")
    thread.start()
    try:
        port = server.port

        def ask(method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                answer.read()
                return answer.status, answer.headers
            finally:
                connection.close()

        status, headers = ask("GET", f"/?token={TOKEN}")
        assert status == 200
        assert "Server" not in headers
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert ask("GET", f"/picture/small/{ids[0]}", Cookie=cookie)[0] == 200
        assert ask("GET", "/picture/small/%2e%2e/%2e%2e/samples.sqlite", Cookie=cookie)[0] == 404
        changes = {"Cookie": cookie, "X-Apiary": "1", "Content-Type": "application/json"}
        assert ask("POST", "/api/label", b"x" * (MAX_BODY_BYTES + 1), **changes)[0] == 413
        assert ask("POST", "/api/label", b"x" * MAX_BODY_BYTES, **changes)[0] == 400
        assert ask("GET", "/", Cookie="x" * 20_000)[0] == 431
        open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
        for _ in range(300):  # each on a connection of its own
            assert ask("GET", f"/picture/small/{ids[0]}", Cookie=cookie)[0] == 200
        assert len(os.listdir("/proc/self/fd")) < open_files + 20  # noqa: PTH208
        with pytest.raises(SettingsError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*another --port"):
            make_server(EdgeSettings(state_dir=tmp_path / "s"), TOKEN, host="127.0.0.1", port=port)
    finally:
        server.close()
        thread.join(10)
    assert not thread.is_alive()
