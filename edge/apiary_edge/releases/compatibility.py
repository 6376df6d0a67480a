"""Whether a release is for this node at all, before its file is fetched; and its file, before it is run."""

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from apiary.eim import elf
from apiary.errors import ModelError
from apiary.wire.messages import Release


@dataclass(frozen=True, slots=True)
class Host:
    """What counts of this node: its machine in Edge Impulse's names, Apiary's version, room for a release."""

    machine: str | None
    version: str
    max_bytes: int


def why_unfit(release: Release, host: Host, wall: float) -> str | None:
    """Why this node cannot have it, None where it can. `wall` is seconds since 1970."""
    if release.expires is not None and wall > release.expires:
        days = (wall - release.expires) / 86400
        return f"it expired {days:.1f} days ago by this node's clock"
    if _numbers(release.min_version) > _numbers(host.version):
        return f"it needs Apiary {release.min_version}, this node has {host.version}: upgrade it"
    if release.file.bytes > host.max_bytes:
        return f"it has {release.file.bytes} bytes, expected at most {host.max_bytes} (edge.slots.max_mb)"
    if release.kind == "eim" and release.machine != host.machine:
        return f"it is a program for {release.machine}, this node is {host.machine or 'another machine'}"
    return None


def check_file(path: Path, release: Release) -> None:
    """Raises ModelError where the file cannot be what the manifest says; its digest is checked elsewhere."""
    size = path.stat().st_size
    if size != release.file.bytes:
        raise ModelError(f"{release.name}: {size} bytes, its manifest says {release.file.bytes}")
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if release.kind == "eim":
            # Only slices of it are taken: a program of 60 MB need not pass through memory.
            elf.check(cast("bytes", data), release.machine or "", who=release.name)
        elif data[4:8] != b"TFL3":
            raise ModelError(f"{release.name} is no .tflite file: it begins {data[:8].hex(' ')}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:4])
