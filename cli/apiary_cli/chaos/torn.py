"""What a power cut leaves on the disk of a party that was killed: files that had not been synced, torn.

Nothing is touched that the party had synced before it spoke of it; that is its promise, not ours to break.
"""

import random
import sqlite3
from pathlib import Path
from typing import Final

_GARBAGE: Final = 5_000
_CACHE_ENTRIES: Final = 3


def tear_node(state: Path, chance: random.Random) -> list[str]:
    """Leave half-written files in a node's folders and tear what it does not sync; what was done."""
    done = [
        _leave(state / "outbox", f".{_name(chance)}.json.x{chance.randrange(999)}.part", chance),
        _leave(state / "outbox", f"{_name(chance)}.update", chance),
        _leave(state / "blobs", f".{_name(chance)}.x{chance.randrange(999)}.part", chance),
        _leave(state / "blobs", f"{_name(chance)}.download", chance),
        _leave(state / "training", f".update.blob.x{chance.randrange(999)}.part", chance),
    ]
    job = state / "training" / "job.json"
    if job.is_file():
        done.append(_cut(job, chance))
    return [d for d in [*done, *tear_cache(state / "cache", chance)] if d]


def tear_coordinator(state: Path, results: Path, chance: random.Random) -> list[str]:
    """The same for the coordinator, with garbage in its spool and after its journal's log; what was done."""
    done = [
        _leave(state / "blobs", f".{_name(chance)}.x{chance.randrange(999)}.part", chance),
        _leave(state / "blobs", f"{_name(chance)}.download", chance),
        _leave(state, f".final.blob.x{chance.randrange(999)}.part", chance),
        _leave(results, f".history.jsonl.x{chance.randrange(999)}.part", chance),
        _leave(state / "spool", f"{results.name}-0.spool", chance),
    ]
    log = state / "journal.sqlite-wal"
    if log.is_file():
        with log.open("ab") as f:
            f.write(chance.randbytes(_GARBAGE))
        done.append("garbage after the journal's log")
    for spool in (state / "spool").glob("*.spool"):
        done.append(_spoil(spool, _journaled(state / "journal.sqlite", spool), chance))
    return [d for d in [*done, *tear_cache(state / "cache", chance)] if d]


def tear_cache(cache: Path, chance: random.Random) -> list[str]:
    """Cut some entries of a cache short, and leave one half-written."""
    entries = sorted(p for p in cache.glob("*/*/*") if p.is_file() and not p.name.startswith("."))
    done = [_cut(p, chance) for p in chance.sample(entries, min(_CACHE_ENTRIES, len(entries)))]
    if entries:
        done.append(_leave(entries[0].parent, f".{_name(chance)}.x1.part", chance))
    return [d for d in done if d]


def _journaled(journal: Path, spool: Path) -> list[tuple[int, int]]:
    """Offset and size of the updates in this spool that the journal knows; they were synced before."""
    run, _, number = spool.stem.rpartition("-")
    query = "SELECT slot, bytes FROM accepted WHERE run = ? AND round = ?"
    db = sqlite3.connect(journal)
    try:
        return [(slot, size) for slot, size in db.execute(query, (run, int(number)))]
    finally:
        db.close()


def _spoil(spool: Path, kept: list[tuple[int, int]], chance: random.Random) -> str:
    """Garbage wherever no journaled update lies, and beyond the end."""
    size = spool.stat().st_size
    page = 4096
    with spool.open("r+b") as f:
        for at in range(0, size, page):
            if all(at + page <= slot or at >= slot + length for slot, length in kept):
                f.seek(at)
                f.write(chance.randbytes(min(page, size - at)))
        f.seek(size)
        f.write(chance.randbytes(_GARBAGE))
    return f"garbage in {spool.name} outside of {len(kept)} journaled updates"


def _leave(folder: Path, name: str, chance: random.Random) -> str:
    if not folder.is_dir():
        return ""
    (folder / name).write_bytes(chance.randbytes(chance.randrange(1, _GARBAGE)))
    return name


def _cut(path: Path, chance: random.Random) -> str:
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.truncate(chance.randrange(size) if size else 0)
    return f"{path.name[:12]} cut short"


def _name(chance: random.Random) -> str:
    return f"{chance.randrange(2**256):064x}"
