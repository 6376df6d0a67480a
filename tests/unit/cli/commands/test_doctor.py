from __future__ import annotations

import argparse
import io
import json
import os
import socket
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from apiary.bus.broker import find_mosquitto, start_broker
from apiary.settings import load_settings
from apiary_cli.checks import broker as broker_check
from apiary_cli.checks import machine
from apiary_cli.checks import pictures as checks
from apiary_cli.checks.machine import Check
from apiary_cli.commands import doctor
from apiary_edge.samples.model import Incoming
from apiary_edge.samples.store import SampleStore


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in [k for k in os.environ if k.startswith("APIARY_")]:
        monkeypatch.delenv(key)


def pictures(folder: Path, **counts: int) -> Path:
    for label, n in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (4, 4), i).save(folder / label / f"{i}.png")
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def by_name(found: list[Check]) -> dict[str, Check]:
    return {c.name: c for c in found}


def broker_checks(port: int, **more: object) -> dict[str, Check]:
    overrides = {"broker.port": port, **{k.replace("__", "."): v for k, v in more.items()}}
    return by_name(broker_check.broker(load_settings(overrides=overrides).settings))


needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.mark.broker
@needs_mosquitto
def test_a_good_broker(tmp_path: Path) -> None:
    with start_broker(0, state_dir=tmp_path / "b", prefer="mosquitto") as broker:
        found = broker_checks(broker.port)
    assert {n: c.state for n, c in found.items()} == {"broker": "ok", "round trip": "ok", "chunk": "ok"}
    assert "MQTT 5" in found["broker"].what


@pytest.mark.broker
@needs_mosquitto
def test_a_broker_that_takes_no_chunks_is_found_out(tmp_path: Path) -> None:
    conf = tmp_path / "small.conf"
    conf.write_text("allow_anonymous true\nmax_packet_size 50000\n")
    with start_broker(0, state_dir=tmp_path / "b", prefer="mosquitto", conf=conf) as broker:
        found = broker_checks(broker.port)
    assert found["broker"].state == "fail"
    assert "50000" in found["broker"].what
    assert "max_packet_size" in found["broker"].mend


@pytest.mark.broker
@needs_mosquitto
def test_wrong_access_lists_are_found_out(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read $SYS/#\n")
    acl.chmod(0o644)
    conf = tmp_path / "acl.conf"
    conf.write_text(f"allow_anonymous true\nacl_file {acl}\n")
    with start_broker(0, state_dir=tmp_path / "b", prefer="mosquitto", conf=conf) as broker:
        found = broker_checks(broker.port, edge__node_id="pi-07")
    assert found["round trip"].state != "ok"
    assert "apiary/default/node/pi-07/doctor" in found["round trip"].mend
    assert "chunk" not in found


@pytest.mark.broker
@needs_mosquitto
def test_a_coordinator_is_tried_where_it_has_rights(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite apiary/+/metric/+\n")
    acl.chmod(0o644)
    conf = tmp_path / "acl.conf"
    conf.write_text(f"allow_anonymous true\nacl_file {acl}\n")
    with start_broker(0, state_dir=tmp_path / "b", prefer="mosquitto", conf=conf) as broker:
        settings = load_settings(overrides={"broker.port": broker.port}).settings
        found = by_name(broker_check.broker(settings, coordinator=True))
    assert {n: c.state for n, c in found.items()} == {"broker": "ok", "round trip": "ok", "chunk": "ok"}


@pytest.mark.broker
def test_the_embedded_broker_gets_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("amqtt")
    with start_broker(0, state_dir=tmp_path / "b", prefer="amqtt") as broker:
        found = broker_checks(broker.port)
    assert {n: c.state for n, c in found.items()} == {"broker": "warn", "round trip": "ok", "chunk": "ok"}
    assert "in silence" in found["broker"].mend


def test_no_broker() -> None:
    found = broker_checks(free_port())
    assert found["broker"].state == "fail"
    assert "refused" in found["broker"].what
    assert "apiary broker" in found["broker"].mend


def test_a_password_file_that_is_not_there() -> None:
    found = broker_checks(free_port(), broker__username="pi", broker__password_file="gone.txt")
    assert "password_file gone.txt: No such file" in found["broker"].what


def test_python() -> None:
    assert machine.python().state == "ok"
    assert machine.python((3, 10, 4)) == Check(
        "python", "fail", "Python 3.10.4", "install Python 3.11 or later"
    )


def test_runtime_names_versions_and_refuses_unknown_names() -> None:
    found = machine.runtime("litert")
    assert found.state == "ok"
    assert "numpy" in found.what
    assert machine.runtime("torch").state == "fail"


@pytest.mark.parametrize(
    ("role", "megabytes", "state"),
    [("edge", 400, "ok"), ("edge", 249, "warn"), ("edge", 119, "fail"), ("coordinator", 400, "fail"),
     ("coordinator", 1499, "warn"), ("coordinator", 1500, "ok")],
)  # fmt: skip
def test_memory(tmp_path: Path, role: str, megabytes: int, state: str) -> None:
    (tmp_path / "meminfo").write_text(
        f"MemTotal: 9 kB\nMemAvailable: {megabytes * 1024} kB\nSwapTotal:  102400 kB\n"
    )
    found = machine.memory(role, tmp_path)
    assert found.state == state
    assert f"{megabytes} MB available, 100 MB swap" in found.what
    assert bool(found.mend) == (state != "ok")


def test_memory_of_this_machine_and_of_one_that_does_not_tell(tmp_path: Path) -> None:
    assert "MB available" in machine.memory("edge").what
    assert machine.memory("edge", tmp_path).what == "this system does not tell"


@pytest.mark.parametrize(("millidegrees", "state"), [(54321, "ok"), (75000, "warn"), (85000, "fail")])
def test_temperature(tmp_path: Path, millidegrees: int, state: str) -> None:
    zone = tmp_path / "class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text(f"{millidegrees}\n")
    assert [c.state for c in machine.heat(tmp_path, vcgencmd="no-such-program")] == [state]
    assert machine.heat(tmp_path / "elsewhere", vcgencmd="no-such-program") == []


def test_throttling_as_the_firmware_tells_it(tmp_path: Path) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x50005\n")
    program.chmod(0o755)
    (found,) = machine.heat(tmp_path, vcgencmd=str(program))
    assert (found.state, found.what) == ("fail", "now: under-voltage, throttled")
    assert machine.throttling(0x20000).what == "since boot: frequency capped"
    assert machine.throttling(0).state == "ok"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert machine.heat(tmp_path, vcgencmd=str(program))[0].state == "warn"


def test_clock(tmp_path: Path) -> None:
    assert machine.clock(datetime(1970, 1, 1, tzinfo=UTC), tmp_path).state == "fail"
    assert machine.clock(datetime(2100, 1, 1, tzinfo=UTC), tmp_path).state == "fail"
    (tmp_path / "systemd/timesync").mkdir(parents=True)
    (tmp_path / "systemd/timesync/synchronized").touch()
    good = machine.clock(datetime(2026, 7, 1, 9, 30, tzinfo=UTC), tmp_path)
    assert (good.state, good.what) == ("ok", "2026-07-01 09:30 UTC, synchronised")


def test_disk_is_measured_where_it_will_be_written(tmp_path: Path) -> None:
    space, speed = machine.disk(tmp_path / "state" / "deep")
    assert "GB free" in space.what
    assert "ms for a small sync" in speed.what
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert machine.disk(tmp_path / "file")[0].state == "fail"


def test_pictures(tmp_path: Path) -> None:
    good = checks.folder_of("pictures", "edge.data_dir", pictures(tmp_path / "a", cat=2, dog=1), needed=True)
    assert (good.state, good.what) == ("ok", f"{tmp_path / 'a'}: 2 cat, 1 dog")
    one = checks.folder_of("pictures", "edge.data_dir", pictures(tmp_path / "b", cat=2), needed=True)
    assert one.state == "warn"
    assert checks.folder_of("pictures", "edge.data_dir", tmp_path / "gone", needed=True).state == "fail"
    unset = checks.folder_of("pictures", "edge.data_dir", None, needed=False)
    assert (unset.state, unset.what) == ("warn", "edge.data_dir is not set")
    assert checks.folder_of("pictures", "edge.data_dir", None, needed=True).state == "fail"


def test_more_labels_than_a_model_may_have(tmp_path: Path) -> None:
    for i in range(1001):
        (tmp_path / f"{i:04}").mkdir()
        (tmp_path / f"{i:04}" / "0.png").touch()
    check = checks.folder_of("pictures", "edge.data_dir", tmp_path, needed=True)
    assert (check.state, check.what) == ("fail", f"{tmp_path}: 1001 labels, expected at most 1000")


def test_a_node_is_not_its_folder_alone(tmp_path: Path) -> None:
    def examined(**edge: object) -> dict[str, Check]:
        settings = load_settings(overrides={f"edge.{k.replace('__', '.')}": v for k, v in edge.items()})
        return by_name(list(checks.of_node(settings.settings.edge, needed=True)))

    assert examined(state_dir=tmp_path / "none")["pictures"].state == "fail"
    settings = load_settings(overrides={"edge.state_dir": tmp_path / "state"}).settings.edge
    with closing(SampleStore.of_node(settings)) as store:
        for shade, label in ((5, "cat"), (6, None)):
            out = io.BytesIO()
            Image.new("L", (8, 8), shade).save(out, "PNG")
            store.add(Incoming(out.getvalue(), "x", label, held_out=False))
    found = examined(state_dir=tmp_path / "state")
    assert list(found) == ["sample store"] and found["sample store"].state == "ok"
    assert found["sample store"].what.endswith(": 1 cat; 0 held out, 1 wait for a label")
    watched = {"camera__kind": "folder", "camera__source": str(tmp_path / "watched")}
    found = examined(state_dir=tmp_path / "none", **watched)
    assert list(found) == ["camera"] and found["camera"].state == "fail"
    (tmp_path / "watched").mkdir()
    assert examined(state_dir=tmp_path / "none", **watched)["camera"].state == "ok"


def test_a_folder_can_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = pictures(tmp_path / "friend", **{"train/cat": 2, "train/dog": 1, "test/dog": 1})
    _, out = command(capsys, "--role", "edge", "--data", str(data), "--json", broker__port=free_port())
    said = next(c for c in json.loads(out)["checks"] if c["name"] == "pictures")
    assert (
        said["state"] == "ok"
        and f"{data}: 2 cat, 1 dog (train/ to train on and test/ held out" in said["what"]
    )


def command(capsys: pytest.CaptureFixture[str], *argv: str, **overrides: object) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    args = parser.parse_args(argv)
    args.config, args.overrides = None, {k.replace("__", "."): v for k, v in overrides.items()}
    code = doctor.run(args)
    return code, capsys.readouterr().out


def test_command_in_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out = command(
        capsys, broker__port=free_port(), edge__data_dir=pictures(tmp_path / "a", cat=2, dog=1)
    )
    assert code == 1
    lines = out.splitlines()
    assert lines[0].startswith("ok    settings")
    assert any(line.startswith("fail  broker") for line in lines)
    assert any(line.strip().startswith("-> is the broker running?") for line in lines)
    assert lines[-1].endswith("to look at")


@pytest.mark.broker
def test_command_with_all_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = pictures(tmp_path / "a", cat=2, dog=1)
    with start_broker(0, state_dir=tmp_path / "b") as broker:
        code, out = command(capsys, "--role", "edge", "--json", broker__port=broker.port, edge__data_dir=data)
    said = json.loads(out)
    assert (code, said["ok"]) == (0, True)
    names = [c["name"] for c in said["checks"]]
    assert {"settings", "python", "runtime", "broker", "disk", "memory", "clock", "pictures"} <= set(names)
    assert not {"export", "test pictures"} & set(names)


def test_command_with_broken_settings_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = command(capsys, "--role", "coordinator", "--json", broker__prot=free_port())
    said = json.loads(out)
    first = said["checks"][0]
    assert (code, first["state"]) == (1, "fail")
    assert "did you mean 'broker.port'?" in first["what"]
    assert len(said["checks"]) > 5
