"""From a federation to programs on its nodes, and every bad release stopped: `make release-demo`.

A real broker, coordinator and five nodes as processes; Edge Impulse is the stand-in of `tests/stand_ins`, and
what it builds is a program that answers the `.eim` protocol with the federation's own model. Without an
account this is the whole way; with one, `apiary demo --release` goes it for real.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.stand_ins.edge_impulse_api import KEY, EdgeImpulseApi
from tests.stand_ins.eim_program import write_program

from apiary.bus.broker import start_broker
from apiary.bus.bus import Received
from apiary.bus.mqtt import MqttBus
from apiary.errors import RequestRefused
from apiary.files import sha256_of
from apiary.identity.release_key import seal
from apiary.settings import Settings, load_settings
from apiary.wire.messages import Prediction, ReleaseCurrent
from apiary.wire.topics import TopicKind
from apiary_cli.datasets.partition import Layout, materialise
from apiary_cli.demo.federation import LocalFederation
from apiary_cli.demo.presets import PRESETS
from apiary_cli.demo.release import RolloutFollower, settings_for, table_of
from apiary_edge.releases.store import current

NODES = 5


class Failed(Exception):  # noqa: N818 - what the demonstration did
    """Something did not go as it must."""


@dataclass
class Stage:
    """What the demonstration plays on."""

    folder: Path
    layout: Layout
    settings: Settings
    federation: LocalFederation
    rolling: RolloutFollower
    run: Path

    def has(self) -> dict[str, str]:
        """The release that each node predicts with, from its own disk."""
        found = {}
        for node in self.layout.nodes:
            slot = current(self.folder / "state" / node.name)
            found[node.name] = slot.release if slot is not None else "none"
        return found

    def program(self, name: str, **config: Any) -> Path:
        """Another program: the federation's model, unless `config` spoils it."""
        labels = (self.run / "labels.txt").read_text().splitlines()
        told = {"tflite": str((self.run / "model.tflite").resolve()), "labels": labels, **self.shape()}
        folder = self.folder / "programs"
        folder.mkdir(exist_ok=True)
        return write_program(folder / f"{name}.eim", **{**told, **config})

    def shape(self) -> dict[str, int]:
        told = json.loads((self.folder / "releases" / "latest" / "manifest.json").read_text())["input"]
        return {key: told[key] for key in ("width", "height", "channels")}

    def try_bad(
        self, name: str, program: Path, expected: str, meanwhile: Callable[[], None] | None = None
    ) -> None:
        """Release it, and see it halted at the canary with the whole fleet on what it had.

        `meanwhile` is done once it is announced and before a node has asked for it.
        """
        before, began = self.has(), time.time()
        if meanwhile is not None:
            self._nodes(signal.SIGSTOP)
        self.rolling.ask("create", file=str(program), name=name)
        if meanwhile is not None:
            meanwhile()
            self._nodes(signal.SIGCONT)
        told = self.rolling.until_over(began - 0.001)
        why = told["rollout"]["why"] or ""
        check(told["rollout"]["state"] == "halted", f"{name} is {told['rollout']['state']}")
        check(expected in why, f"{name} was halted because: {why}")
        check(told["rollout"]["wave"] == 1, f"{name} reached wave {told['rollout']['wave']}")
        check(self.has() == before, f"the nodes have {self.has()}")
        say(f"   all {len(before)} nodes predict with {next(iter(before.values()))} as before")

    def _nodes(self, number: signal.Signals) -> None:
        for party in (self.federation.parties[folder.name] for folder in self.layout.nodes):
            party.process.send_signal(number)


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


def say(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--limit", type=int, help="training pictures in all")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    args = parser.parse_args(argv)
    if platform.machine() != "x86_64":
        say("the stand-in's programs are for x86_64: nothing to show here")
        return 0
    folder = args.folder or Path(tempfile.mkdtemp(prefix="apiary-release-demo-"))
    try:
        play(folder.resolve(), rounds=args.rounds, limit=args.limit)
    except Failed as e:
        say(f"FAILED: {e}\nlogs: {folder}/*.log")
        return 1
    if args.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def play(folder: Path, *, rounds: int, limit: int | None) -> None:
    """All of it. Raises Failed."""
    with stage(folder, rounds, limit) as on:
        good = good_release(on)
        say("\nNow releases that are bad, each in its own way:")
        crashing(on)
        wrong_labels(on)
        worse(on)
        tampered(on)
        forged(on)
        check(set(on.has().values()) == {good}, f"in the end the nodes have {on.has()}")
        say(f"\nEvery bad release was stopped; all {NODES} nodes predict with {good}.")
        for line in table_of(on.rolling.ask("status")):
            say(line.split(":")[0])


def good_release(on: Stage) -> str:
    say("\nThe program goes to the nodes, the canary first:")
    told = on.rolling.until_over()
    release = told["rollout"]["release"]
    check(told["rollout"]["state"] == "done", told["rollout"]["why"] or "it is not out")
    check(release["kind"] == "eim", f"the release is a {release['kind']}")
    check(set(on.has().values()) == {release["name"]}, f"the nodes have {on.has()}")
    check(any("wave 1 of 2 opens for 1 of 5" in n["text"] for n in told["history"]), "no canary")
    for line in table_of(told):
        say(line)
    predictions(on, release["file"]["digest"])
    return str(release["name"])


def predictions(on: Stage, digest: str) -> None:
    """Each node's camera sees something, and its predictions are the new release's."""
    say("What their cameras see now:")
    seen: dict[str, Prediction] = {}
    until = time.monotonic() + 90
    with somebody(on) as bus:
        bus.subscribe(on.settings.topics.pattern(TopicKind.NODE_PREDICTION))
        while len(seen) < NODES:
            check(time.monotonic() < until, f"only {sorted(seen)} predict with the release")
            for node in on.layout.nodes:
                show(node, on.folder)
            for _ in range(20):
                for event in bus.poll(0.1):
                    told = on.settings.topics.parse(event.topic) if isinstance(event, Received) else None
                    if isinstance(event, Received) and told is not None and told.node is not None:
                        prediction = Prediction.decode(event.payload, who=told.node)
                        if prediction.model == digest:
                            seen[told.node] = prediction
    for name, prediction in sorted(seen.items()):
        say(f"  {name:10} {prediction.top[0].label} ({prediction.probability:.0%}), {prediction.ms:.0f} ms")


def show(node: Path, folder: Path) -> None:
    """Another of its pictures before its camera, which is a folder here."""
    camera = folder / "cameras" / node.name
    number = len(list(camera.iterdir()))
    pictures = sorted(node.rglob("*.png"))
    aside = camera / ".coming"
    shutil.copyfile(pictures[number * 37 % len(pictures)], aside)
    aside.rename(camera / f"{number:04}.png")


def crashing(on: Stage) -> None:
    say("\n1. a program that crashes when it is asked about a picture")
    on.try_bad("crashes", on.program("crashes", mode="crash"), "was ended by SIGABRT")


def wrong_labels(on: Stage) -> None:
    say("\n2. a program with other labels")
    try:
        on.rolling.ask("create", file=str(on.program("other", mode="wrong_labels")), name="other-labels")
    except RequestRefused as e:
        say(f"   the coordinator: {e}")
    else:
        raise Failed("the coordinator took a release with other labels")
    say("   and one that says so only once it runs on a node:")
    on.try_bad("lies", on.program("lies", mode="labels_change"), "has the labels somebody, else")


def worse(on: Stage) -> None:
    say("\n3. a program that is less accurate")
    labels = (on.run / "labels.txt").read_text().splitlines()
    turned = on.program("worse", labels=[*labels[1:], labels[0]])
    on.try_bad("worse", turned, "held-out pictures here right")


def tampered(on: Stage) -> None:
    say("\n4. a good program whose bytes somebody changes after it was signed")
    program = on.program("changed-afterwards")

    def change() -> None:
        blob = on.folder / "state" / "coordinator" / "blobs" / sha256_of(program)
        data = bytearray(blob.read_bytes())
        data[-100] ^= 0xFF
        blob.write_bytes(data)

    on.try_bad("changed", program, "is not the one that was signed (sha256 differs)", meanwhile=change)


def forged(on: Stage) -> None:
    say("\n5. a release that somebody else signed, for the whole fleet at once")
    before = on.has()
    topic = on.settings.topics.build(TopicKind.RELEASE_CURRENT)
    with somebody(on) as bus:
        bus.subscribe(topic)
        heard = wait_for(bus)
        told = ReleaseCurrent.model_validate(json.loads(heard.payload))
        evil = told.model_copy(
            update={
                "serial": told.serial + 10**9,
                "state": "done",
                "share": 1.0,
                "release": told.release.model_copy(update={"name": "evil", "attempt": 9}),
            }
        )
        sealed = seal(Ed25519PrivateKey.generate(), topic, evil.encode(), evil.serial)
        bus.publish(topic, sealed, retain=True)
        for _ in range(40):
            bus.poll(0.05)
        bus.publish(topic, heard.payload, retain=True)
        for _ in range(20):
            bus.poll(0.05)
    check(on.has() == before, f"the nodes have {on.has()}")
    for node in on.layout.nodes:
        log = (on.folder / f"{node.name}.log").read_text()
        check("signed with the release key" in log, f"{node.name} did not complain of it")
    say("   every node: signed with another release key than the one it trusts; not followed")


def wait_for(bus: MqttBus) -> Received:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for event in bus.poll(0.1):
            if isinstance(event, Received):
                return event
    raise Failed("no release is current")


@contextmanager
def somebody(on: Stage) -> Iterator[MqttBus]:
    bus = MqttBus(on.settings.broker, client_id="somebody", will=None)
    try:
        yield bus
    finally:
        bus.close()


@contextmanager
def stage(folder: Path, rounds: int, limit: int | None) -> Iterator[Stage]:
    """A federation that has run, published to the stand-in, and is about to roll out."""
    preset = PRESETS["digits"]
    (folder / "built").mkdir(parents=True, exist_ok=True)
    os.environ["EI_API_KEY"] = KEY
    layout = materialise(
        "digits", folder / "data", nodes=NODES, by="dirichlet", alpha=5.0, seed=0, limit=limit, data_dir=None
    )
    with (
        EdgeImpulseApi(folder / "built") as api,
        start_broker(0, state_dir=folder / "broker", say=lambda line: None) as broker,
    ):
        told = settings_for(folder)
        told["publish"] |= {
            "api_endpoint": api.endpoint,
            "ingestion_endpoint": api.ingestion,
            "retry_pause_s": 0.2,
        }
        # Half of a node's few pictures test here; on a Pi its held-out samples do.
        told |= {
            "edge": {"want_idle_s": 3.0},
            "edge.slots": {"folder_share": 0.3},
            "edge.camera": {"kind": "folder", "fps": 2.0},
            "edge.predict": {"enabled": True, "port": 0, "every_s": 0.5, "suggest": False},
        }
        told |= {
            "broker": {"host": broker.host, "port": broker.port},
            "run": {"rounds": rounds, "min_nodes": NODES, "recipe_options": preset.recipe_options},
            "run.plan": {**preset.plan, "validation_share": 0.3},
            "coordinator": {
                "test_data": layout.server.resolve(),
                "labels": layout.labels,
                "state_dir": folder / "state" / "coordinator",
                "runs_dir": folder / "runs",
            },
        }
        federation = LocalFederation(folder, told)
        try:
            yield _run(folder, layout, federation, api)
        finally:
            federation.stop()
        check(not api.violations, f"the API was misused: {api.violations}")


def _run(folder: Path, layout: Layout, federation: LocalFederation, api: EdgeImpulseApi) -> Stage:
    say(f"A federation of {NODES} nodes trains on handwritten digits (the first export takes a while) ...")
    federation.start_coordinator("--new")
    for node in layout.nodes:
        camera = folder / "cameras" / node.name
        camera.mkdir(parents=True)
        federation.start_node(node.name, node, "--set", f"edge.camera.source={camera}")
    until = time.monotonic() + 600
    while (told := federation.result()) is None:
        federation.check()
        check(time.monotonic() < until, "the federation did not end within 600 s")
        time.sleep(0.2)
    run = Path(told["run"])
    accuracy = told["summary"]
    say(
        f"... {accuracy['tflite_accuracy']:.1%} right on held-out digits as float32, "
        f"{accuracy['int8_accuracy']:.1%} as int8."
    )
    check(bool(api.uploads), "nothing was uploaded")
    (program,) = run.glob("*.eim")
    size = program.stat().st_size
    say(f"Its model went to (a stand-in of) Edge Impulse; {program.name} came back, {size} bytes.")
    federation.start_coordinator("--stay")
    settings = load_settings(federation.settings_file).settings
    return Stage(folder, layout, settings, federation, RolloutFollower(settings, federation, say), run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
