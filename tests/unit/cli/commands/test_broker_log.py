"""mosquitto's log on its way to the journal; its lines here are those of mosquitto 2.0.11."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiary_cli.commands.broker_log import (
    MAX_CLIENTS,
    MEMORY_WINDOW_S,
    PER_WINDOW,
    WINDOW_S,
    BrokerLog,
    MemoryCuts,
    passed_on,
)


@pytest.fixture
def log(tmp_path: Path) -> BrokerLog:
    (tmp_path / "acl").write_text("pattern write a/%u/#\npattern read b/%u/#\n")
    made = BrokerLog(tmp_path / "acl")
    made.line(connected("thief", "pi-2"), 0.0)
    return made


def at(text: str) -> bytes:
    return f"2026-11-26T03:39:35: {text}".encode()


def connected(client: str, user: str) -> bytes:
    return at(f"New client connected from 127.0.0.1:48416 as {client} (p5, c1, k60, u'{user}').")


def test_lines_of_packets_are_dropped_and_all_others_kept(log: BrokerLog) -> None:
    for text in (
        "Sending CONNACK to thief (0, 0)",
        "Received PUBLISH from thief (d0, q0, r0, m0, 'a/pi-2/x', ... (2 bytes))",
        "Sending PUBACK to thief (m1, rc0)",
        "Received PINGREQ from thief",
        "No will message specified.",
        "Will message specified (1 bytes) (r0, q0).",
        "\tfoo",
        "Warning: ACL pattern 'apiary/+/round/current' does not contain '%c' or '%u'.",
    ):
        assert log.line(at(text), 1.0) == []
    for text in ("Client thief disconnected.", "mosquitto version 2.0.11 running", "Error: Out of memory."):
        assert log.line(at(text), 1.0) == [at(text).decode()]
    assert log.line(b"a line without a time", 1.0) == ["a line without a time"]


def test_a_denial_names_the_certificate(log: BrokerLog) -> None:
    line = "Denied PUBLISH from thief (d0, q1, r0, m1, 'a/pi-1/x', ... (2 bytes))"
    assert log.line(at(line), 1.0) == [at(line).decode() + " of user 'pi-2'"]


def test_a_client_id_that_looks_like_the_end_of_the_line_hides_nobody(log: BrokerLog) -> None:
    log.line(connected("x (p5, c1, k60, u'coordinator').", "pi-2"), 1.0)
    (said,) = log.line(at("Denied PUBLISH from x (p5, c1, k60, u'coordinator'). (d0, q1, r0, m1, 't'"), 1.0)
    assert said.endswith("of user 'pi-2'")


def test_subscriptions_are_judged_by_the_access_list(log: BrokerLog, tmp_path: Path) -> None:
    def subscribe(*filters: str) -> list[str]:
        said = log.line(at("Received SUBSCRIBE from thief"), 1.0)
        for name in filters:
            said += log.line(at(f"\t{name} (QoS 1)"), 1.0)
        return said + log.line(at("Sending SUBACK to thief"), 1.0)

    assert subscribe("b/pi-2/#") == []
    denied, narrowed = subscribe("b/pi-1/#", "#")
    assert (
        denied == "Denied SUBSCRIBE from thief ('b/pi-1/#') of user 'pi-2': nothing there is for it to read"
    )
    assert narrowed == "Narrowed SUBSCRIBE from thief ('#') of user 'pi-2': it gets what it may read there"
    # What follows is no topic of the subscription any more.
    assert log.line(at("\tb/pi-1/# (QoS 1)"), 1.0) == []
    (tmp_path / "acl").write_text("pattern read b/#\n")
    assert subscribe("b/pi-1/#") == []
    (tmp_path / "acl").unlink()
    assert subscribe("b/pi-1/#") == []


def test_a_flood_is_counted_and_hides_nothing_else(log: BrokerLog) -> None:
    for n in range(3_000):
        said = log.line(at(f"New connection from 10.0.0.9:{10_000 + n} on port 8883."), 1.0)
        assert bool(said) is (n < PER_WINDOW)
    assert log.line(at("Denied PUBLISH from thief (d0, q1, r0, m1, 't', ... (2 bytes))"), 1.0)
    assert log.tick(1.0) == []
    (told,) = log.tick(1.0 + WINDOW_S)
    assert told.startswith("Flood: 2980 more lines about strangers of '10.0.0.9' within 10 s")
    assert log.tick(2.0 + 2 * WINDOW_S) == []


def test_one_who_is_denied_again_and_again_fills_no_disk(log: BrokerLog) -> None:
    line = at("Denied PUBLISH from thief (d0, q1, r0, m1, 't', ... (2 bytes))")
    written = [said for n in range(10_000) for said in log.line(line, n / 1000)]
    assert len(written) == PER_WINDOW
    assert "Flood: 9980 more denied messages of 'pi-2'" in log.tick(WINDOW_S)[0]


def test_what_it_remembers_is_bounded(log: BrokerLog) -> None:
    for n in range(MAX_CLIENTS):
        log.line(connected(f"c{n}", "pi-3"), n * WINDOW_S)
    assert log.line(at("Denied PUBLISH from thief (d0, q1, r0, m1, 't'"), 0)[-1].endswith("user '?'")


def test_no_subscription_silences_the_log(log: BrokerLog) -> None:
    """mosquitto 2.0.11 grants each of these, and prints it."""
    for name in ("$share/g", "$share/", "$share/g/", "$share/g/b/pi-1/x", "/", "$"):
        log.line(at("Received SUBSCRIBE from thief"), 1.0)
        (said,) = log.line(at(f"\t{name} (QoS 0)"), 1.0)
        assert f"Denied SUBSCRIBE from thief ('{name}') of user 'pi-2'" in said


def test_an_access_list_that_is_no_text_leaves_the_one_before(log: BrokerLog, tmp_path: Path) -> None:
    log.line(at("Received SUBSCRIBE from thief"), 1.0)
    assert log.line(at("\tb/pi-2/x (QoS 0)"), 1.0) == []
    (tmp_path / "acl").write_bytes(b"topic read \xff\xfe\n")
    assert log.line(at("\tb/pi-2/x (QoS 0)"), 1.0) == []


def test_a_line_that_the_filter_stumbles_over_is_passed_on(tmp_path: Path) -> None:
    class Stumbles(BrokerLog):
        def line(self, raw: bytes, now: float) -> list[str]:
            raise IndexError(raw)

    said = passed_on(Stumbles(tmp_path / "acl"), b"a line \xff", 1.0)
    assert said[0] == "a line \ufffd" and "IndexError" in said[1]


OUT = b"2026-11-30T12:00:00: Client %s disconnected due to out of memory."


def test_memory_that_stays_full_is_told_from_one_flooder_that_was_stopped(log: BrokerLog) -> None:
    log.line(b"2026-11-30T12:00:00: New client connected from 1.2.3.4:5 as x1 (p5, c1, k60, u'pi-9').", 0.0)
    for i in range(10):
        log.line(OUT % b"x1", float(i))
    assert not log.full_by, "its memory was freed each time"
    log.line(OUT % b"honest", 10.0)
    assert log.full_by == ("pi-9", "honest")


def test_cuts_far_apart_are_no_full_memory() -> None:
    guard = MemoryCuts()
    assert guard.cut_off("a", 0.0) == ()
    assert guard.cut_off("b", MEMORY_WINDOW_S - 1) == ()
    assert guard.cut_off("c", MEMORY_WINDOW_S + 1) == (), "two within the window"
    assert guard.cut_off("d", MEMORY_WINDOW_S + 2) == ("b", "c", "d")
    assert guard.cut_off("d", MEMORY_WINDOW_S + 2) == (), "said once"
