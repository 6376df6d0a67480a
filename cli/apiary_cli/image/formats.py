"""The files that Raspberry Pi OS reads at its first start: cloud-init's (Trixie), `custom.toml` (Bookworm).

Pure. cloud-init reads YAML, of which JSON is a part: so no name or key can break out of its quotes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from apiary_cli.image.first_boot import BOOT, FOLDER, RUN_ONCE
from apiary_cli.image.plan import CardPlan


def user_data(plan: CardPlan) -> str:
    """cloud-init's user-data: host name, a user with keys and no password, and the first-boot unit."""
    unit = f"{BOOT}/{FOLDER}/apiary-first-boot.service"
    told: dict[str, Any] = {
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
    return "#cloud-config\n" + json.dumps(told, indent=2) + "\n"


def network_config(plan: CardPlan) -> str:
    """cloud-init's network-config, version 2 (netplan's)."""
    told: dict[str, Any] = {
        "version": 2,
        "ethernets": {"eth0": {"dhcp4": True, "optional": True}},
    }
    if (wifi := plan.wifi) is not None:
        told["wifis"] = {
            "wlan0": {
                "dhcp4": True,
                "optional": True,
                "regulatory-domain": wifi.country,
                "access-points": {wifi.ssid: {"password": wifi.key}},
            }
        }
    return json.dumps({"network": told}, indent=2) + "\n"


def meta_data(plan: CardPlan) -> str:
    """cloud-init's meta-data; another token is another instance, for which it does its work once more."""
    instance = hashlib.sha256(f"{plan.name}/{plan.token}".encode()).hexdigest()[:12]
    return json.dumps({"instance-id": f"apiary-{plan.name}-{instance}", "local-hostname": plan.name}) + "\n"


def custom_toml(plan: CardPlan) -> str:
    """Bookworm's first-boot settings."""
    told: dict[str, Any] = {
        "config_version": 1,
        "system": {"hostname": plan.name},
        # No hash has one character: nobody logs in by password.
        "user": {"name": plan.user, "password": "!", "password_encrypted": True},
        "ssh": {"enabled": True, "password_authentication": False, "authorized_keys": list(plan.ssh_keys)},
        "locale": {"keymap": "us", "timezone": plan.timezone},
    }
    if (wifi := plan.wifi) is not None:
        told["wlan"] = {
            "ssid": wifi.ssid,
            "password": wifi.key,
            "password_encrypted": True,
            "hidden": False,
            "country": wifi.country,
        }
    return toml(told)


def command_line(before: str) -> str:
    """Bookworm's cmdline.txt with the hand-over to our unit; the same once more changes nothing."""
    words = [w for w in before.split() if not w.startswith("systemd.run") and "kernel-command-line" not in w]
    return " ".join([*words, RUN_ONCE]) + "\n"


def toml(values: Mapping[str, Any]) -> str:
    """TOML of texts, numbers, lists and tables."""
    lines: list[str] = []

    def table(path: tuple[str, ...], entries: Mapping[str, Any]) -> None:
        plain = {k: v for k, v in entries.items() if not isinstance(v, Mapping)}
        if path and (plain or not entries):
            lines.append(f"\n[{'.'.join(_key(p) for p in path)}]")
        lines.extend(f"{_key(k)} = {_value(v)}" for k, v in plain.items())
        for key, inner in entries.items():
            if isinstance(inner, Mapping):
                table((*path, key), inner)

    table((), values)
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(key: str) -> str:
    return key if key.replace("_", "a").replace("-", "a").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else _text(value)


def _text(value: str) -> str:
    # As JSON has it; beyond U+FFFF JSON would write a pair that TOML does not know, so nothing is escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
