"""The script that a Pi runs once it has a network and the right time, and the units around it.

It may be cut at any line and runs again from the start: each step looks whether it is done. The folder on the
boot partition, with the token in it, goes at the end.
"""

import shlex
from typing import Final

from apiary_cli.image.plan import CardPlan

BOOT: Final = "/boot/firmware"
FOLDER: Final = "apiary"
"""On the boot partition."""

UNIT: Final = f"""[Unit]
Description=Apiary: join the fleet at the first start
Wants=network-online.target systemd-time-wait-sync.service
# A Pi has no clock that runs without power, and certificates do not hold in the wrong year.
After=network-online.target time-sync.target
ConditionPathExists={BOOT}/{FOLDER}/first-boot.sh
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/bin/sh {BOOT}/{FOLDER}/first-boot.sh
Restart=on-failure
RestartSec=30
TimeoutStartSec=45min

[Install]
WantedBy=multi-user.target
"""

# How Bookworm, which has no cloud-init, comes to start the unit: its kernel command line names this script.
FIRST_RUN: Final = f"""#!/bin/sh
# Runs once, before there is a network: hands over to apiary-first-boot.service, which waits for one.
set -eu
cp {BOOT}/{FOLDER}/apiary-first-boot.service /etc/systemd/system/
systemctl enable apiary-first-boot.service
sed -i 's| systemd\\.run[^ ]*||g; s| systemd\\.unit=kernel-command-line\\.target||g' {BOOT}/cmdline.txt
"""
RUN_ONCE: Final = (
    f"systemd.run={BOOT}/{FOLDER}/first-run.sh systemd.run_success_action=reboot "
    "systemd.unit=kernel-command-line.target"
)

HARDENING: Final = """NoNewPrivileges=yes
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
PrivateTmp=yes
"""
"""What no unit on a node needs: as deploy/roles/common/templates/hardening.j2, a test says so."""

_SCRIPT: Final = """#!/bin/sh
# Made by `apiary image`. Installs Apiary, joins the fleet, starts the node; then goes, token and all.
set -eu
BOOT="${FIRST_BOOT_FOLDER:-@BOOT@}"
ROOT="${FIRST_BOOT_ROOT:-}"
NAME=@NAME@
WHEEL=@WHEEL@
URL=@URL@
SHA256=@SHA256@
ENROLMENT=@ENROLMENT@
CA_SHA256=@CA_SHA256@

# Debian's own upgrades hold the lock for minutes after a boot.
APT="apt-get -o DPkg::Lock::Timeout=600"
say() { echo "apiary first boot: $*"; }

say "user and folders"
id apiary >/dev/null 2>&1 || useradd --system --home-dir /var/lib/apiary --shell /usr/sbin/nologin apiary
usermod --append --groups video apiary
install -d -m 0755 "$ROOT/etc/apiary" "$ROOT/opt/apiary/venvs" "$ROOT/usr/local/bin"
install -d -m 0750 -o apiary -g apiary "$ROOT/var/lib/apiary"
cp "$BOOT/apiary.toml" "$ROOT/etc/apiary/apiary.toml"

# As Ansible lays it out, so that its play may take this host over: an environment a version, a link to one.
VENV="$ROOT/opt/apiary/venvs/card"
if [ ! -x "$VENV/bin/apiary" ]; then
    say "installing $WHEEL"
    python3 -c 'import ensurepip' 2>/dev/null || { $APT update -q && $APT install -yq python3-venv; }
    [ -x "$VENV/bin/pip" ] || python3 -m venv --system-site-packages "$VENV"
    FILE="$BOOT/$WHEEL"
    if [ -n "$URL" ]; then
        FILE="$ROOT/opt/apiary/$WHEEL"
        curl --fail --silent --show-error --location --max-time 600 --output "$FILE" "$URL"
    fi
    [ -z "$SHA256" ] || echo "$SHA256  $FILE" | sha256sum --check --quiet
    # The versions that the wheel was tested with, for this Python; a 32-bit system takes what its index has.
    CONSTRAINTS="$ROOT/opt/apiary/constraints.txt"
    python3 -c 'import sys, zipfile
files, name = zipfile.ZipFile(sys.argv[1]), "apiary/constraints/py%d%d.txt" % sys.version_info[:2]
if sys.maxsize > 2**32 and name in files.namelist():
    sys.stdout.write(files.read(name).decode())' "$FILE" > "$CONSTRAINTS"
    "$VENV/bin/pip" install --quiet --only-binary :all: --constraint "$CONSTRAINTS" @PIP@ "$FILE[edge]"
fi
ln -sfn venvs/card "$ROOT/opt/apiary/venv"
cat > "$ROOT/usr/local/bin/apiary" <<'COMMAND'
#!/bin/sh
# The command with this node's settings: `sudo -u apiary apiary edge status`.
export APIARY_CONFIG="${APIARY_CONFIG:-/etc/apiary/apiary.toml}"
exec /opt/apiary/venv/bin/apiary "$@"
COMMAND
chmod 0755 "$ROOT/usr/local/bin/apiary"

if [ ! -f "$ROOT/etc/apiary/signing/cert.pem" ]; then
    say "joining as $NAME"
    "$VENV/bin/apiary" pki join "$ENROLMENT" --name "$NAME" --token-file "$BOOT/token" \\
        --ca-sha256 "$CA_SHA256" --dir "$ROOT/etc/apiary" --owner apiary --wait 600
fi

say "services"
cat > "$ROOT/etc/systemd/system/apiary-edge.service" <<'UNIT'
[Unit]
Description=Apiary node
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
User=apiary
SupplementaryGroups=video
RuntimeDirectory=apiary-edge
RuntimeDirectoryMode=0750
Environment=HOME=/var/lib/apiary
Environment=PYTHONUNBUFFERED=1
Environment=APIARY_CONFIG=/etc/apiary/apiary.toml
WorkingDirectory=/var/lib/apiary
ExecStart=/opt/apiary/venv/bin/apiary edge
SuccessExitStatus=143
Restart=always
RestartSec=5
RestartPreventExitStatus=2
WatchdogSec=120
Nice=10
OOMPolicy=continue
ReadWritePaths=/var/lib/apiary
CapabilityBoundingSet=
@HARDENING@# With these the node confines the programs of releases further than itself.
SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self
[Install]
WantedBy=multi-user.target
UNIT
cat > "$ROOT/etc/systemd/system/apiary-renew.service" <<UNIT
[Unit]
Description=Apiary: renew certificates where they are due
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=20h
StartLimitBurst=4

[Service]
Type=oneshot
ExecStart=/opt/apiary/venv/bin/apiary pki renew --url $ENROLMENT --dir /etc/apiary --owner apiary
Restart=on-failure
RestartSec=15min
TimeoutStartSec=120
ReadWritePaths=/etc/apiary
PrivateDevices=yes
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_READ_SEARCH
@HARDENING@UNIT
cat > "$ROOT/etc/systemd/system/apiary-renew.timer" <<'UNIT'
[Unit]
Description=Apiary: renew certificates where they are due

[Timer]
OnCalendar=daily
OnBootSec=2min
RandomizedDelaySec=6h
Persistent=true

[Install]
WantedBy=timers.target
UNIT
systemctl daemon-reload
# At later boots too, time-sync.target is to mean that the clock is set.
systemctl enable systemd-time-wait-sync.service || say "the node does not wait for the clock"
systemctl enable --now apiary-renew.timer
systemctl enable --now apiary-edge.service
systemctl disable apiary-first-boot.service
rm -rf "$BOOT"
say "done"
"""


def script(plan: CardPlan) -> str:
    """`first-boot.sh` for one card."""
    values = {
        "BOOT": f"{BOOT}/{FOLDER}",
        "NAME": shlex.quote(plan.name),
        "WHEEL": shlex.quote(plan.package.wheel),
        "URL": shlex.quote(plan.package.url or ""),
        "SHA256": shlex.quote(plan.package.sha256 or ""),
        "ENROLMENT": shlex.quote(plan.enrolment_url),
        "CA_SHA256": shlex.quote(plan.ca_sha256),
        "HARDENING": HARDENING,
        "PIP": '--no-index --find-links "$BOOT"' if plan.package.offline else "",
    }
    text = _SCRIPT
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
