"""The coordinator: one loop that moves messages between the bus and the pure parts, and performs commands.

A run goes building -> waiting -> (round -> waiting)* -> finishing -> parting -> done. Whatever the journal
holds is taken up again at the next start, at the stage where it stood.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from apiary import __version__
from apiary.blobs import BlobStore
from apiary.bus.bus import Bus, Connected, Disconnected, Limits, Received, Refused, Will
from apiary.bus.flow import ChunkFlow
from apiary.bus.outlet import Outlet, Tap, no_tap
from apiary.errors import BusError, RunFailed, StoreError, WireError
from apiary.files import clear_partial
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.chunks import CHUNK_BYTES, ENVELOPE_BYTES
from apiary.wire.messages import (
    READABLE_BYTES,
    Announcement,
    Ask,
    CoordinatorStatus,
    ModelManifest,
    NodeStatus,
    Notice,
    Offer,
    Progress,
    RoundResult,
    Want,
)
from apiary.wire.topics import Kind, Topic, Topics
from apiary_coordinator import history, rules
from apiary_coordinator.collection import clear_spools, receipt, spool_path
from apiary_coordinator.downlink import Downlink
from apiary_coordinator.live_round import Closed, LiveRound, Opening
from apiary_coordinator.roster import Roster
from apiary_coordinator.store import Journal
from apiary_coordinator.worker import Done, Worker
from apiary_coordinator.workshop import Artefacts, Judgement, Workshop

log = logging.getLogger(__name__)

Stage = Literal["building", "waiting", "round", "finishing", "parting", "done"]
_TAKEN: Final = (Kind.NODE_STATUS, Kind.NODE_ASK, Kind.NODE_WANT, Kind.NODE_OFFER, Kind.NODE_PROGRESS)
_SAY_EVERY_S: Final = 10.0
_RETRY_S: Final = 5.0
_MAX_WARNED: Final = 10_000
_CLOCK_OFF_S: Final = 3600.0
_PARTING_S: Final = 60.0
"""The broker may take this long to hear that the run is over: longer than a dead link goes unnoticed."""


class Coordinator:
    """One run of one federation. `step` is one turn of the loop; `run` turns until the run is over.

    `clock` is monotonic, `wall` seconds since 1970; both, like the bus and the worker, come from outside.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        journal: Journal,
        blobs: BlobStore,
        workshop: Workshop,
        worker: Worker,
        clock: Callable[[], float],
        wall: Callable[[], float],
        epoch: str,
        run: str,
        created: float,
        tap: Tap = no_tap,
        inspect: Callable[[Path], Any] = lambda folder: None,
    ):
        self.settings = settings
        self.run_id = run
        self.stage: Stage = "building"
        self.roster = Roster()
        self.summary: dict[str, Any] = {}
        self._topics: Topics = settings.topics
        self._bus = bus
        self._journal = journal
        self._blobs = blobs
        self._workshop = workshop
        self._worker = worker
        self._clock = clock
        self._wall = wall
        self._epoch = epoch
        self._created = created
        self._tap = tap
        self._inspect = inspect
        self._outlet = Outlet(bus, self._topics, tap)
        self._flow = ChunkFlow()
        self._down = Downlink(self._topics, blobs, self._flow, settings.coordinator.gather_s)
        self._artefacts: Artefacts | None = None
        self._opening: Opening | None = None
        self._live: LiveRound | None = None
        self._initial: dict[str, Any] = {}
        self._rounds: list[dict[str, Any]] = []
        self._stop: str | None = None
        self._said = (-_SAY_EVERY_S, "")
        self._last_node_at = clock()
        self._warned: set[tuple[str, str]] = set()
        self._window = settings.broker.inflight
        self._again: list[tuple[float, Callable[[], None]]] = []
        self._part_at = 0.0

    def start(self, artefacts: Artefacts | None) -> None:
        """Subscribe and begin to build; a resumed run's `artefacts` are used where they are still whole."""
        for folder in (self.settings.coordinator.state_dir, self.folder):
            clear_partial(folder, below=True)
        for kind in _TAKEN:
            self._bus.subscribe(self._topics.pattern(kind))
        self._bus.subscribe(self._topics.pattern(Kind.CHUNK_UP))
        self._bus.subscribe(self._topics.pattern(Kind.COORDINATOR_STATUS))
        self._outlet.send(self._status("online"))
        if artefacts is not None and self._whole(artefacts):
            self._built(artefacts)
        else:
            log.info("run=%s building the model recipe=%s", self.run_id, self.settings.run.recipe)
            self._worker.submit(self._workshop.build, self._built)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Turn until the run is over or `should_stop`. Raises what the run failed with."""
        while self.stage != "done" and not should_stop():
            self.step(0.5)

    def close(self) -> None:
        """Say goodbye; an unfinished run goes on at the next start."""
        if self._live is not None:
            self._worker.close(5.0)
            self._live.collection.close(remove=False)
        else:
            self._worker.close(1.0)
        self._outlet.send(self._status("offline"))
        # A last moment for the broker to take it; nothing depends on it.
        for _ in range(20):
            if self._bus.backlog == 0 or not self._bus.connected:
                break
            self._bus.poll(0.05)
        self._bus.close()

    def step(self, timeout_s: float) -> None:
        """One turn: wait for the bus at most `timeout_s`, take what came, do what is due."""
        due = self._down.next_due()
        if due is not None:
            timeout_s = min(timeout_s, max(0.0, due - self._clock()))
        for event in self._bus.poll(timeout_s):
            match event:
                case Received():
                    self._received(event)
                case Connected(limits):
                    self.connected(limits)
                case Disconnected(error, retry_s):
                    log.warning("%s; next attempt in %.0f s", error, retry_s)
                case Refused(topic, reason):
                    log.warning("the broker refused topic=%s reason=%s", topic, reason)
        for done in self._worker.collect():
            self._take(done)
        now = self._clock()
        self._retry(now)
        self._guarded("", self._tick)
        self._down.due(now)
        self._guarded("", partial(self._flow.pump, self._bus, self._window))

    def connected(self, limits: Limits) -> None:
        """The broker accepted us: keep to its limits, say again what it may have forgotten."""
        self._check_limits(limits.max_packet_bytes)
        if limits.receive_maximum:
            self._window = min(self._window, limits.receive_maximum)
        log.info("broker connected protocol=%s", limits.protocol)
        self._outlet.restore()

    def _take(self, done: Done) -> None:
        if isinstance(done.error, StoreError):
            log.error("%s; trying again in %.0f s", done.error, _RETRY_S)
            self._again.append((self._clock() + _RETRY_S, partial(self._worker.submit, done.job, done.then)))
        elif done.error is not None:
            raise done.error
        else:
            self._must(partial(done.then, done.value))

    def _must(self, act: Callable[[], None]) -> None:
        """Do something that cannot be left out: where the disk refuses, again after a pause."""
        try:
            act()
        except StoreError as e:
            log.error("%s; trying again in %.0f s", e, _RETRY_S)
            self._again.append((self._clock() + _RETRY_S, act))

    def _retry(self, now: float) -> None:
        due = [act for at, act in self._again if at <= now]
        self._again = [(at, act) for at, act in self._again if at > now]
        for act in due:
            self._must(act)

    # -- what comes in ---------------------------------------------------------------------------------

    def _received(self, event: Received) -> None:
        try:
            topic = self._topics.parse(event.topic)
        except WireError as e:
            log.debug("%s", e)
            return
        self._guarded(topic.node or "", partial(self._dispatch, topic, event))

    def _dispatch(self, topic: Topic, event: Received) -> None:
        now, node = self._clock(), topic.node
        if topic.kind is Kind.COORDINATOR_STATUS:
            self._other_coordinator(event)
            return
        if node is None:
            return
        who = f"node {node}"
        match topic.kind:
            case Kind.CHUNK_UP:
                if self._live is not None and topic.digest is not None and topic.index is not None:
                    self._live.collection.chunk(node, topic.digest, topic.index, event.payload, now)
            case Kind.NODE_STATUS:
                if event.payload:
                    self._node_status(node, NodeStatus.decode(event.payload, who=who), now)
            case Kind.NODE_OFFER:
                self._offer(node, Offer.decode(event.payload, who=who), now)
            case Kind.NODE_WANT:
                self._down.want(node, Want.decode(event.payload, who=who), now)
            case Kind.NODE_ASK:
                self._asked(node, Ask.decode(event.payload, who=who))
            case Kind.NODE_PROGRESS:
                self._tap(topic.kind, node, Progress.decode(event.payload, who=who))
            case _:
                pass

    def _node_status(self, node: NodeId, status: NodeStatus, now: float) -> None:
        self._tap(Kind.NODE_STATUS, node, status)
        before = self.roster.update(node, status, now)
        if status.version not in ("", __version__) and status.state != "lost":
            self._once(
                f"version {node} {status.version}",
                f"node {node} runs version {status.version}, the coordinator {__version__}",
            )
        if before is None or before.status.state == "lost":
            self._last_node_at = now
        if before is None or before.status.state != status.state:
            log.debug("node=%s state=%s why=%s", node, status.state, status.why)
        if self._live is not None:
            self._live.node_status(node, status, self.roster, now)

    def _offer(self, node: NodeId, offer: Offer, now: float) -> None:
        self._tap(Kind.NODE_OFFER, node, offer)
        if self.stage == "building":
            return
        live = self._live
        if live is not None and (offer.run, offer.round) == (self.run_id, live.round.number):
            live.collection.offered(node, offer, now)
            return
        if self._journal.counted(offer.run, offer.round, node):
            # Its first receipt was lost on the way.
            self._outlet.send(receipt(offer, "duplicate"), node)
        else:
            why = f"round {offer.round} of run {offer.run} is over"
            self._outlet.send(receipt(offer, "closed", why), node)

    def _asked(self, node: NodeId, ask: Ask) -> None:
        self._tap(Kind.NODE_ASK, node, ask)
        off = abs(ask.clock - self._wall()) if ask.clock is not None else 0.0
        if off > _CLOCK_OFF_S:
            self._once(
                f"clock {node}",
                f"node {node}: its clock is {off / 86400:.1f} days off; rounds do not mind, but TLS and logs "
                "do: check its time synchronisation (timedatectl)",
            )
        live = self._live
        if live is None:
            self._outlet.send(Notice(), node)
        else:
            self._outlet.send(
                Notice(invited=node in live.round.awaited, announcement=self._announcement()), node
            )

    def _other_coordinator(self, event: Received) -> None:
        status = CoordinatorStatus.decode(event.payload, who="another coordinator")
        if not event.retained and status.state == "online" and status.epoch != self._epoch:
            log.error(
                "another coordinator (epoch=%s) serves the federation %r on this broker: stop one of them, "
                "or give one another `federation`",
                status.epoch,
                self.settings.federation,
            )
        elif not event.retained and status.state == "offline" and status.epoch != self._epoch:
            self._outlet.send(self._status("online"))

    # -- the run ---------------------------------------------------------------------------------------

    def _built(self, artefacts: Artefacts) -> None:
        self._artefacts = artefacts
        self._journal.set_artefacts(self.run_id, artefacts.model_dump_json())
        manifest = self._workshop.manifest(artefacts)
        rows = self._journal.rounds(self.run_id)
        self._rounds = [row.result for row in rows if row.result is not None]
        model = next((row.model for row in reversed(rows) if row.model), Digest(artefacts.initial.digest))
        state = next((row.state for row in reversed(rows) if row.state), None)
        weights = blob.decode(self._blobs.read(model), who="the journal").weights
        self._opening = Opening(self.settings, artefacts, manifest, weights, model, state, self._blobs)
        self._worker.submit(
            partial(self._workshop.evaluate, artefacts, self._decode(artefacts.initial.digest)), self._judged
        )

    def _judged(self, judgement: Judgement) -> None:
        self._initial = {"accuracy": judgement.accuracy, "loss": judgement.loss}
        log.info("run=%s the untrained model has accuracy=%.1f%%", self.run_id, 100 * judgement.accuracy)
        self.stage = "waiting"
        self._last_node_at = self._clock()
        rows = self._journal.rounds(self.run_id)
        unfinished = bool(rows) and rows[-1].result is None
        state_dir = self.settings.coordinator.state_dir
        clear_spools(state_dir, spool_path(state_dir, self.run_id, rows[-1].number) if unfinished else None)
        if unfinished:
            log.info("run=%s going on in round=%d", self.run_id, rows[-1].number)
            self._begin(LiveRound.resume(self._parts(), rows[-1], self._clock()))
        else:
            self._next()

    def _tick(self) -> None:
        now = self._clock()
        if self._live is not None:
            self._live.tick(now)
        elif self.stage == "waiting":
            self._try_open(now)
        elif self.stage == "parting":
            self._part(now)

    def _try_open(self, now: float) -> None:
        run = self.settings.run
        fit = self.roster.fit(run.plan.min_samples)
        if len(fit) < run.min_nodes:
            self._say(f"waiting for nodes: {len(fit)} of {run.min_nodes} are ready", now)
            return
        if now - self._last_node_at < run.settle_s and not self._rounds:
            return
        number, recent = self._next_number(), self._recent()
        self._begin(
            LiveRound.open(self._parts(), fit, number=number, recent=recent, roster=self.roster, now=now)
        )

    def _parts(self) -> Any:
        assert self._opening is not None  # noqa: S101 - the stage says so
        return self._opening.parts(
            run=self.run_id,
            journal=self._journal,
            worker=self._worker,
            outlet=self._outlet,
            workshop=self._workshop,
            clock=self._clock,
            announce=self._announce,
            invite=self._invite,
            closed=self._round_closed,
        )

    def _begin(self, live: LiveRound) -> None:
        self._live = live
        self.stage = "round"
        announcement = self._announcement()
        refs = [announcement.model, announcement.manifest, announcement.trainer, announcement.base]
        self._down.serve([ref for ref in refs if ref is not None], len(live.round.cohort))
        log.info(
            "run=%s round=%d opened cohort=%d deadline_s=%.0f",
            self.run_id,
            live.round.number,
            len(live.round.cohort),
            live.deadline_s,
        )
        self._flow.bytes_sent = 0
        self._announce()
        live.begin(self._clock())

    def _announce(self) -> None:
        announcement = self._announcement()
        self._outlet.send(announcement)
        if announcement.cohort is None and announcement.state == "open" and self._live is not None:
            for node in self._live.round.awaited:
                self._invite(node)

    def _invite(self, node: NodeId) -> None:
        self._outlet.send(Notice(invited=True, announcement=self._announcement()), node)

    def _announcement(self) -> Announcement:
        assert self._live is not None and self._artefacts is not None  # noqa: S101 - the stage says so
        live, art = self._live, self._artefacts
        full = Announcement(
            run=self.run_id,
            round=live.round.number,
            state=live.round.phase.value,
            rounds=self.settings.run.rounds,
            epoch=self._epoch,
            labels=list(art.labels),
            model=live.model,
            manifest=art.manifest,
            trainer=art.trainer,
            base=art.base,
            plan=live.plan,
            bounds=live.bounds,
            deadline_s=live.deadline_s,
            cohort=list(live.round.cohort),
            cohort_size=len(live.round.cohort),
        )
        return full if len(full.encode()) <= READABLE_BYTES else full.model_copy(update={"cohort": None})

    def _round_closed(self, closed: Closed) -> None:
        live = self._live
        assert live is not None and self._opening is not None  # noqa: S101 - the stage says so
        result = closed.result.model_copy(update={"bytes_down": self._flow.bytes_sent})
        record = {**result.model_dump(mode="json", exclude={"v"}), **closed.details}
        if closed.weights is not None and closed.model is not None:
            self._journal.close_round(self.run_id, result.round, record, closed.model, closed.state)
            self._opening.advance(closed.weights, closed.model, closed.state)
        else:
            self._journal.close_round(
                self.run_id, result.round, record, self._opening.model, self._opening.state
            )
        # Up to here a full disk changes nothing, and all of it is tried again.
        self._live = None
        self._rounds.append(record)
        live.collection.close(remove=True)
        self._prune()
        self._publish(result)
        self._write_history()
        self._next()

    def _publish(self, result: RoundResult) -> None:
        self._outlet.send(result)
        if result.state == "failed":
            log.warning("run=%s round=%d failed: %s", self.run_id, result.round, result.why)
            return
        assert self._opening is not None and self._artefacts is not None  # noqa: S101 - it closed
        best = rules.best_of(history.closed(self._rounds))
        self._outlet.send(
            ModelManifest(
                run=self.run_id,
                round=result.round,
                model=self._opening.model_ref,
                labels=list(self._artefacts.labels),
                accuracy=result.accuracy,
                best=best is not None and best.round == result.round,
            )
        )
        for name in ("accuracy", "loss", "bytes_up", "bytes_down", "seconds"):
            self._outlet.metric(name, float(getattr(result, name) or 0.0))
        self._outlet.metric("contributors", len(result.contributors))
        self._outlet.metric("round", result.round)
        log.info(
            "run=%s round=%d closed accuracy=%.1f%% loss=%.4f contributors=%d rejected=%d missing=%d",
            self.run_id,
            result.round,
            100 * (result.accuracy or 0),
            result.loss or 0,
            len(result.contributors),
            len(result.rejected),
            len(result.missing),
        )

    def _next(self) -> None:
        failed = 0
        for r in reversed(self._rounds):
            if r["state"] == "closed":
                break
            failed += 1
        self._stop = rules.stop(self.settings.run, history.closed(self._rounds), failed)
        if self._stop is None:
            self.stage = "waiting"
            return
        best = rules.best_of(history.closed(self._rounds))
        self._write_history()
        if best is None:
            self._journal.end_run(self.run_id, "failed", self._stop)
            last = self._rounds[-1]["why"] if self._rounds else "no round was opened"
            raise RunFailed(f"run {self.run_id} ended without a model: {self._stop}; the last: {last}")
        self.stage = "finishing"
        log.info("run=%s %s; finishing with round=%d", self.run_id, self._stop, best.round)
        model = next(r["model"] for r in self._rounds if r["round"] == best.round)
        assert self._artefacts is not None  # noqa: S101 - rounds were closed
        finish = partial(self._workshop.finish, self._artefacts, self._decode(model), self.folder)
        self._worker.submit(finish, partial(self._finished, model))

    def _finished(self, model: str, extra: dict[str, Any]) -> None:
        told = self._write_history()
        seconds = self._wall() - self._created
        self.summary = history.summary(told, model, seconds, extra)
        history.write(self.folder, "summary.json", self.summary)
        self._worker.submit(partial(self._inspect, self.folder), self._done)

    def _done(self, _: Any) -> None:
        last = self._announcement_finished()
        if last is not None:
            self._outlet.send(last)
        self._part_at = self._clock() + _PARTING_S
        self.stage = "parting"

    def _part(self, now: float) -> None:
        """End the run once the broker has what was said last: nobody answers after us.

        A node whose receipt was lost learns by it that its update is not waited for. Journaled after it was
        said: a coordinator that is killed between the two says it once more.
        """
        if (self._bus.connected and self._bus.backlog == 0) or now >= self._part_at:
            self._journal.end_run(self.run_id, "finished", self._stop or "")
            self.stage = "done"

    # -- small parts -----------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the run's results go."""
        return self.settings.coordinator.runs_dir / self.run_id

    def _announcement_finished(self) -> Announcement | None:
        if self._opening is None or self._artefacts is None or not self._rounds:
            return None
        run, art = self.settings.run, self._artefacts
        return Announcement(
            run=self.run_id,
            round=self._rounds[-1]["round"],
            state="finished",
            rounds=run.rounds,
            epoch=self._epoch,
            labels=list(art.labels),
            model=self._opening.model_ref,
            manifest=art.manifest,
            trainer=art.trainer,
            base=art.base,
            plan=run.plan,
            bounds=run.bounds,
            deadline_s=1.0,
            cohort=[],
        )

    def _write_history(self) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        for r in self._rounds:
            for name, share in r.get("shares", {}).items():
                nodes[name] = share
        labels = self._artefacts.labels if self._artefacts else ()
        nodes = dict(sorted(nodes.items()))
        told = history.history(
            run=self.run_id,
            created=self._created,
            settings=self.settings,
            labels=labels,
            initial=self._initial,
            rounds=self._rounds,
            nodes=nodes,
            stop=self._stop,
        )
        history.write(self.folder, "history.json", told)
        return told

    def _prune(self) -> None:
        """Keep the models that something may still need: the first, the best, the newest."""
        assert self._opening is not None and self._artefacts is not None  # noqa: S101 - a round ended
        best = rules.best_of(history.closed(self._rounds))
        keep = {self._opening.model, self._artefacts.initial.digest}
        keep |= {r["model"] for r in self._rounds if best is not None and r["round"] == best.round}
        for r in self._rounds:
            if r["model"] and r["model"] not in keep:
                self._blobs.remove(Digest(r["model"]))

    def _whole(self, artefacts: Artefacts) -> bool:
        refs = (artefacts.manifest, artefacts.trainer, artefacts.base, artefacts.initial)
        return all(self._blobs.verify(Digest(ref.digest)) for ref in refs if ref is not None)

    def _decode(self, digest: str) -> Weights:
        return blob.decode(self._blobs.read(Digest(digest)), who="the blob store").weights

    def _next_number(self) -> int:
        return self._rounds[-1]["round"] + 1 if self._rounds else 1

    def _recent(self) -> list[list[float]]:
        return [[c["seconds"] for c in r["contributors"].values()] for r in self._rounds if r["contributors"]]

    def _status(self, state: Literal["online", "offline"]) -> CoordinatorStatus:
        return status(state, self._epoch, self.run_id)

    def _check_limits(self, max_packet_bytes: int) -> None:
        need = CHUNK_BYTES + ENVELOPE_BYTES + 256
        if 0 < max_packet_bytes < need:
            raise BusError(
                f"the broker takes packets of at most {max_packet_bytes} bytes, chunks need {need}: "
                "raise max_packet_size in mosquitto.conf"
            )

    def _guarded(self, who: str, act: Callable[[], object]) -> None:
        """Do something for a peer: its faults are logged and cost nobody else anything."""
        try:
            act()
        except WireError as e:
            self._complain(who, e)
        except StoreError as e:
            log.error("%s", e)

    def _once(self, key: str, what: str) -> None:
        """Warn of something the first time it is seen."""
        if ("once", key) not in self._warned and len(self._warned) < _MAX_WARNED:
            self._warned.add(("once", key))
            log.warning("%s", what)

    def _complain(self, who: str, error: Exception) -> None:
        """WARNING for the first of its kind from a peer, then DEBUG."""
        key = (who, type(error).__name__)
        first = key not in self._warned and len(self._warned) < _MAX_WARNED
        self._warned.add(key)
        log.log(logging.WARNING if first else logging.DEBUG, "%s", error)

    def _say(self, what: str, now: float) -> None:
        if what != self._said[1] or now - self._said[0] >= _SAY_EVERY_S:
            self._said = (now, what)
            log.info("run=%s %s", self.run_id, what)


def status(state: Literal["online", "offline"], epoch: str, run: str | None) -> CoordinatorStatus:
    """The coordinator's birth or goodbye."""
    return CoordinatorStatus(state=state, epoch=epoch, version=__version__, run=run)


def will(topics: Topics, epoch: str) -> Will:
    """What the broker says when the coordinator vanishes."""
    return Will(topics.build(Kind.COORDINATOR_STATUS), status("offline", epoch, None).encode())
