"""A coordinator that stays up, or a node, as a process on a real broker: all real but the training.

python tests/stand_ins/fleet_party.py SETTINGS.toml coordinator
python tests/stand_ins/fleet_party.py SETTINGS.toml NODE
"""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import Any

from apiary.clocks import Clocks

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.harness import FakeModelBuilder, FakeTraining

from apiary.blobs import BlobStore
from apiary.bus.mqtt import MqttBus
from apiary.bus.outlet import no_tap
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import Settings, load_settings
from apiary.tensors import Weights
from apiary.wire import NodeId
from apiary_cli.terminal import logs
from apiary_coordinator import app
from apiary_coordinator.journal import Journal
from apiary_coordinator.resources import Storage
from apiary_coordinator.service import Coordinator
from apiary_edge.operators.commands import Commands
from apiary_edge.service import Edge, will
from apiary_edge.status.presence import NodeFacts
from apiary_edge.stores import NodeStores
from apiary_edge.transfer.outbox import Outbox

TRAINING_S = 0.4


def held_out_loss(weights: Weights) -> float:
    """The start model has .24; the mean of honest updates hardly moves it."""
    return (weights.norm() / 500) ** 2


class Clock:
    """The time as the stand-in for training asks for it."""

    @property
    def now(self) -> float:
        return time.monotonic()


def coordinator(settings: Settings) -> Coordinator:
    state = settings.coordinator.state_dir
    return app.build(
        settings,
        app.platform(settings, no_tap),
        Storage(Journal(state), BlobStore(state / "blobs")),
        builders=lambda _, blobs: FakeModelBuilder(blobs, loss=held_out_loss),
    )


def node(settings: Settings) -> Edge:
    edge, instance = settings.edge, secrets.token_hex(4)
    gate = load_gate(settings.security, Role.NODE, edge.node_id, edge.state_dir / "marks.sqlite", time.time)
    clock: Any = Clock()
    service = Edge(
        settings,
        bus=MqttBus(
            settings.broker,
            client_id=f"n-{settings.federation}-{edge.node_id}",
            will=will(settings.topics, NodeId(edge.node_id), instance, edge.tags),
        ),
        stores=NodeStores(BlobStore(edge.state_dir / "blobs", 2**28), Outbox(edge.state_dir / "outbox")),
        training=FakeTraining(clock, TRAINING_S),
        clocks=Clocks(time.monotonic, time.time),
        facts=NodeFacts(instance, ["fake"]),
        gate=gate,
    )
    service.features.append(Commands(service.channel, service, edge.state_dir, None))
    return service


def main(file: str, name: str) -> None:
    logs.to_stderr(verbose=False)
    folder = Path(file).parent
    own = {} if name == "coordinator" else {"edge.node_id": name, "edge.state_dir": folder / name}
    settings = load_settings(Path(file), own).settings
    party = coordinator(settings) if name == "coordinator" else node(settings)
    party.start()
    party.run(lambda: False)


if __name__ == "__main__":
    main(*sys.argv[1:])
