"""The step of a node's owner: its pages at one address, for the network that the inventory names alone."""

from __future__ import annotations

import http.client
import json
from functools import partial
from typing import Final

from tests.hosts.fleet import Fleet, until

TOKEN: Final = "/var/lib/apiary/edge/labelling.token"


def owners_pages(fleet: Fleet) -> str:
    """Each node serves its overview and labelling page to this machine, and to no other node."""
    for name in fleet.members:
        pi = fleet.pis[name]
        until(f"{name} serves its pages", partial(answers, pi.address), 60)
        status, body = ask(pi.address, "/")
        assert status == 401 and f"· {name}</title>" in body, (name, status, body[:300])
        token = pi.ssh(f"cat {TOKEN}").stdout.strip()
        status, body = ask(pi.address, "/api/overview", cookie=signed_in(pi.address, token))
        assert status == 200 and json.loads(body)["node"] == name, (name, status, body[:300])
        status, body = ask(pi.address, "/label/")
        assert status == 401 and f"· {name}</title>" in body, (name, status, body[:300])
    first, second = (fleet.pis[name] for name in fleet.members[:2])
    script = f"timeout 5 bash -c '</dev/tcp/{first.address}/4912'"
    assert second.ssh(script, check=False).returncode != 0, "another host of the network reaches the pages"
    return f"{len(fleet.members)} nodes serve overview and labelling to their owner, and not to each other"


def signed_in(host: str, token: str) -> str:
    """The cookie that the node gives for its token."""
    connection = http.client.HTTPConnection(host, 4912, timeout=10)
    try:
        headers = {"Content-Type": "application/json", "X-Apiary": "1"}
        connection.request("POST", "/api/login", json.dumps({"token": token}), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return str(answer.headers["Set-Cookie"]).partition(";")[0]
    finally:
        connection.close()


def ask(host: str, path: str, cookie: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, 4912, timeout=10)
    try:
        connection.request("GET", path, headers={"Cookie": cookie})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def answers(host: str) -> bool:
    try:
        return ask(host, "/")[0] == 401
    except OSError:
        return False
