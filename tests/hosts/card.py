"""The step in which a card that `apiary image` wrote makes a new host a node, without anybody logging in."""

from __future__ import annotations

import shutil
from typing import Final

from tests.hosts.fleet import Fleet, until
from tests.hosts.ground import BUILD, WORK, wheel
from tests.hosts.ground import LATER as NEW

CARD: Final = "/root/card"
SETTINGS: Final = '[edge]\ndata_dir = "/var/lib/apiary/pictures"\n'


def card(fleet: Fleet) -> str:
    """Written on the server, put into a Debian 13 host; then the play takes that host over."""
    server, pi = fleet.server, fleet.pis[NEW]
    built = wheel("9.0.1")
    shutil.copy(built, WORK / "server" / "root" / "root")
    server.put("/root/node.toml", SETTINGS)
    server.put("/root/me.pub", fleet.key.with_suffix(".pub").read_text())
    server.ssh(f"mkdir -p {CARD} && echo 'console=tty1 rootwait' > {CARD}/cmdline.txt")
    server.ssh(
        f"apiary image {CARD} --name {NEW} --os bookworm --ssh-key /root/me.pub "
        f"--broker {server.address} --enrolment https://{server.address}:8443 "
        f"--wheel /root/{built.name} --settings /root/node.toml"
    )
    written = WORK / "server" / "root" / CARD.removeprefix("/")
    # The card goes into the new host, with pictures that lie on it already.
    boot = WORK / NEW / "upper/boot/firmware"
    boot.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(written, boot, dirs_exist_ok=True)
    shutil.copytree(BUILD / "shares/node-3", WORK / NEW / "upper/var/lib/apiary/pictures", dirs_exist_ok=True)
    conf = WORK / NEW / "upper/etc/pip.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text("[global]\nno-index = true\nfind-links = /srv/wheelhouse\n")
    pi.boot()
    # What the kernel's command line would name for the first boot.
    pi.ssh("sh /boot/firmware/apiary/first-run.sh && systemctl start --no-block apiary-first-boot")
    took_s = until(f"{NEW} is ready", lambda: fleet.node(NEW).get("state") == "ready", 400, 3)
    assert not pi.ssh("ls -d /boot/firmware/apiary 2>/dev/null", check=False).stdout, (
        "the token is still there"
    )
    assert pi.ssh("systemctl is-active apiary-renew.timer").stdout.strip() == "active"
    before = pi.ssh("sha256sum /etc/apiary/tls/cert.pem").stdout
    fleet.members.append(NEW)
    (WORK / NEW / "joined").touch()
    fleet.play("site.yml", "-e", f"common_wheel={built}", "--limit", NEW)
    assert pi.ssh("sha256sum /etc/apiary/tls/cert.pem").stdout == before, "the play gave it new certificates"
    return f"ready {took_s:.0f} s after its first boot, by one-time token; then taken over by the play"
