"""A node put together from its settings: the service, its stores, its children, its features."""

import logging
import os
import platform
import time
from collections.abc import Callable
from typing import Final

from apiary import __version__, plugins
from apiary.blobs import BlobStore
from apiary.bus.client_id import lasting_id
from apiary.bus.mqtt import MqttBus
from apiary.clocks import Clocks
from apiary.eim import elf
from apiary.errors import RuntimeUnavailable
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import EdgeSettings, Settings
from apiary.wire import NodeId
from apiary_edge.capture.process import CameraStatus, CaptureFeature, CaptureProcess
from apiary_edge.feature import NodeFeature
from apiary_edge.guest.stay import Guest
from apiary_edge.health.reader import Reader
from apiary_edge.operators.commands import Commands
from apiary_edge.operators.log_tail import LogTail
from apiary_edge.owner.status_board import Board
from apiary_edge.owner.status_file import StatusFile, runtime_folder
from apiary_edge.predicting.announcing import HomeAssistant
from apiary_edge.predicting.background import BackgroundTasks
from apiary_edge.predicting.feature import PredictionFeature, PredictionStatus, PredictProcess
from apiary_edge.predicting.follower import ModelFollower
from apiary_edge.predicting.job import BackgroundJob, PredictJob
from apiary_edge.releases.agent import ReleaseAgent
from apiary_edge.releases.compatibility import Host
from apiary_edge.releases.selftest_process import TrialProcess
from apiary_edge.releases.store import ReleaseStore, folder_of, opened_before, trusting
from apiary_edge.samples.store import SampleStore
from apiary_edge.service import RECEIVE_MAXIMUM, Edge, will
from apiary_edge.status.presence import NodeFacts
from apiary_edge.stores import NodeStores
from apiary_edge.training.process import TrainingProcess
from apiary_edge.transfer.outbox import Outbox

_RUNTIMES: Final = (("litert", ("tflite_runtime", "ai_edge_litert")), ("keras", ("tensorflow",)))


def build(settings: Settings) -> tuple[MqttBus, Edge, Board]:
    """A node, its bus, and what there is to say of it; not yet started.

    Raises RuntimeUnavailable where nothing here can train.
    """
    edge = settings.edge
    node = NodeId(edge.node_id)
    instance = f"{os.getpid()}-{int(time.time() * 1000) % 10**9}"
    gate = load_gate(settings.security, Role.NODE, node, edge.state_dir / "marks.sqlite", time.time)
    bus = MqttBus(
        settings.broker,
        client_id=lasting_id(f"{settings.federation}-node-{node}", edge.state_dir),
        will=will(settings.topics, node, instance, edge.tags),
        receive_maximum=RECEIVE_MAXIMUM,
    )

    runtimes = _runtimes(settings)
    camera = CameraStatus(node) if edge.camera.kind is not None else None
    says = PredictionStatus()
    status = StatusFile(
        settings,
        clock=time.monotonic,
        runtime_folder=runtime_folder(os.environ),
        more=lambda: {
            "camera": {"kind": edge.camera.kind, "text": camera.text} if camera else None,
            "predictions": says.text if edge.predict.enabled else None,
            "page": {"url": says.page, "state_dir": str(edge.state_dir.absolute())} if says.page else None,
        },
    )
    samples = _samples(settings)
    service = Edge(
        settings,
        bus=bus,
        stores=NodeStores(
            BlobStore(edge.state_dir / "blobs", edge.blob_mb * 2**20),
            Outbox(edge.state_dir / "outbox"),
            samples,
        ),
        training=TrainingProcess(bus.wake, edge.guest),
        clocks=Clocks(time.monotonic, time.time),
        facts=NodeFacts(instance, runtimes, _memory_mb()),
        tap=status.tap,
        gate=gate,
    )
    tail = LogTail([path for path in (edge.data_dir, edge.store_dir) if path is not None])
    logging.getLogger().addHandler(tail)
    releases = _releases(settings, service)
    service.features += [
        _guest(edge, service, runtimes[0]),
        releases,
        Commands(service.channel, service, edge.state_dir, tail),
    ]
    if camera is not None and not (edge.predict.enabled or edge.serves_pages):
        service.features.append(CaptureFeature(CaptureProcess(edge, bus.wake), camera))
    service.features += _following(settings, service, samples, bus.wake)
    if edge.predict.enabled or edge.serves_pages:
        service.features.append(
            PredictionFeature(
                service.channel,
                PredictProcess(PredictJob(edge=edge, federation=settings.federation), bus.wake),
                camera=camera,
                says=says,
                publish=edge.predict.publish,
                refused=releases.complained,
            )
        )
    service.features.append(status)
    return bus, service, status.board


def _guest(edge: EdgeSettings, service: Edge, runtime: str) -> Guest:
    return Guest(
        service.channel,
        service,
        service.clocks,
        service.downloads.blobs,
        settings=edge.guest,
        machine=Reader(edge.state_dir, clock=time.monotonic),
        runtime=runtime,
    )


def _releases(settings: Settings, service: Edge) -> ReleaseAgent:
    slots = settings.edge.slots
    store = ReleaseStore(folder_of(settings.edge.state_dir))
    return ReleaseAgent(
        settings,
        service.channel,
        service.clocks,
        service.downloads,
        store=store,
        testing=TrialProcess(slots.test_s),
        host=Host(elf.machine_of_host(platform.machine()), __version__, slots.max_mb * 2**20),
        open_=trusting(store, slots.release_key) if settings.security.ca is None else opened_before,
    )


def _following(
    settings: Settings, service: Edge, samples: SampleStore | None, wake: Callable[[], None]
) -> list[NodeFeature]:
    """What follows the federation's model. Without predictions, suggestions and tuning, only its labels."""
    edge = settings.edge
    job = BackgroundJob(edge=edge, store=edge.store_dir if samples is not None else None)
    background = job.suggests or edge.personal.enabled
    found: list[NodeFeature] = [
        ModelFollower(
            service.node,
            service.clocks,
            service.downloads,
            edge.state_dir,
            fetch=edge.predict.enabled or background,
        ),
        HomeAssistant(service.channel, edge.predict, edge.state_dir),
    ]
    if background:
        child = TrainingProcess(wake, edge.guest, module="apiary_edge.predicting.background_worker")
        found.append(
            BackgroundTasks(job, child, samples, service.node, rounds=service, limit_s=edge.train_timeout_s)
        )
    return found


def _samples(settings: Settings) -> SampleStore | None:
    """The node's sample store, where it has a camera, a labelling page, or pictures in one already."""
    edge = settings.edge
    if edge.camera.kind is None and not edge.serves_pages and not edge.store_dir.is_dir():
        return None
    return SampleStore.of_node(edge)


def _runtimes(settings: Settings) -> list[str]:
    """What can train here, found without loading it, which would cost the service its memory."""
    from importlib.util import find_spec

    found = [name for name, modules in _RUNTIMES if any(find_spec(m) is not None for m in modules)]
    wanted = settings.edge.runtime
    if wanted != "auto":
        plugins.check("apiary.learn.runtimes", wanted)
        found = [name for name in found if name == wanted]
    if not found:
        raise RuntimeUnavailable(
            f"nothing here can train (edge.runtime = {wanted!r}): "
            "install one with pip install 'apiary-fl[edge]'"
        )
    return found


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError):
        return None
