"""What the parts of a coordinator are handed: small bundles of things that belong together."""

from dataclasses import dataclass

from apiary.blobs import BlobStore
from apiary.bus.bus import Bus
from apiary.bus.outlet import Outlet, Tap, no_tap
from apiary.clocks import Clocks
from apiary.identity.gate import OPEN, MessageGate
from apiary_coordinator.journal import Journal
from apiary_coordinator.updates.model_server import ModelServer
from apiary_coordinator.worker import JobQueue, Worker


@dataclass(frozen=True, slots=True)
class Storage:
    """What survives a restart: the journal's rows and the files that they name."""

    journal: Journal
    blobs: BlobStore


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The way to the nodes: control messages by the outlet, blobs by the model server, both over the bus."""

    bus: Bus
    outlet: Outlet
    model_server: ModelServer


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run and each of its rounds work with."""

    clocks: Clocks
    storage: Storage
    outgoing: Outgoing
    worker: JobQueue


@dataclass(frozen=True, slots=True)
class Platform:
    """What a coordinator runs on; tests have stand-ins for it. `epoch` is another with each start."""

    bus: Bus
    worker: Worker
    clocks: Clocks
    epoch: str
    gate: MessageGate = OPEN
    tap: Tap = no_tap
