"""What must hold at the end, whatever was done to the fleet."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apiary.files import sha256_of
from apiary_cli.chaos.fleet import RUN, Fleet
from apiary_cli.chaos.processes import ports_in_use
from apiary_cli.chaos.states import SeenStates, rows
from apiary_cli.demo.federation import COORDINATOR
from apiary_coordinator.report.history_file import read_history

TRACEBACK: Final = "Traceback (most recent call last)"
MEMORY_FACTOR: Final = 1.3
MEMORY_SPARE_MB: Final = 32.0
"""A disturbed party may take so much more than an undisturbed one: retries and repeats are not free."""
SAME: Final = ("model.tflite", "model_int8.tflite", "labels.txt", "input.json")
"""Files of a result that are the same to the last byte in every run of the same kind."""
CHILD: Final = "training child"
CHILD_MB: Final = 140.0
"""A child lives for seconds, so its peak undisturbed is seen by luck only: its own bound holds."""


@dataclass(frozen=True, slots=True)
class InvariantResult:
    """One invariant; `seen` says what was found, in either case."""

    name: str
    holds: bool
    seen: str


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run: its summary, its rounds, and the greatest memory of each role in MB."""

    summary: Mapping[str, Any]
    rounds: list[dict[str, Any]]
    peaks_mb: Mapping[str, float]

    @property
    def samples(self) -> list[dict[str, int]]:
        """What each node counted for, round by round."""
        return [{n: c["samples"] for n, c in r["contributors"].items()} for r in self.rounds]


def read_record(folder: Path, summary: Mapping[str, Any], peaks_mb: Mapping[str, float]) -> FinishedRun:
    """The record of the run in a fleet's folder."""
    history = read_history(folder / "runs" / RUN)
    return FinishedRun(summary, history["rounds"], dict(peaks_mb))


def same_model(calm: FinishedRun, storm: FinishedRun) -> InvariantResult:
    """The same final model and the same model after every round, bit by bit."""
    name = "the model is bit-identical"
    wanted, got = calm.summary["model_sha256"], storm.summary["model_sha256"]
    ways = [r["round"] for r, s in zip(calm.rounds, storm.rounds, strict=False) if r["model"] != s["model"]]
    if wanted == got and not ways:
        return InvariantResult(name, True, f"{got[:16]} after {len(storm.rounds)} rounds")
    where = f"first in round {ways[0]}" if ways else "though each round's model is the same"
    return InvariantResult(name, False, f"{got[:16]}, undisturbed {wanted[:16]}; {where}")


def counted_once(
    calm: FinishedRun, storm: FinishedRun, refused: frozenset[str] = frozenset()
) -> InvariantResult:
    """Per round: every node, once, with the samples of the undisturbed run; nobody missing.

    Rejected are those in `refused`, each in every round, and nobody else.
    """
    name = "every node counted once a round"
    if len(calm.rounds) != len(storm.rounds):
        return InvariantResult(name, False, f"{len(storm.rounds)} rounds, undisturbed {len(calm.rounds)}")
    for r, wanted, got in zip(storm.rounds, calm.samples, storm.samples, strict=True):
        if r["state"] != "closed" or set(r["rejected"]) != refused or r["missing"]:
            return InvariantResult(
                name, False, f"round {r['round']}: {r['state']}, {r['rejected']}, missing {r['missing']}"
            )
        if wanted != got:
            return InvariantResult(name, False, f"round {r['round']}: samples {got}, undisturbed {wanted}")
    total = sum(sum(counted.values()) for counted in storm.samples)
    seen = f"{total} samples in {len(storm.rounds)} rounds, as undisturbed"
    if refused:
        seen += f"; {', '.join(sorted(refused))} refused in each"
    return InvariantResult(name, True, seen)


def journal_sound(fleet: Fleet, storm: FinishedRun) -> InvariantResult:
    """SQLite finds nothing wrong, and holds exactly one accepted update a node and round."""
    name = "the journal is sound"
    db = sqlite3.connect(fleet.state(COORDINATOR) / "journal.sqlite")
    try:
        found = [row[0] for row in db.execute("PRAGMA integrity_check")]
        rows = db.execute("SELECT count(*) FROM accepted WHERE run = ?", (RUN,)).fetchone()[0]
    except sqlite3.Error as e:
        return InvariantResult(name, False, str(e))
    finally:
        db.close()
    expected = len(fleet.nodes) * len(storm.rounds)
    if found != ["ok"]:
        return InvariantResult(name, False, "; ".join(found[:3]))
    return InvariantResult(name, rows == expected, f"integrity ok, {rows} accepted updates of {expected}")


def nothing_waits(fleet: Fleet) -> InvariantResult:
    """Outboxes and spool are empty."""
    waiting = {node: names for node in fleet.nodes if (names := outbox(fleet.state(node)))}
    folder = fleet.state(COORDINATOR) / "spool"
    spooled = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    seen = f"outboxes {waiting or 'empty'}, spool {spooled or 'empty'}"
    return InvariantResult("outboxes and spool are empty", not waiting and not spooled, seen)


def nothing_half_written(fleet: Fleet) -> InvariantResult:
    """No temporary file is left behind by a write that was cut off."""
    found = leftovers(fleet.folder)
    shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return InvariantResult("no half-written file is left", not found, shown or "none")


def stores_sound(fleet: Fleet, storm: FinishedRun) -> InvariantResult:
    """Every blob of every party gives its name, and every node knows the last round as done."""
    wrong, seen = [], 0
    for party in fleet.parties:
        for blob in (fleet.state(party) / "blobs").glob("[0-9a-f]*"):
            seen += 1
            if sha256_of(blob) != blob.name:
                wrong.append(f"{party}: {blob.name[:12]} is damaged")
    last = [RUN, len(storm.rounds)]
    for node in fleet.nodes:
        try:
            done = json.loads((fleet.state(node) / "outbox" / "done.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            done = str(e)
        if done != last:
            wrong.append(f"{node} is done with {done}, expected {last}")
    return InvariantResult(
        "the other stores are sound", not wrong, "; ".join(wrong[:3]) or f"{seen} blobs give their names"
    )


def result_whole(calm: Fleet, storm: Fleet) -> InvariantResult:
    """The same files in the run's folder; those that hold no time and no seconds with the same bytes."""
    ours, theirs = (fleet.folder / "runs" / RUN for fleet in (calm, storm))
    wanted = {p.relative_to(ours) for p in ours.rglob("*") if p.is_file()}
    got = {p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file()}
    wrong = [f"{name} is missing" for name in sorted(wanted - got)]
    wrong += [f"{name} is too much" for name in sorted(got - wanted)]
    for name in (n for n in SAME if Path(n) in wanted & got):
        if sha256_of(ours / name) != sha256_of(theirs / name):
            wrong.append(f"{name} differs")
    return InvariantResult(
        "the result is whole", not wrong, "; ".join(wrong[:3]) or f"{len(got)} files as undisturbed"
    )


def nothing_running(fleet: Fleet) -> InvariantResult:
    """After the end: no process, no port."""
    processes, ports = fleet.left_running(), ports_in_use(fleet.ports)
    seen = "; ".join([*processes[:3], *(f"port {p}" for p in ports)]) or "no process, no port"
    return InvariantResult("nothing is left running", not processes and not ports, seen)


def no_crash(fleet: Fleet) -> InvariantResult:
    """No party ended by itself, no child outlived its party, and no log holds a traceback."""
    traces = [name for name, text in fleet.logs().items() if TRACEBACK in text]
    seen = [*(f"{what[:300]}" for what in fleet.fell[:3]), *(f"a traceback in {name}" for name in traces)]
    seen += [f"{what} outlived it" for what in fleet.outlived[:3]]
    return InvariantResult("no party fell by itself", not seen, "; ".join(seen) or "no crash, no traceback")


def memory_bounded(calm: FinishedRun, storm: FinishedRun) -> InvariantResult:
    """Nobody took much more memory than in the undisturbed run."""
    over, seen = [], []
    for role, peak in sorted(storm.peaks_mb.items()):
        before = calm.peaks_mb.get(role, 0.0)
        seen.append(f"{role} {peak:.0f} MB ({before:.0f})")
        bound = CHILD_MB if role == CHILD else MEMORY_FACTOR * before + MEMORY_SPARE_MB
        if peak > bound and (before or role == CHILD):
            over.append(role)
    return InvariantResult("memory is bounded (undisturbed)", not over, ", ".join(seen))


def every_transition(states: SeenStates) -> InvariantResult:
    """A fault fell into every transition of the tables that a run without losses goes through."""
    missing = [f"{table}: {before} to {after}" for table, before, after in states.missing]
    seen = f"{len(rows()) - len(missing)} of {len(rows())}"
    if missing:
        seen += f"; none into {', '.join(missing)}"
    return InvariantResult("a fault fell into every transition", not missing, seen)


def all_dealt(dealt: int, wanted: int) -> InvariantResult:
    """The run lasted long enough for every fault."""
    return InvariantResult("every fault was dealt", dealt == wanted, f"{dealt} of {wanted}")


def outbox(state: Path) -> list[str]:
    """Names of the files that wait in a node's outbox."""
    folder = state / "outbox"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.name != "done.json" and not p.name.startswith("."))


def leftovers(folder: Path) -> list[str]:
    """Half-written files below `folder`; there are none while no party is writing."""
    found = [p for pattern in (".*.part", "*.download") for p in folder.rglob(pattern)]
    return sorted(str(p.relative_to(folder)) for p in found)
