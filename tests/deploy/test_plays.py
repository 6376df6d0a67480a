"""The plays without hosts: their syntax, what the templates give, and what systemd thinks of the units."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from apiary.settings import load_settings
from apiary_cli.image import first_boot

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
LINTER = PLAYBOOK.with_name("ansible-lint")
PLAYS = ["site.yml", "verify.yml", "revoke.yml", "decommission.yml", "backup.yml", "restore.yml"]
ROLES = tuple(f"{folder.name}_" for folder in DEPLOY.glob("roles/*"))
OLDER = "/srv/dist/apiary-0.1.0-py3-none-any.whl"
"""A wheel of before the distribution was named apiary-fl."""
SECRET_LOOKING = 'a "quoted" \\ word, ä'

pytestmark = pytest.mark.skipif(not PLAYBOOK.exists(), reason="ansible-core is not installed")


def ansible(*words: str | Path, code: int = 0, **more: str) -> str:
    """Run a playbook, which must end with `code`; what it said, its lines joined."""
    environment = os.environ | {"ANSIBLE_CONFIG": str(DEPLOY / "ansible.cfg"), "LC_ALL": "C.UTF-8"} | more
    done = subprocess.run(
        [PLAYBOOK, *words], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def test_the_plays_are_well_formed() -> None:
    ansible("--syntax-check", "-i", DEPLOY / "inventory.example", *(DEPLOY / play for play in PLAYS))


def test_the_example_names_no_setting_that_is_not_there() -> None:
    """A variable that no role knows would be ignored in silence."""
    known = "".join(f.read_text() for f in DEPLOY.glob("roles/*/defaults/main.yml"))
    given = "".join(f.read_text() for f in (DEPLOY / "inventory.example").rglob("*.yml"))
    names = {line.strip().split(":")[0] for line in given.splitlines() if ":" in line and "#" not in line}
    for name in sorted(n for n in names if n.startswith(ROLES)):
        assert f"\n{name}:" in known, name


@pytest.mark.parametrize("role", sorted(p.name for p in DEPLOY.glob("roles/*")))
def test_a_role_checks_what_it_takes_and_takes_what_it_says(role: str) -> None:
    """`meta/argument_specs.yml` and `defaults/main.yml`: the same variables with the same defaults."""
    folder = DEPLOY / "roles" / role
    defaults = yaml.safe_load((folder / "defaults/main.yml").read_text())
    specs = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert list(options) == list(defaults)
    for name, option in options.items():
        assert name.startswith(f"{role}_"), name
        assert type(option["default"]) is type(defaults[name]) and option["default"] == defaults[name], name
        kinds = {"str": str, "int": int, "float": float | int, "bool": bool, "list": list, "dict": dict}
        assert isinstance(defaults[name], kinds[option["type"]]), name
        assert option["type"] != "list" or option["elements"], name
        assert len(option["description"]) > 10, name
        assert option["default"] in option.get("choices", [option["default"]]), name


@pytest.mark.parametrize("role", sorted(p.name for p in DEPLOY.glob("roles/*")))
def test_no_variable_of_a_role_is_without_effect(role: str) -> None:
    said = {"defaults", "inventory.example"}
    files = [f for f in DEPLOY.rglob("*") if f.suffix in (".yml", ".j2") and not said & set(f.parts)]
    used = "".join(f.read_text() for f in files if f.name != "argument_specs.yml")
    for name in yaml.safe_load((DEPLOY / "roles" / role / "defaults/main.yml").read_text()):
        assert re.search(rf"\b{name}\b", used), name


def test_installed_files_call_sub_commands_and_no_module() -> None:
    """A module moves; a unit that names it would outlive it on the hosts."""
    written = {"first_boot": first_boot.UNIT + first_boot.FIRST_RUN + first_boot._SCRIPT}
    written |= {str(f): f.read_text() for f in DEPLOY.rglob("*") if f.is_file()}
    assert [name for name, text in written.items() if re.search(r"-m[ ',\"]+apiary", text)] == []


def fleet_of(folder: Path, **groups: list[str]) -> Path:
    """Hosts of which none must be reached."""
    children = {group: {"hosts": dict.fromkeys(hosts)} for group, hosts in groups.items()}
    file = folder / "fleet.yml"
    file.write_text(json.dumps({"all": {"children": children}}))
    return file


@pytest.mark.parametrize(
    "wrong", [{"authority": []}, {"coordinator": ["a", "b"]}, {"coordinator": []}, {"broker": []}]
)
def test_an_inventory_that_is_no_fleet_is_refused_before_any_host_is_reached(
    wrong: dict[str, list[str]], tmp_path: Path
) -> None:
    good = {"authority": ["a"], "broker": ["a"], "coordinator": ["a"], "edge": ["pi-1"]}
    said = ansible("-i", fleet_of(tmp_path, **good | wrong), DEPLOY / "restore.yml", code=2)
    assert "expected one host in each of these groups" in said


@pytest.mark.parametrize("name", ["pi 7", "-pi", "pi/7", "pï", "p" * 65])
def test_a_name_that_no_topic_may_carry_is_refused_before_anything_is_installed(
    name: str, tmp_path: Path
) -> None:
    fleet = fleet_of(tmp_path, authority=["a"], broker=["a"], coordinator=["a"], edge=["p" * 64, name])
    said = ansible("-i", fleet, DEPLOY / "site.yml", "-e", "ansible_connection=local", code=2)
    assert f"{name}: expected names of 1 to 64 letters" in said.replace("\\u00ef", "ï")


def test_revoking_without_the_authority_fails(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, authority=["a"], broker=["a"], coordinator=["a"], edge=["pi-1"])
    said = ansible("-i", fleet, DEPLOY / "revoke.yml", "-e", "party=pi-1", "--limit", "pi-1", code=2)
    assert "a must be reached" in said


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the roles would write on a server and on a Pi with a camera, all defaults as they are."""
    out = tmp_path_factory.mktemp("rendered")
    program = out / "opt/venv/bin/apiary"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    inventory = {
        "all": {
            "children": {g: {"hosts": {"server": {}}} for g in ("authority", "broker", "coordinator")}
            | {"edge": {"hosts": {"pi-1": {"edge_camera": "picamera2"}}}},
            "vars": {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "common_prefix": str(out / "opt"),
                "coordinator_settings": {"run": {"rounds": 7, "recipe_options": {"size": 16}},
                                         "operator": {"name": "ann"},
                                         "publish": {"after_run": ["directory"]}},
                "edge_settings": {"edge": {"store": {"max_mb": 100}, "capture": {"hours": ["08:00-18:00"]}},
                                  "broker": {"password": SECRET_LOOKING}},
                "edge_data_dir": "/srv/pictures",
                "broker_conf": str(DEPLOY.parent / "broker/mosquitto.conf"),
                "wheel": {"version": "1", "tag": "1-0", "file": "apiary_fl-1-none.whl", "sha256": "0"},
                # Nothing is prepared on this machine: the roles' variables are wanted, not their work.
                "common_prepared": True,
                "common_architecture": {"stdout": "amd64"},
            },
        }
    }  # fmt: skip

    def task(role: str, template: str, dest: str, **values: Any) -> dict[str, Any]:
        source = DEPLOY / "roles" / role / "templates" / template
        return {
            "template": {"src": str(source), "dest": str(out / dest)},
            "vars": values | {"role_path": str(DEPLOY / "roles" / role)},
        }

    def play(host: str, role: str, *tasks: dict[str, Any]) -> dict[str, Any]:
        read = [{"import_role": {"name": name, "tasks_from": "nothing"}} for name in ("common", role)]
        return {"hosts": host, "gather_facts": False, "tasks": [*read, *tasks]}

    def settings(role: str) -> str:
        return f"{{{{ {role}_base_settings | combine({role}_settings, recursive=true) }}}}"

    parts = "common_operator_settings, authority_own_settings"
    operator = f"{{{{ common_base_settings | combine({parts}, recursive=true) }}}}"
    renewal = {"common_service": "apiary-renew", "common_identity_role": "node",
               "common_capabilities": "CAP_CHOWN CAP_DAC_READ_SEARCH",
               "common_enrolment_url": "https://server:8443"}  # fmt: skip
    plays = [
        play("server", "coordinator",
             task("coordinator", "apiary-coordinator.service.j2", "apiary-coordinator.service",
                  common_service="apiary-coordinator"),
             task("coordinator", "apiary-coordinator.service.j2", "elsewhere.service",
                  common_service="apiary-coordinator", common_state_dir="/srv/apiary",
                  coordinator_environment={"PROXY": SECRET_LOOKING, "SHARE": "10%h"}),
             task("common", "apiary.toml.j2", "coordinator.toml", common_settings=settings("coordinator"))),
        play("server", "authority",
             task("authority", "apiary-enrolment.service.j2", "apiary-enrolment.service",
                  common_service="apiary-enrolment", common_service_user="root",
                  common_service_home="/var/lib/apiary-pki",
                  common_service_config="/etc/apiary/operator.toml"),
             task("common", "apiary.toml.j2", "operator.toml", common_settings=operator),
             task("common", "apiary.toml.j2", "closed.toml", common_settings=operator,
                  authority_old_chunk_topics=False)),
        play("server", "broker",
             task("broker", "mosquitto.conf.j2", "mosquitto.conf"),
             task("broker", "mosquitto.service.conf.j2", "mosquitto.service.conf"),
             task("broker", "mosquitto.conf.j2", "older.conf", common_wheel_file=OLDER),
             task("broker", "mosquitto.service.conf.j2", "older.service.conf", common_wheel_file=OLDER)),
        play("pi-1", "edge",
             task("edge", "apiary-edge.service.j2", "apiary-edge.service", common_service="apiary-edge"),
             task("common", "apiary-renew.service.j2", "apiary-renew.service", **renewal),
             task("common", "apiary-renew.timer.j2", "apiary-renew.timer", **renewal),
             task("common", "nftables.nft.j2", "usual.nft", common_firewall=True),
             task("common", "nftables.nft.j2", "moved.nft", common_firewall=True, ansible_port=2222),
             task("common", "nftables.nft.j2", "forwarded.nft", common_firewall=True, ansible_port=20001,
                  ansible_facts={"env": {"SSH_CONNECTION": "192.0.2.9 50022 10.0.0.7 2200"}}),
             task("common", "apiary-renew.service.j2", "ipv6.service",
                  **{k: v for k, v in renewal.items() if k != "common_enrolment_url"},
                  common_enrolment_address="fd00::5"),
             task("common", "apiary-renew.service.j2", "bracketed.service",
                  **{k: v for k, v in renewal.items() if k != "common_enrolment_url"},
                  common_enrolment_address="[fd00::5]"),
             task("common", "apiary.toml.j2", "edge.toml", common_settings=settings("edge")),
             task("common", "apiary.toml.j2", "page.toml", common_settings=settings("edge"),
                  edge_page=True, ansible_host="pi-1.local"),
             task("common", "apiary.toml.j2", "without-pages.toml", common_settings=settings("edge"),
                  edge_page=True, ansible_host="pi-1.local", edge_defaults={"rc": 0, "stdout": "[edge]"}),
             task("common", "apiary.toml.j2", "numbered.toml", common_settings=settings("edge"),
                  edge_page=True, edge_page_port=4999, ansible_host="10.0.0.7"),
             task("common", "nftables.nft.j2", "page.nft", common_firewall=True, edge_page=True,
                  edge_page_networks=["192.168.1.0/24", "fd00::/64"])),
    ]  # fmt: skip
    (out / "hosts.json").write_text(json.dumps(inventory))
    (out / "hosts.json").rename(out / "hosts.yml")
    (out / "play.yml").write_text(json.dumps(plays))
    ansible("-i", out / "hosts.yml", out / "play.yml", ANSIBLE_ROLES_PATH=str(DEPLOY / "roles"))  # fmt: skip
    return out


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", ["apiary-coordinator", "apiary-edge", "apiary-enrolment", "apiary-renew"])
def test_systemd_takes_the_units_and_finds_them_guarded(rendered: Path, unit: str) -> None:
    file = rendered / f"{unit}.service"
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False
    )
    assert str(file) not in verified.stderr and f"{unit}.service:" not in verified.stderr, verified.stderr
    # An exposure of 2.5 of 10; a unit without any of this has 9.6.
    guarded = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert guarded.returncode == 0, guarded.stdout[-600:] + guarded.stderr


def test_a_service_may_write_its_places_wherever_they_are(rendered: Path) -> None:
    """systemd makes StateDirectory= below /var/lib and nowhere else; what is not named is read-only."""
    usual = (rendered / "apiary-coordinator.service").read_text().splitlines()
    assert "StateDirectory=apiary" in usual
    elsewhere = (rendered / "elsewhere.service").read_text().splitlines()
    assert "ReadWritePaths=/srv/apiary" in elsewhere
    assert not [line for line in elsewhere if line.startswith("StateDirectory=")]


def test_variables_of_the_environment_reach_the_coordinator_as_they_were_given(rendered: Path) -> None:
    """Quoted, as systemd.syntax(7) has it, and with no specifier for systemd to replace."""
    lines = (rendered / "elsewhere.service").read_text().splitlines()
    assert r'''Environment="PROXY=a \"quoted\" \\ word, \u00e4"''' in lines
    assert 'Environment="SHARE=10%%h"' in lines


def test_the_settings_are_toml_that_apiary_takes(rendered: Path) -> None:
    coordinator = load_settings(rendered / "coordinator.toml").settings
    assert coordinator.run.rounds == 7
    assert coordinator.run.recipe_options == {"size": 16}
    assert coordinator.publish.after_run == ["directory"]
    assert coordinator.broker.tls and coordinator.broker.port == 8883
    edge = load_settings(rendered / "edge.toml").settings
    assert edge.edge.node_id == "pi-1"
    assert edge.edge.camera.kind == "picamera2"
    assert edge.edge.store.max_mb == 100
    assert edge.edge.capture.hours == ["08:00-18:00"]
    told = tomllib.loads((rendered / "edge.toml").read_text())
    assert told["broker"]["password"] == SECRET_LOOKING


def test_the_pages_are_served_where_the_inventory_says_so(rendered: Path) -> None:
    off, named, numbered = (
        load_settings(rendered / f"{x}.toml").settings.edge for x in ("edge", "page", "numbered")
    )
    assert not off.serves_pages and "page" not in tomllib.loads((rendered / "edge.toml").read_text())["edge"]
    assert named.serves_pages and not named.predict.enabled
    assert (named.page.host, named.page.port, named.page.names) == ("lan", 4912, ["pi-1.local"])
    assert (numbered.page.port, numbered.page.names) == (4999, [])
    older = tomllib.loads((rendered / "without-pages.toml").read_text())
    assert "page" not in older["edge"], "a version without pages refuses their settings"


def test_the_pages_are_let_through_for_the_owners_networks_alone(rendered: Path) -> None:
    lines = [x.strip() for x in (rendered / "page.nft").read_text().splitlines() if "4912" in x]
    assert lines == [
        "ip saddr 192.168.1.0/24 tcp dport 4912 accept",
        "ip6 saddr fd00::/64 tcp dport 4912 accept",
    ]
    assert "4912" not in (rendered / "usual.nft").read_text()


def test_the_old_topics_of_chunks_are_closed_where_the_inventory_says_so(rendered: Path) -> None:
    usual, closed = (load_settings(rendered / f"{x}.toml").settings.pki for x in ("operator", "closed"))
    assert (usual.old_chunk_topics, closed.old_chunk_topics) == (None, False)


def test_the_broker_lets_nobody_in_without_a_certificate(rendered: Path) -> None:
    lines = (rendered / "mosquitto.conf").read_text().splitlines()
    assert [line for line in lines if line.startswith("listener")] == ["listener 8883"]
    assert "allow_anonymous true" not in lines
    assert "require_certificate true" in lines


def test_the_packet_filter_lets_in_ssh_where_the_inventory_has_it(rendered: Path) -> None:
    def ports(name: str) -> set[int]:
        (line,) = [x for x in (rendered / name).read_text().splitlines() if "tcp dport {" in x]
        return {int(port) for port in line[line.index("{") + 1 : line.index("}")].split(",")}

    assert ports("usual.nft") == {22}
    assert ports("moved.nft") == {22, 2222}
    assert ports("forwarded.nft") == {22, 20001, 2200}


def test_an_ipv6_address_of_the_enrolment_service_is_a_url(rendered: Path) -> None:
    for name in ("ipv6", "bracketed"):
        assert "https://[fd00::5]:8443" in (rendered / f"{name}.service").read_text()
    assert "https://server:8443" in (rendered / "apiary-renew.service").read_text()


def test_the_brokers_memory_is_bounded(rendered: Path) -> None:
    lines = (rendered / "mosquitto.conf").read_text().splitlines()
    assert [line for line in lines if line.startswith("memory_limit")] == [f"memory_limit {512 * 2**20}"]


def test_the_brokers_log_is_filtered_by_wheels_that_can(rendered: Path) -> None:
    unit, conf = (rendered / f"mosquitto{kind}.conf" for kind in (".service", ""))
    assert f"{rendered}/opt/venv/bin/apiary broker-log /etc/mosquitto/apiary/acl.conf" in unit.read_text()
    assert "log_type debug" in conf.read_text()
    older_unit, older_conf = (rendered / f"older{kind}.conf" for kind in (".service", ""))
    assert "broker-log" not in older_unit.read_text() and "log_type debug" not in older_conf.read_text()


@pytest.mark.skipif(not LINTER.exists(), reason="pip install -r deploy/requirements.txt")
def test_the_plays_pass_the_production_profile() -> None:
    done = subprocess.run(
        [LINTER, "--offline", "--profile", "production"],
        cwd=DEPLOY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
