"""What a deployed broker's journal says of attacks: a real mosquitto at `log_type debug`, and our filter."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.broker.secured import Secured, connect, poll

from apiary.bus.broker import find_mosquitto
from apiary.bus.bus import PublishRefused
from apiary_cli.commands.broker_log import WINDOW_S

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


class Filtered(Secured):
    """The broker at `log_type debug`; what its log says goes through the filter as well."""

    def __init__(self, folder: Path):
        super().__init__(folder, "certificates", extra="log_type debug")
        self._journal = (folder / "journal").open("wb")
        follow = subprocess.Popen(["tail", "-n", "+1", "-F", self.log_file], stdout=subprocess.PIPE)
        command, rights = Path(sys.executable).with_name("apiary"), folder / "apiary" / "acl.conf"
        words = [str(command), "broker-log", str(rights)]
        self._children = [follow, subprocess.Popen(words, stdin=follow.stdout, stdout=self._journal)]

    def said(self, text: str, within_s: float = 15) -> str:
        """Wait for a line with `text`."""
        end = time.monotonic() + within_s
        while True:
            for line in (self.folder / "journal").read_text().splitlines():
                if text in line:
                    return line
            assert time.monotonic() < end, (self.folder / "journal").read_text()[-3000:]
            time.sleep(0.05)

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        self._journal.close()
        super().close()


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filtered]:
    made = Filtered(tmp_path_factory.mktemp("journal"))
    yield made
    made.close()


def test_denials_are_logged_with_the_name_in_the_certificate(filtered: Filtered) -> None:
    thief = filtered.party("pi-08", client_id="somebody")
    connect(thief)
    thief.publish("apiary/default/node/pi-07/offer", b"{}")
    poll(lambda es: any(isinstance(e, PublishRefused) for e in es), thief)
    line = filtered.said("Denied PUBLISH from somebody")
    assert "'apiary/default/node/pi-07/offer'" in line and line.endswith("of user 'pi-08'")
    thief.subscribe("apiary-blob/default/up/pi-07/#")
    thief.subscribe("apiary/#")
    thief.poll(0.2)
    assert "of user 'pi-08'" in filtered.said("Denied SUBSCRIBE from somebody")
    assert "('apiary/#')" in filtered.said("Narrowed SUBSCRIBE from somebody")
    thief.close()


def test_packets_are_not(filtered: Filtered) -> None:
    honest = filtered.party("pi-07", client_id="honest")
    honest.subscribe("apiary/default/round/current")
    connect(honest)
    for n in range(50):
        honest.publish("apiary/default/node/pi-07/ask", b"%d" % n)
    poll(lambda es: honest.backlog == 0, honest)
    assert "Received PUBLISH from honest" in filtered.log()
    honest.close()
    filtered.said("Client honest disconnected")
    journal = (filtered.folder / "journal").read_text()
    assert "PUBLISH from honest" not in journal and "SUBSCRIBE from honest" not in journal


def test_a_flood_is_one_line_and_hides_no_denial(filtered: Filtered) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", filtered.port), 5) as s:
            s.send(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06attack")
    thief = filtered.party("pi-08", client_id="behind")
    connect(thief)
    thief.publish("apiary/default/release/current", b"{}")
    poll(lambda es: any(isinstance(e, PublishRefused) for e in es), thief)
    filtered.said("Denied PUBLISH from behind")
    # Nothing but packets comes from here on, and the window ends all the same.
    end = time.monotonic() + WINDOW_S + 2
    while time.monotonic() < end:
        thief.publish("apiary/default/node/pi-08/ask", b"{}")
        thief.poll(0.1)
        time.sleep(0.2)
    filtered.said("more lines about strangers of '127.0.0.1' within 10 s", 1)
    thief.close()
    assert (filtered.folder / "journal").read_text().count("New connection from") < 200
