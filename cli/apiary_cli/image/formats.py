"""The files that Raspberry Pi OS reads at its first start: cloud-init's (Trixie), `custom.toml` (Bookworm).

Pure. cloud-init reads YAML, of which JSON is a part: so no name or key can break out of its quotes.
"""

import hashlib
import json
from typing import Any

from apiary.settings import to_toml
from apiary_cli.image.first_boot import BOOT, FOLDER, RUN_ONCE
from apiary_cli.image.plan import CardPlan


def user_data(plan: CardPlan) -> str:
    """cloud-init's user-data: host name, a user with keys and no password, and the first-boot unit."""
    unit = f"{BOOT}/{FOLDER}/apiary-first-boot.service"
    config: dict[str, Any] = {
        "hostname": plan.name,
        "manage_etc_hosts": True,
        "timezone": plan.timezone,
        "users": [
            {
                "name": plan.user,
                "gecos": "Administrator",
                "groups": "users,adm,sudo,video",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": list(plan.ssh_keys),
            }
        ],
        "ssh_pwauth": False,
        "disable_root": True,
        "runcmd": [
            # Raspberry Pi OS leaves the server off.
            ["systemctl", "enable", "--now", "ssh"],
            ["cp", unit, "/etc/systemd/system/"],
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "apiary-first-boot.service"],
            # Not waited for: it waits for the time, and cloud-init must come to its end.
            ["systemctl", "start", "--no-block", "apiary-first-boot.service"],
        ],
    }
    return "#cloud-config\n" + json.dumps(config, indent=2) + "\n"


def network_config(plan: CardPlan) -> str:
    """cloud-init's network-config, version 2 (netplan's)."""
    network: dict[str, Any] = {
        "version": 2,
        "ethernets": {"eth0": {"dhcp4": True, "optional": True}},
    }
    if (wifi := plan.wifi) is not None:
        network["wifis"] = {
            "wlan0": {
                "dhcp4": True,
                "optional": True,
                "regulatory-domain": wifi.country,
                "access-points": {wifi.ssid: {"password": wifi.key}},
            }
        }
    return json.dumps({"network": network}, indent=2) + "\n"


def meta_data(plan: CardPlan) -> str:
    """cloud-init's meta-data; another token is another instance, for which it does its work once more."""
    instance = hashlib.sha256(f"{plan.name}/{plan.token}".encode()).hexdigest()[:12]
    return json.dumps({"instance-id": f"apiary-{plan.name}-{instance}", "local-hostname": plan.name}) + "\n"


def custom_toml(plan: CardPlan) -> str:
    """Bookworm's first-boot settings."""
    values: dict[str, Any] = {
        "config_version": 1,
        "system": {"hostname": plan.name},
        # No hash has one character: nobody logs in by password.
        "user": {"name": plan.user, "password": "!", "password_encrypted": True},
        "ssh": {"enabled": True, "password_authentication": False, "authorized_keys": list(plan.ssh_keys)},
        "locale": {"keymap": "us", "timezone": plan.timezone},
    }
    if (wifi := plan.wifi) is not None:
        values["wlan"] = {
            "ssid": wifi.ssid,
            "password": wifi.key,
            "password_encrypted": True,
            "hidden": False,
            "country": wifi.country,
        }
    return to_toml(values)


def command_line(before: str) -> str:
    """Bookworm's cmdline.txt with the hand-over to our unit; the same once more changes nothing."""
    words = [w for w in before.split() if not w.startswith("systemd.run") and "kernel-command-line" not in w]
    return " ".join([*words, RUN_ONCE]) + "\n"
