"""The step that takes docs/operations.md at its word: what it says to type is typed, on the host it names.

The plays are steps of their own. Each command here must stand on the page, and end as it should.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

from tests.hosts.fleet import Fleet
from tests.hosts.ground import ROOT, WORK

SERVER: Final = (
    "sudo apiary status",
    "sudo apiary run show",
    "sudo apiary pki list",
    "sudo apiary pki list --expiring 120",
    "sudo apiary pki apply",
    "sudo apiary pki list --name pi-1",
    "sudo apiary pki enrol ann --role operator --dir ann",
    "sudo apiary pki enrol explorer --role viewer --dir explorer",
    "sudo -u apiary apiary doctor --role coordinator",
    "systemctl status apiary-enrolment",
    "systemctl status apiary-coordinator",
    "pgrep -af apiary",
    "sudo nft list table inet apiary",
    "sudo journalctl -u mosquitto -n 50",
    "sudo journalctl -u mosquitto",
    "sudo journalctl -u apiary-coordinator -n 50",
    "sudo du -h -d 2 /var/lib/apiary",
    "sudo journalctl --disk-usage",
)
STATUS: Final = "sudo -u apiary apiary edge status"
SIGN_IN: Final = "sudo -u apiary apiary label --qr"
"""On pi-2 only: systemd-nspawn gives a host a boot id of its own, which Debian 12's ProtectProc= undoes for a
unit, so that there the service and who asks about it seem to be of different boots. A Pi has one."""
NODE: Final = (
    "systemctl status apiary-edge",
    "systemctl list-timers 'apiary-*'",
    "sudo systemctl reset-failed apiary-renew",
    "sudo systemctl start apiary-renew",
    "sudo journalctl -u apiary-renew -n 20",
    "sudo journalctl -u apiary-edge -n 50",
    "timedatectl",
)


def page(fleet: Fleet) -> str:
    """Type what the page says; each host's user is one with sudo and no more."""
    text = (ROOT / "docs/operations.md").read_text()
    for command in (*SERVER, STATUS, SIGN_IN, *NODE):
        assert command.replace("pi-1", "NAME") in text or command in text, f"not on the page: {command}"
    fleet.ready()
    for name in ("ann", "explorer"):  # of hosts whose disks were kept
        fleet.operator(f"pki revoke {name}", check=False)
    for machine, commands in (
        (fleet.server, SERVER),
        (fleet.pis["pi-1"], NODE),
        (fleet.pis["pi-2"], (STATUS, SIGN_IN, *NODE)),
    ):
        machine.ssh("rm -rf /home/pi/ann /home/pi/explorer")
        for command in commands:
            done = machine.type(command)
            assert done.returncode == 0, f"{machine.name}$ {command}\n{done.stdout}{done.stderr}"
    _watch(fleet)
    ping = ["ansible", "pi-1", "-i", str(fleet.inventory()), "-m", "ping"]
    assert ping[0] + " NAME -i inventory/fleet.yml -m ping" in text
    subprocess.run(ping, check=True, capture_output=True, cwd=ROOT)
    for name in ("ann", "explorer"):
        fleet.operator(f"pki revoke {name}")
    return (
        f"{len(SERVER) + 2 + 2 * len(NODE)} commands of docs/operations.md, and watching from another machine"
    )


def _watch(fleet: Fleet) -> None:
    """As MQTT Explorer does: a viewer gets nothing of the weights, an operator $SYS as well."""
    sub = shutil.which("mosquitto_sub")
    assert sub is not None, "apt-get install mosquitto-clients"
    for name, topic, comes in (
        ("explorer", "apiary/#", True),
        ("explorer", "apiary-blob/#", False),
        ("ann", "$SYS/broker/uptime", True),
    ):
        keys = WORK / name
        shutil.rmtree(keys, ignore_errors=True)
        keys.mkdir()
        for file in ("ca.pem", "cert.pem", "key.pem"):
            (keys / file).write_text(fleet.server.ssh(f"cat /home/pi/{name}/tls/{file}").stdout)
        words = [sub, "-h", fleet.server.address, "-p", "8883", "--cafile", "ca.pem", "--cert", "cert.pem",
                 "--key", "key.pem", "-v", "-t", topic, "-C", "1", "-W", "15" if comes else "3"]  # fmt: skip
        got = subprocess.run(words, capture_output=True, text=True, cwd=keys, check=False).stdout
        assert bool(got) is comes, f"{name}, {topic}: {got!r}"
