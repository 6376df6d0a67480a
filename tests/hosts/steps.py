"""The steps of `make hosts`, each what an operator does, by the commands of docs/operations.md."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Final

from tests.hosts.attacks import Attacker
from tests.hosts.captured import CapturedBroker
from tests.hosts.card import card
from tests.hosts.fleet import Fleet, until
from tests.hosts.ground import BUILD, PIS, ROOT, WORK, wheel
from tests.hosts.owner import owners_pages
from tests.hosts.page import page
from tests.hosts.renewal import fire, renew
from tests.hosts.version_before import back_to_it, to_this_one, version_before


def boot(fleet: Fleet) -> str:
    for number, name in enumerate(PIS, 1):
        # A card that was flashed with pictures on it; nothing else is there.
        pictures = WORK / name / "upper/var/lib/apiary/pictures"
        if not pictures.exists():
            shutil.copytree(BUILD / "shares" / f"node-{number}", pictures)
    for machine in (fleet.server, *(fleet.pis[name] for name in fleet.members)):
        machine.boot()
    return f"{1 + len(PIS)} hosts let SSH in"


def install(fleet: Fleet) -> str:
    played = fleet.play("site.yml")
    assert all(fleet.node(name)["state"] == "ready" for name in fleet.members)
    return f"{sum(played.changed.values())} changes; all nodes are ready"


def first_run(fleet: Fleet) -> str:
    run = fleet.start("first", rounds=3, nodes=3)
    rounds = fleet.finished(run)
    assert [sorted(r["contributors"]) for r in rounds] == [list(PIS)] * 3
    assert rounds[-1]["accuracy"] > 0.3
    # Mutual TLS and nothing else: there is no other listener.
    listening = fleet.server.ssh("ss -Hltn").stdout
    assert ":8883" in listening and ":1883" not in listening, listening
    return f"3 rounds, 3 nodes each, accuracy {rounds[-1]['accuracy']:.1%}"


def nothing_to_do(fleet: Fleet) -> str:
    played = fleet.play("site.yml")
    assert set(played.changed.values()) == {0}, played.changed
    return "changed=0 on every host"


def verify(fleet: Fleet) -> str:
    fleet.play("verify.yml")
    for machine, unit in ((fleet.server, "apiary-coordinator"), (fleet.pis["pi-1"], "apiary-edge")):
        said = machine.ssh(f"systemd-analyze security --no-pager {unit} | tail -1").stdout
        assert "OK" in said, said
    return said.strip()


def upgrade(fleet: Fleet) -> str:
    run = fleet.start("upgraded", rounds=500, nodes=2)
    until("the run has begun", lambda: fleet.rounds(run), 900)
    fleet.play("site.yml", "-e", f"common_wheel={wheel('9.0.1')}")
    since = {
        name: float(pi.ssh("stat -c %Y /run/apiary-edge/started-with").stdout)
        for name, pi in fleet.pis.items()
        if name in fleet.members
    }
    assert all(since["pi-1"] < since[name] for name in fleet.members[1:]), since
    assert {fleet.node(name)["version"] for name in fleet.members} == {"9.0.1"}
    closed = len(fleet.rounds(run))
    until("the run goes on", lambda: len(fleet.rounds(run)) > closed + 1, 600)
    fleet.stop(run)
    return f"one node, then the others; the run under way went on after round {closed}"


def bad_upgrade(fleet: Fleet) -> str:
    bad = wheel("9.0.2", breaks=True)
    played = fleet.play("site.yml", "-e", f"common_wheel={bad}", "-e", "edge_back_within_s=20", code=2)
    assert "No further wave begins" in played.text()
    versions = {
        name: pi.ssh("/opt/apiary/venv/bin/apiary --version").stdout.split()[-1]
        for name, pi in fleet.pis.items()
        if name in fleet.members
    }
    assert versions == {name: "9.0.2" if name == "pi-1" else "9.0.1" for name in fleet.members}, versions
    assert all(fleet.node(name)["state"] == "ready" for name in fleet.members[1:])
    return "the first node did not come back: the others kept their version"


def downgrade(fleet: Fleet) -> str:
    # As typed in docs/operations.md: from the checkout, by a relative path.
    fleet.play("site.yml", "-e", f"common_wheel={wheel('9.0.1').relative_to(ROOT)}")
    assert {fleet.node(name)["version"] for name in fleet.members} == {"9.0.1"}
    return "back to 9.0.1 everywhere"


def power_cut(fleet: Fleet) -> str:
    run = fleet.start("cut", rounds=5, nodes=2)
    until("pi-2 trains", lambda: fleet.node("pi-2").get("state") == "training", 300, 0.2)
    fleet.pis["pi-2"].kill()
    closed = len(fleet.rounds(run))
    until("two more rounds are closed", lambda: len(fleet.rounds(run)) >= closed + 2, 900)
    without = [r for r in fleet.rounds(run) if "pi-2" not in r["contributors"]]
    assert without, "no round was closed without pi-2"
    fleet.pis["pi-2"].boot()
    until("pi-2 is back", lambda: fleet.node("pi-2").get("state") not in (None, "lost"), 600)
    assert len(fleet.finished(run)) == 5
    return f"round {without[0]['round']} was closed without it; it came back by itself"


def torn_database(fleet: Fleet) -> str:
    """As a power cut may leave it: mosquitto cannot read its own database any more."""
    database, active = "/var/lib/mosquitto/mosquitto.db", "systemctl is-active mosquitto"
    run = fleet.start("torn", rounds=500, nodes=2)
    until("the run has begun", lambda: fleet.rounds(run), 900)

    def torn_by(damage: str) -> None:
        # Stopped in order, so that there is a database, which the unit would not set aside.
        fleet.server.ssh(
            f"systemctl stop mosquitto; test -s {database} && {damage}; systemctl start mosquitto || true"
        )
        until(
            "the broker is back", lambda: "active" in fleet.server.ssh(active, check=False).stdout.split(), 60
        )
        closed = len(fleet.rounds(run))
        until("the run goes on", lambda: len(fleet.rounds(run)) > closed + 1, 600)

    torn_by(f"head -c 4096 /dev/zero > {database}")
    torn_by(f"truncate -s 60 {database}")
    fleet.stop(run)
    aside = fleet.server.ssh("ls /var/lib/mosquitto").stdout.split()
    assert "mosquitto.db.damaged" in aside, aside
    return "NULs, then cut short: the broker came back by itself, and the run went on"


def revoke(fleet: Fleet) -> str:
    run = fleet.start("revoked", rounds=10, nodes=2)
    until("pi-3 trains", lambda: fleet.node("pi-3").get("state") == "training", 300, 0.2)
    connected = "ss -Htn state established '( sport = :8883 )'"
    address = fleet.pis["pi-3"].address
    assert address in fleet.server.ssh(connected).stdout
    began = time.monotonic()
    fleet.operator("pki revoke pi-3")
    until("pi-3 is off the broker", lambda: address not in fleet.server.ssh(connected).stdout, 5, 0.1)
    took_s = time.monotonic() - began
    assert took_s < 5, f"{took_s:.1f} s"
    closed = len(fleet.rounds(run))
    # The play says the same, and finds it done.
    assert fleet.play("revoke.yml", "-e", "party=pi-3").changed == {"server": 0}
    after = fleet.finished(run)[closed:]
    assert len(after) > 1 and all("pi-3" not in r["contributors"] for r in after), after
    # The other nodes have it with their timer's next turn.
    fire(fleet.pis["pi-1"], "apiary-renew")
    crl = fleet.server.ssh("cat /var/lib/apiary-pki/crl.pem").stdout
    until("pi-1 has the list", lambda: fleet.pis["pi-1"].ssh("cat /etc/apiary/tls/crl.pem").stdout == crl, 30)
    said = fleet.pis["pi-3"].ssh("journalctl -u apiary-edge -n 30 --no-pager").stdout
    assert "revoked" in said or "certificate" in said, said
    return f"off the broker {took_s:.1f} s after the command began; none of its updates counted from there on"


def decommission(fleet: Fleet) -> str:
    fleet.play("decommission.yml", "--limit", "pi-3")
    gone = "/opt/apiary /etc/apiary /usr/local/bin/apiary /etc/systemd/system/apiary-edge.service"
    assert not fleet.pis["pi-3"].ssh(f"ls -d {gone} 2>/dev/null", check=False).stdout
    fleet.pis["pi-3"].ssh("test -d /var/lib/apiary/pictures")
    fleet.members.remove("pi-3")
    (WORK / "pi-3" / "gone").touch()
    return "service, program and keys are gone, its pictures are not"


def attack(fleet: Fleet) -> str:
    # More rounds than there is time for: it goes on for as long as the attacks do.
    run = fleet.start("attacked", rounds=500, nodes=2)
    until("the run has begun", lambda: fleet.rounds(run), 900)
    attacker = Attacker(fleet.server, {name: fleet.pis[name] for name in PIS}, WORK / "attacks")
    rows = attacker.all()
    rows += [attacker.flood(), attacker.flood_inside()]
    closed = len(fleet.rounds(run))
    until("the run goes on", lambda: len(fleet.rounds(run)) > closed, 600)
    with CapturedBroker(fleet.server, fleet.pis["pi-1"], WORK / "attacks") as captured:
        rows += captured.all()
    for what, answer, logged in rows:
        print(f"    {what:52} {answer:44} {logged}", flush=True)
    closed = len(fleet.rounds(run))
    until("the run goes on", lambda: len(fleet.rounds(run)) > closed, 600)
    fleet.stop(run)
    rounds = fleet.rounds(run)
    assert all(set(r["contributors"]) <= {"pi-1", "pi-2"} for r in rounds), rounds
    assert fleet.status()["coordinator"]["state"] == "online"
    return f"{len(rows)} attacks, each refused and logged, in {len(rounds)} rounds of a run"


def restore(fleet: Fleet) -> str:
    run = fleet.start("restored", rounds=500, nodes=2)
    until("two rounds are closed", lambda: len(fleet.rounds(run)) >= 2, 900)
    kept = fleet.rounds(run)
    fleet.play("backup.yml", "-e", f"backup={(WORK / 'backup').relative_to(ROOT)}")
    fleet.server.destroy()
    fleet.server.boot()
    fleet.play("restore.yml", "-e", f"backup={(WORK / 'backup').relative_to(ROOT)}")
    fleet.play("site.yml")
    until("the run goes on", lambda: len(fleet.rounds(run)) > len(kept) + 1, 600)
    fleet.stop(run)
    rounds = fleet.rounds(run)
    assert [r["model"] for r in rounds[: len(kept)]] == [r["model"] for r in kept]
    return f"a fresh host took up the run after round {len(kept)}, with the same models up to there"


STEPS: Final[tuple[tuple[str, Callable[[Fleet], str]], ...]] = (
    ("boot four hosts", boot),
    ("site.yml, from nothing", install),
    ("a run over mutual TLS", first_run),
    # Before anybody is enrolled by hand: the play would bring the new list of revoked certificates.
    ("site.yml again", nothing_to_do),
    ("certificates renewed by timers, in a run", renew),
    ("docs/operations.md, what it says to type", page),
    ("verify.yml, and the units' exposure", verify),
    ("the pages of a node, for its owner's network alone", owners_pages),
    ("an upgrade in waves, in a run", upgrade),
    ("an upgrade that fails", bad_upgrade),
    ("the way back", downgrade),
    ("power cut of a node in a round", power_cut),
    ("a torn database of the broker, in a run", torn_database),
    ("revoke a node in a round", revoke),
    ("attacks on the broker", attack),
    ("decommission.yml", decommission),
    ("a card that joins by itself", card),
    ("backup, another host, restore", restore),
    # At the end: all hosts begin anew.
    ("site.yml of the version before", version_before),
    ("from there to this one, cut three times", to_this_one),
    ("and back to it", back_to_it),
)
