"""Releases, their files, and a store in which some are installed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from apiary.wire.messages import BlobRef, PictureShape, Release
from apiary_edge.releases.slot import Findings
from apiary_edge.releases.store import ReleaseStore, folder_of

GOOD = Findings(pictures=20, right=19, right_before=18, inference_ms=5.0)

BYTES = {name: name.encode() * 5000 for name in ("one", "two", "three")}


def release(name: str, kind: str = "tflite", attempt: int = 1) -> Release:
    digest = hashlib.sha256(BYTES[name]).hexdigest()
    return Release(
        name=name,
        file=BlobRef(digest=digest, bytes=len(BYTES[name])),
        kind=kind,
        labels=["a", "b"],
        input=PictureShape(height=8, width=10, channels=3),
        attempt=attempt,
    )


def blob(folder: Path, name: str) -> Path:
    path = folder / f"{name}.blob"
    path.write_bytes(BYTES[name])
    return path


def installed(state: Path, *names: str) -> ReleaseStore:
    shelf = ReleaseStore(folder_of(state))
    for name in names:
        shelf.take(blob(state, name), release(name))
        shelf.swap(release(name), GOOD)
    return shelf


def files(state: Path) -> set[str]:
    return {p.name.split(".")[0] for p in (folder_of(state) / "files").iterdir()}


def digests(*names: str) -> set[str]:
    return {release(name).file.digest for name in names}
