"""The steps in which a fleet of the version before is upgraded, with three cuts on the way, and taken back.

That version's distribution was named `apiary`. Its plays and its wheel come from the repository's history.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from functools import partial
from typing import Final

from tests.hosts.fleet import Fleet, until
from tests.hosts.ground import BEFORE, BUILD, WORK
from tests.hosts.ground import version_before as tree_of_before
from tests.hosts.machines import Machine, descendants

NODES: Final = ("pi-1", "pi-2")
"""One of each Debian."""
INSTALLING: Final = "pgrep -af '[p]ip install .*apiary_fl' | grep -v no-deps"
"""The long part: what the wheel needs."""
PLACES: Final = "/etc/apiary/tls /etc/apiary/signing /var/lib/apiary/pictures /var/lib/apiary-pki/ca.pem"


def version_before(fleet: Fleet) -> str:
    """From nothing to a fleet, by the plays of before."""
    for machine in (fleet.server, *fleet.pis.values()):
        machine.destroy()
    machines = _small(fleet)
    for number, name in enumerate(NODES, 1):
        shutil.copytree(BUILD / "shares" / f"node-{number}", WORK / name / "upper/var/lib/apiary/pictures")
    for machine in machines:
        machine.boot()
    played = fleet.play("site.yml", tree=tree_of_before())
    return f"{sum(played.changed.values())} changes, by the plays of {BEFORE[:7]}"


def to_this_one(fleet: Fleet) -> str:
    """One run goes on through three cuts and the whole upgrade."""
    machines = _booted(fleet)
    before = {m.name: _program(m) for m in machines}
    assert all(held == ["apiary"] for _, held in before.values()), before
    kept = {m.name: _kept(m) for m in machines}
    run = fleet.start("moved", rounds=500, nodes=1)
    _goes_on(fleet, run)

    _kill_while_the_server_installs(fleet)
    assert _program(fleet.server) == before["server"]
    _goes_on(fleet, run)
    _cut_the_server_before_its_units_are_written(fleet)
    assert _program(fleet.server)[1] == ["apiary_fl"]
    _goes_on(fleet, run)
    _cut_a_node_while_it_installs(fleet)
    assert _program(fleet.pis["pi-1"]) == before["pi-1"]
    until("pi-1 is back", lambda: fleet.node("pi-1").get("state") in ("ready", "training"), 120)
    _goes_on(fleet, run)

    number = _fill_outboxes(fleet, run)
    fleet.play("site.yml")
    after = {m.name: _program(m) for m in machines}
    assert all(held == ["apiary_fl"] for _, held in after.values()), after
    # Closed by the updates that were trained before, and by nothing else.
    until("the round that was open is closed", lambda: len(fleet.rounds(run)) >= number, 120)
    took_part = fleet.rounds(run)[number - 1]["contributors"]
    assert sorted(took_part) == list(NODES), f"{took_part} in round {number}"
    for name in NODES:
        begun = f"--since @{run.rpartition('-')[2]}"
        log = fleet.pis[name].ssh(f"journalctl -u apiary-edge {begun} -g ' round={number} ' -o cat").stdout
        assert log.count(" trained ") == 1 and "outbox holds an update; sending it" in log, f"{name}: {log}"
    fleet.server.ssh("grep -q 'apiary broker-log' /etc/systemd/system/mosquitto.service.d/apiary.conf")
    fleet.server.ssh("pgrep -f '[a]piary broker-log'")
    _goes_on(fleet, run)
    assert {m.name: _kept(m) for m in machines} == kept, "certificates or pictures are not the same"
    fleet.stop(run)
    return f"one run of {len(fleet.rounds(run))} rounds; round {number} was closed by an updates of before"


def back_to_it(fleet: Fleet) -> str:
    """The same play with the older wheel, as docs/operations.md has it: its environments are still there."""
    machines = _booted(fleet)
    kept = {m.name: _kept(m) for m in machines}
    (wheel,) = tree_of_before().glob("dist/[0-9]*/apiary-*.whl")
    run = fleet.start("back", rounds=500, nodes=1)
    _goes_on(fleet, run)
    played = fleet.play("site.yml", "-e", f"common_wheel={wheel}")
    assert "Install the wheel, then what it needs" not in played.text()
    after = {m.name: _program(m) for m in machines}
    assert all(held == ["apiary"] for _, held in after.values()), after
    _goes_on(fleet, run)
    assert {m.name: _kept(m) for m in machines} == kept, "certificates or pictures are not the same"
    fleet.server.ssh("! grep -q 'broker-log' /etc/systemd/system/mosquitto.service.d/apiary.conf")
    fleet.stop(run)
    return f"a run of {len(fleet.rounds(run))} rounds went on; nothing was installed"


def _booted(fleet: Fleet) -> tuple[Machine, ...]:
    """The small fleet; on disks that were kept it is booted first."""
    machines = _small(fleet)
    for machine in machines:
        if not machine.running:
            machine.boot()
    return machines


def _small(fleet: Fleet) -> tuple[Machine, ...]:
    """A server and two nodes, whose rounds wait for an hour for a node that is away."""
    fleet.members[:] = NODES
    fleet.run_settings |= {"deadline_s": 3600, "lost_grace_s": 3600}
    return (fleet.server, *(fleet.pis[name] for name in NODES))


def _program(machine: Machine) -> tuple[str, list[str]]:
    """The environment in use, and which of the project's distributions it holds."""
    used = machine.ssh("readlink -f /opt/apiary/venv").stdout.strip()
    held = machine.ssh(f"cd {used}/lib/python3*/site-packages && ls -d apiary*.dist-info").stdout.split()
    machine.ssh(f"{used}/bin/python -m pip check && {used}/bin/apiary --version")
    return used, [name.split("-")[0] for name in held]


def _kept(machine: Machine) -> str:
    """Checksums of what an upgrade leaves alone."""
    files = f"find {PLACES} -type f -not -name crl.pem -exec sha256sum {{}} +"
    return machine.ssh(f"{files} | sort", check=False).stdout


def _goes_on(fleet: Fleet, run: str) -> None:
    closed = len(fleet.rounds(run))
    until(f"the run goes on after round {closed}", lambda: len(fleet.rounds(run)) > closed + 1, 300)


def _kill_while_the_server_installs(fleet: Fleet) -> None:
    """The controller goes away; what it started on the server does not."""
    play = fleet.begin("site.yml")
    until("the server installs", lambda: fleet.server.ssh(INSTALLING, check=False).returncode == 0, 300, 0.2)
    _kill(play)


def _cut_the_server_before_its_units_are_written(fleet: Fleet) -> None:
    """The new program, started by the units of before."""
    play = fleet.begin("site.yml")
    used = "readlink /opt/apiary/venv"
    before = fleet.server.ssh(used).stdout
    until("the server's program is the new one", lambda: fleet.server.ssh(used).stdout != before, 1200, 0.2)
    _kill(play)
    fleet.server.kill()
    fleet.server.boot()
    fleet.server.ssh("! grep -q 'apiary broker-log' /etc/systemd/system/mosquitto.service.d/apiary.conf")


def _cut_a_node_while_it_installs(fleet: Fleet) -> None:
    play, pi = fleet.begin("site.yml"), fleet.pis["pi-1"]
    until("pi-1 installs", lambda: pi.ssh(INSTALLING, check=False).returncode == 0, 900, 0.2)
    pi.kill()
    pi.boot()
    assert play.wait(600) != 0, "the play did not notice that pi-1 was gone"


def _fill_outboxes(fleet: Fleet, run: str) -> int:
    """Nodes with an update that nobody has received, of a round that is open; its number."""

    def training() -> bool:
        return all(fleet.node(name).get("state") == "training" for name in NODES)

    def closed(number: int) -> bool:
        return len(fleet.rounds(run)) >= number

    for _ in range(10):  # a quick node's update may be accepted before the broker is gone
        until("both nodes train", training, 300, 0.1)
        fleet.server.ssh("systemctl stop mosquitto")
        number = len(fleet.rounds(run)) + 1
        if all(_has_an_update(fleet.pis[name]) for name in NODES):
            for name in NODES:
                fleet.pis[name].ssh("systemctl stop apiary-edge")
            return number
        fleet.server.ssh("systemctl start mosquitto")
        until("the round is closed", partial(closed, number), 300)
    raise AssertionError("each time a node's update was accepted before the broker was stopped")


def _has_an_update(pi: Machine) -> bool:
    """Whether its training ends with one in the outbox: once it was accepted, none is there."""
    outbox = "find /var/lib/apiary -path '*/outbox/*.update' | grep ."
    with contextlib.suppress(AssertionError):
        until(f"{pi.name} has an update", lambda: pi.ssh(outbox, check=False).returncode == 0, 40)
        return True
    return False


def _kill(play: subprocess.Popen[bytes]) -> None:
    """As if the controller's power was cut: none of its processes ends in good order."""
    for pid in descendants(play.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    play.wait(30)
