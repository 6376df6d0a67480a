"""A picture of a stopped coordinator's files: `snapshot.py STATE_DIR TO`. Standard library only.

The journal by SQLite's own backup, so that it is one whole file; what is never changed in place (blobs,
exports) as hard links, which take no time and no room; the rest copied.
"""

import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

LINKED = ("blobs", "exports")


def main(state: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(mode=0o700)
    for name in ("coordinator", "runs"):
        if (state / name).is_dir():
            copy(state / name, to / name)
    journal = state / "coordinator" / "journal.sqlite"
    if journal.exists():
        target = to / "coordinator" / "journal.sqlite"
        with closing(sqlite3.connect(journal)) as live, closing(sqlite3.connect(target)) as copied:
            live.backup(copied)
            (verdict,) = copied.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            sys.exit(f"{journal}: {verdict}")
        shutil.copystat(journal, target)
        owner = journal.stat()
        os.chown(target, owner.st_uid, owner.st_gid)


def copy(source: Path, target: Path, *, linked: bool = False) -> None:
    """A folder, its owner and modes kept; SQLite's files left out."""
    target.mkdir()
    told = source.stat()
    os.chown(target, told.st_uid, told.st_gid)
    shutil.copystat(source, target)
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        if entry.is_symlink():
            there.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy(entry, there, linked=linked or entry.name in LINKED)
        elif entry.name.startswith("journal.sqlite") or not entry.is_file():
            continue
        elif linked:
            there.hardlink_to(entry)
        else:
            shutil.copy2(entry, there)
            told = entry.stat()
            os.chown(there, told.st_uid, told.st_gid)


main(Path(sys.argv[1]), Path(sys.argv[2]))
