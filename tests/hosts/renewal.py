"""The step in which certificates end in the middle of a run, and nobody but timers does anything about it."""

from __future__ import annotations

import socket
import ssl
import time

from tests.hosts.fleet import Fleet, until
from tests.hosts.machines import Machine


def renew(fleet: Fleet) -> str:
    """Certificates that end in a minute, of a node, the coordinator and the broker; then the timers fire."""
    run = fleet.start("renewed", rounds=8, nodes=2)
    until("the run has begun", lambda: fleet.rounds(run), 300)
    pi, server = fleet.pis["pi-1"], fleet.server
    since = {unit: m.ssh(f"systemctl show {unit} -p ActiveEnterTimestampMonotonic,NRestarts").stdout
             for m, unit in _services(fleet)}  # fmt: skip
    short = "--set pki.days=0.001"
    pi.ssh("apiary pki request pi-1 --new-keys --owner apiary --out /root/r.pem")
    server.put("/root/r.pem", pi.ssh("cat /root/r.pem").stdout)
    server.ssh(f"apiary pki renew pi-1 --force --request /root/r.pem --out /root/a.pem {short}")
    pi.put("/root/a.pem", server.ssh("cat /root/a.pem").stdout)
    pi.ssh("apiary pki install /root/a.pem --owner apiary")
    server.ssh(f"apiary pki renew coordinator --force --dir /etc/apiary --owner apiary {short}")
    server.ssh(f"apiary pki renew broker --force --dir /etc/mosquitto/apiary --owner mosquitto {short}")
    ends_at = time.monotonic() + 0.001 * 86_400
    due = ((pi, "apiary-renew", "/etc/apiary"), (server, "apiary-renew", "/etc/apiary"),
           (server, "apiary-renew-broker", "/etc/mosquitto/apiary"))  # fmt: skip

    def read() -> list[str]:
        return [machine.ssh(f"cat {folder}/tls/cert.pem").stdout for machine, _, folder in due]

    before = read()
    shown = ssl.PEM_cert_to_DER_cert(before[-1])
    until("the broker shows the certificate that ends", lambda: _shown(server) == shown, 10)
    # Its own port: the same as long as the connection is the same.
    connected = f"ss -Htn state established dst {server.address} dport = :8883 | awk '{{print $3}}'"
    links = pi.ssh(connected).stdout
    for machine, unit, _ in due:
        fire(machine, unit)
    until("all three are renewed", lambda: all(a != b for a, b in zip(read(), before, strict=True)), 60)
    until("the broker shows its new certificate", lambda: _shown(server) != shown, 20)
    assert pi.ssh(connected).stdout == links, "the renewal cut the node's connection"
    time.sleep(max(0.0, ends_at - time.monotonic()) + 1)
    # From here on whoever gets in, or signs, does so with what the timers brought.
    assert len(fleet.finished(run)) == 8
    server.ssh(f"ss -K dst {pi.address} sport = :8883 >/dev/null 2>&1", check=False)
    until("pi-1 comes back with it", lambda: pi.ssh(connected).stdout not in ("", links), 60)
    after = fleet.finished(fleet.start("after", rounds=2, nodes=3))
    assert all("pi-1" in r["contributors"] for r in after), after
    for machine, unit in _services(fleet):
        told = machine.ssh(f"systemctl show {unit} -p ActiveEnterTimestampMonotonic,NRestarts").stdout
        assert told == since[unit], f"{unit} was restarted: {since[unit]} {told}"
    return "in a run: no service restarted, no link cut; and a run after the old ones had ended"


def _services(fleet: Fleet) -> tuple[tuple[Machine, str], ...]:
    return (
        (fleet.pis["pi-1"], "apiary-edge"),
        (fleet.server, "apiary-coordinator"),
        (fleet.server, "mosquitto"),
        (fleet.server, "apiary-enrolment"),
    )


def fire(machine: Machine, unit: str) -> None:
    """Let a timer fire now instead of at some time of the day."""
    now = "[Timer]\nOnActiveSec=1s\nAccuracySec=1s\nRandomizedDelaySec=0\n"
    folder = f"/run/systemd/system/{unit}.timer.d"
    machine.ssh(f"mkdir -p {folder}")
    machine.put(f"{folder}/now.conf", now)
    machine.ssh(f"systemctl daemon-reload && systemctl restart {unit}.timer && rm -r {folder}")


def _shown(server: Machine) -> bytes:
    """The certificate that the broker shows to who connects."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((server.address, 8883), 5) as raw,
        context.wrap_socket(raw) as link,
    ):
        return link.getpeercert(binary_form=True) or b""
