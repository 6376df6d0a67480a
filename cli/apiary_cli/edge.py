"""`apiary edge`: one node, in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

from apiary import blobs as blob_store
from apiary.bus.allocator import tune
from apiary.bus.mqtt import MqttBus
from apiary.errors import RuntimeUnavailable
from apiary.notify import Notifier
from apiary.settings import Settings, load_settings
from apiary.wire import NodeId
from apiary_cli.once import FirstConnection
from apiary_cli.stopping import stop_on_signals
from apiary_edge.capture_job import bounds_of, job_of, store_dir
from apiary_edge.capturing import CaptureProcess
from apiary_edge.outbox import Outbox
from apiary_edge.samples.store import SampleStore
from apiary_edge.service import RECEIVE_MAXIMUM, Edge, will
from apiary_edge.training import TrainingProcess
from apiary_edge.twin import hold_folder

log = logging.getLogger(__name__)

_EXAMPLES = """examples:
  apiary edge --node-id pi-1 --data /srv/pictures
  apiary edge --data pictures --host broker.local
  apiary edge --data pictures --once            one round, then leave; fails where no broker answers

Pictures come from a folder, from this node's sample store (apiary samples, apiary label), or from both.
The folder holds one folder a label: pictures/cat/001.jpg, pictures/dog/002.png.
No picture leaves this machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Take part in a federation: train on this machine's pictures, send weight updates."
    parser.epilog = _EXAMPLES
    parser.add_argument("--node-id", metavar="ID", help="this node's name (default: the host name)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="pictures, LABEL/*.jpg|png")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="outbox, models, caches")
    parser.add_argument("--host", help="the broker")
    parser.add_argument("--port", type=int, help="its port")
    parser.add_argument("--once", action="store_true", help="one round, and no waiting for an absent broker")


def run(args: argparse.Namespace) -> int:
    """Run the node until a signal, or for one round."""
    flags = {
        "edge.node_id": args.node_id,
        "edge.data_dir": args.data,
        "edge.state_dir": args.state_dir,
        "broker.host": args.host,
        "broker.port": args.port,
    }
    settings = load_settings(
        args.config, {**args.overrides, **{k: v for k, v in flags.items() if v is not None}}
    ).settings
    tune(small=True)
    notifier = Notifier.from_environment(os.environ, time.monotonic)
    edge = settings.edge
    instance = f"{os.getpid()}-{int(time.time() * 1000) % 10**9}"
    with hold_folder(edge.state_dir):
        node = NodeId(edge.node_id)
        bus = MqttBus(
            settings.broker,
            client_id=f"{settings.federation}-node-{node}",
            will=will(settings.topics, node, instance),
            receive_maximum=RECEIVE_MAXIMUM,
        )
        service = Edge(
            settings,
            bus=bus,
            blobs=blob_store.BlobStore(edge.state_dir / "blobs", edge.blob_mb * 2**20),
            outbox=Outbox(edge.state_dir / "outbox"),
            training=TrainingProcess(bus.wake),
            clock=time.monotonic,
            wall=time.time,
            instance=instance,
            runtimes=_runtimes(settings),
            store=_store(settings),
            capture=CaptureProcess(job_of(edge), bus.wake) if edge.camera.kind is not None else None,
            memory_mb=_memory_mb(),
        )
        with stop_on_signals(bus.wake) as stop:
            limits = FirstConnection(bus).wait(settings.broker.connect_timeout_s, stop) if args.once else None
            service.start()
            try:
                if limits is not None:
                    service.connected(limits)
                notifier.ready(_doing(service))
                service.run(
                    lambda: stop() or (args.once and service.rounds_done > 0),
                    lambda: notifier.turned(_doing(service)),
                )
            finally:
                notifier.stopping()
                service.close()
                notifier.close()
        return stop.exit_code


def _doing(service: Edge) -> str:
    """What the node is at, in a line."""
    told = service.session.round
    state = service.session.state.value
    return f"{state}, round {told.round} of run {told.run}" if told is not None else state


def _store(settings: Settings) -> SampleStore | None:
    """The node's sample store, where it has a camera or somebody has put pictures into one."""
    edge = settings.edge
    if edge.camera.kind is None and not store_dir(edge).is_dir():
        return None
    return SampleStore(store_dir(edge), edge.state_dir / "cache", bounds_of(edge.store), time.time)


def _runtimes(settings: Settings) -> list[str]:
    """What can train here, found without loading it, which would cost the service its memory."""
    from importlib.util import find_spec

    found = [
        name
        for name, modules in (("litert", ("tflite_runtime", "ai_edge_litert")), ("keras", ("tensorflow",)))
        if any(find_spec(m) is not None for m in modules)
    ]
    wanted = settings.edge.runtime
    if wanted != "auto":
        found = [name for name in found if name == wanted]
    if not found:
        raise RuntimeUnavailable(
            f"nothing here can train (edge.runtime = {wanted!r}): install one with pip install 'apiary[edge]'"
        )
    return found


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError):
        return None
