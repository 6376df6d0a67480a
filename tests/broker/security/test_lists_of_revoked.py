"""What mosquitto makes of list after list of revoked certificates, each read on SIGHUP."""

from __future__ import annotations

import time
from functools import partial

from tests.broker.secured import Secured, connect, poll

from apiary.bus.bus import Connected, Disconnected, Event
from apiary.settings import Settings
from apiary_cli.pki import broker_files
from apiary_cli.pki.folder import CaFolder


def refused(events: list[Event]) -> bool:
    assert not any(isinstance(e, Connected) for e in events)
    return any(isinstance(e, Disconnected) and "expired, revoked" in str(e.error) for e in events)


def test_the_newest_list_counts_whatever_the_authoritys_clock_shows(secured: Secured) -> None:
    """By a list that counts from tomorrow OpenSSL lets nobody in; one that counts from earlier is as good."""
    settings = Settings.model_validate(
        {
            "pki": {
                "state_dir": secured.folder / "pki",
                "broker_dir": secured.folder / "apiary",
                "reload": ["kill", "-HUP", str(secured.process.pid)],
            }
        }
    )
    gone = []
    for name, days in (("alice", 30.0), ("walter", 0.0), ("pi-07", -0.02), ("pi-08", 300.0)):
        before = secured.log().count("Reloading config")
        ca = CaFolder(secured.folder / "pki", wall=partial(_clock, days * 86_400))
        assert len(ca.revoke(name)) > 0
        assert broker_files.apply(ca, settings) == []
        end = time.monotonic() + 10
        while secured.log().count("Reloading config") == before:
            assert time.monotonic() < end, secured.log()
            time.sleep(0.02)
        gone.append(name)
        coordinator = secured.party("coordinator")
        connect(coordinator)
        coordinator.close()
        for revoked in gone:
            party = secured.party(revoked)
            poll(refused, party)
            party.close()


def _clock(ahead_s: float) -> float:
    return time.time() + ahead_s
