"""The coordinator's figures for Prometheus, at /metrics: written by the loop, served by a thread."""

import logging
import threading
from collections import Counter as Count
from collections.abc import Iterable
from typing import Any, Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)

from apiary import __version__
from apiary.addresses import Address, url
from apiary.bus.bus import Bus
from apiary.errors import NotReady
from apiary.http.connection import Application
from apiary.http.places import HttpLimits
from apiary.http.server import HttpServer
from apiary.settings import MetricsSettings, Settings
from apiary.wire.messages import NodeState
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.fleet.roster import SILENT, Roster
from apiary_coordinator.monitoring.watchdog import Watchdog
from apiary_coordinator.operators.requests import OperatorRequests
from apiary_coordinator.run.host import RunHost
from apiary_coordinator.run.run import Run
from apiary_coordinator.worker import Worker

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 2.0
_SECONDS: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14_400)
_BYTES: Final = (10**4, 10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8, 3 * 10**8)
# Words of a refusal, and what they are counted as: the whole text names nodes and figures.
_REASONS: Final = (
    ("not finite", "not_finite"),
    ("norm is", "norm"),
    ("samples, allowed", "samples"),
    ("bytes, allowed", "size"),
    ("the blob says", "about"),
    ("codec", "codec"),
    ("digest", "damaged"),
    ("allowed are +-", "magnitude"),
    ("tensor", "shape"),
)
_OTHER: Final = "other"
_LIMITS: Final = HttpLimits(max_connections=32, max_of_address=8, max_head_bytes=8_192, workers=1)


class Figures:
    """Every metric by its name; a figure without a value yet is not shown."""

    def __init__(self, federation: str):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"apiary_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"apiary_{name}", text, labels, registry=registry)

        gauge("build_info", "Version and federation", "version", "federation").labels(
            __version__, federation
        ).set(1)
        self.connected = gauge("broker_connected", "Whether the broker is there")
        self.backlog = gauge("broker_backlog", "Messages that the broker has not acknowledged")
        self.run_active = gauge("run_active", "Whether a run is under way")
        self.round = gauge("round", "Number of the newest round of the run")
        self.accuracy = gauge(
            "round_accuracy", "Of the newest closed round, 0 to 1, held-out pictures", "run"
        )
        self.loss = gauge("round_loss", "Of the newest closed round", "run")
        self.best = gauge("best_accuracy", "Best of the run so far, 0 to 1", "run")
        self.contributors = gauge("round_contributors", "Updates in the newest closed round")
        self.rounds = counter("rounds", "Rounds that ended", "state")
        self.seconds = Histogram(
            "apiary_round_seconds", "Of rounds that ended", buckets=_SECONDS, registry=registry
        )
        self.update_bytes = Histogram(
            "apiary_update_bytes", "Size of counted updates", buckets=_BYTES, registry=registry
        )
        self.traffic = counter("traffic_bytes", "Models down, updates up, of rounds that ended", "direction")
        self.updates = counter("updates", "By outcome", "result")
        self.rejected = counter("updates_rejected", "By why they were refused", "reason")
        self.nodes = gauge("nodes", "By what they are at", "state")
        self.samples = gauge("samples", "Labelled pictures of all nodes that are here")
        self.uploads = gauge("uploads", "Of the open round", "state")
        self.jobs = gauge("worker_jobs", "Given to the worker and not yet done")
        self.busy = gauge("worker_busy_seconds", "How long the worker has been at its job")
        self.requests = gauge("operator_requests_open", "Requests of operators being worked on")
        # Prometheus sees an increase between two scrapes: a counter that comes with its first event hides it.
        known: tuple[tuple[Gauge | Counter, Iterable[str]], ...] = (
            (self.nodes, (*get_args(NodeState), SILENT)),
            (self.rounds, ("closed", "failed")),
            (self.uploads, ("granted", "waiting")),
            (self.updates, ("accepted", "rejected", "missing", "left_out")),
            (self.traffic, ("up", "down")),
            (self.rejected, (*(reason for _, reason in _REASONS), _OTHER)),
        )
        for metric, labels in known:
            for label in labels:
                metric.labels(label)

    def round_over(self, entry: dict[str, Any]) -> None:
        """A round ended; `entry` as the run's history has it."""
        self.rounds.labels(entry["state"]).inc()
        self.seconds.observe(entry["seconds"])
        self.traffic.labels("up").inc(entry["bytes_up"])
        self.traffic.labels("down").inc(entry["bytes_down"])
        for field in ("contributors", "rejected", "missing", "left_out"):
            result = "accepted" if field == "contributors" else field
            self.updates.labels(result).inc(len(entry.get(field) or ()))
        for contributor in entry["contributors"].values():
            self.update_bytes.observe(contributor["bytes"])
        for why in entry["rejected"].values():
            self.rejected.labels(reason_of(why)).inc()
        if entry["state"] != "closed":
            return
        self.contributors.set(len(entry["contributors"]))
        for one, key in ((self.accuracy, "accuracy"), (self.loss, "loss")):
            one.clear()  # one run at a time: those before are in the history of whoever scrapes
            one.labels(entry["run"]).set(entry[key])


class Metrics(CoordinatorFeature):
    """Looks at the coordinator every other second; serves what it saw."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        worker: Worker,
        roster: Roster,
        *,
        host: RunHost,
        operators: OperatorRequests,
        watchdog: Watchdog,
    ):
        self._bus = bus
        self._worker = worker
        self._roster = roster
        self._host = host
        self._operators = operators
        self._watchdog = watchdog
        self._settings = settings.metrics
        self._look_at = 0.0
        self._seen: tuple[str, int] | None = None
        self._run: Run | None = None
        self._server: HttpServer | None = None
        self.figures = Figures(settings.federation)
        self.port = 0
        """Where it listens, once it does."""

    def start(self, now: float) -> None:
        """Listen. Raises SettingsError."""
        self._server = _listen(make_wsgi_app(self.figures.registry), self._settings)
        self.port = self._server.port
        threading.Thread(target=self._server.run, name="metrics", daemon=True).start()
        log.info("metrics at %s", url("http", self._settings.host, self.port, "/metrics"))

    def tick(self, now: float) -> None:
        """Count the rounds that ended; look at the rest from time to time."""
        run = self._host.current
        if self._run is not None and self._run is not run:
            self._rounds(self._run)  # what it did in its last turn, a round that failed it perhaps
        self._run = run
        if run is not None:
            self._rounds(run)
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._look()

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def _rounds(self, run: Run) -> None:
        """Count what is new. What was there when a run was resumed was counted before the restart."""
        rounds = run.history.rounds
        if self._seen is None or self._seen[0] != run.name:
            if run.exported is None:
                return  # its rounds are not read from the journal yet
            self._seen = (run.name, len(rounds))
            self.figures.best.clear()
        if len(rounds) > self._seen[1] and run.history.newest is not None:
            self.figures.round_over(run.history.newest)  # one a turn at most
        self._seen = (run.name, len(rounds))
        if (best := run.history.best) is not None:
            self.figures.best.labels(run.name).set(best.accuracy)

    def _look(self) -> None:
        figures, runner = self.figures, self._host.runner
        figures.connected.set(self._bus.connected)
        figures.backlog.set(self._bus.backlog)
        figures.jobs.set(self._worker.pending)
        figures.busy.set(self._watchdog.busy_s)
        figures.requests.set(self._operators.open)
        figures.run_active.set(self._host.active is not None)
        nodes = self._roster.nodes.values()
        states = Count(SILENT if n.id in self._roster.silent else n.status.state for n in nodes)
        for state in (*get_args(NodeState), SILENT):
            figures.nodes.labels(state).set(states[state])
        here = (n for n in nodes if n.status.state != "lost" and n.id not in self._roster.silent)
        figures.samples.set(sum(n.status.samples or 0 for n in here))
        granted, waiting = runner.collector.uploading if runner is not None else (0, 0)
        figures.uploads.labels("granted").set(granted)
        figures.uploads.labels("waiting").set(waiting)
        if runner is not None:
            figures.round.set(runner.round.number)


def reason_of(why: str) -> str:
    """What a refusal is counted as."""
    return next((reason for words, reason in _REASONS if words in why), _OTHER)


def _listen(app: Application, settings: MetricsSettings) -> HttpServer:
    try:
        return HttpServer(app, settings.host, settings.port or 0, limits=_LIMITS)
    except OSError as e:
        where = Address(settings.host, settings.port or 0)
        raise NotReady(f"metrics cannot listen on {where}: {e} (metrics.host, metrics.port)") from None
