"""A plain release in a folder: `.tflite` files, labels and a manifest, for people without an account."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from apiary.errors import PublishError
from apiary.files import disk_errors, sync_folder, write_atomic, write_json
from apiary.settings import Settings
from apiary_coordinator.publishers._record import PublishRecord
from apiary_coordinator.publishers.base import Candidate, PublishProgress, file_sha256

REMOTE: Final = False
LATEST: Final = "latest"


def entry(candidate: Candidate, settings: Settings) -> str:
    """One for the run."""
    return "directory"


def wanted(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    """The folder and all digests."""
    return {"folder": str(_folder(candidate, settings)), "digests": dict(candidate.digests)}


def publish(
    candidate: Candidate, settings: Settings, record: PublishRecord, watch: PublishProgress
) -> dict[str, Any]:
    """Fill the release's folder aside, move it into place, point `latest` at it. Raises StoreError."""
    target = _folder(candidate, settings)
    with disk_errors(f"publish.directory {target.parent}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        with disk_errors(f"{target}"):
            manifest = _fill(candidate, aside)
            aside.chmod(0o755)
            sync_folder(aside)
            _move(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    watch.say(f"released {', '.join(manifest['files'])} in {target}")
    files = {str(target / name): entry["sha256"] for name, entry in manifest["files"].items()}
    return {"folder": str(target), "files": files}


def _folder(candidate: Candidate, settings: Settings) -> Path:
    return settings.publish.directory.resolve() / candidate.run


def _fill(candidate: Candidate, aside: Path) -> dict[str, Any]:
    names = [*candidate.digests, "labels.txt"]
    for name in names:
        write_atomic(aside / name, (candidate.folder / name).read_bytes())
        if candidate.digests.get(name, file_sha256(aside / name)) != file_sha256(aside / name):
            raise PublishError(f"{candidate.folder / name} changed while it was published: publish again")
    shape = candidate.input
    manifest = {
        "v": 1,
        "run": candidate.run,
        "round": candidate.round,
        "labels": list(candidate.labels),
        "input": {
            "height": shape.height,
            "width": shape.width,
            "channels": shape.channels,
            "values": "0..255",
            "resize": "squash",
            **({"letters": shape.letters} if shape.letters else {}),
        },
        "accuracy": dict(candidate.accuracy),
        "contributors": candidate.contributors,
        "files": {
            name: {"sha256": file_sha256(aside / name), "bytes": (aside / name).stat().st_size}
            for name in names
        },
    }
    write_json(aside / "manifest.json", manifest)
    return manifest


def _move(aside: Path, target: Path) -> None:
    """Put the folder where an older one of the same run may be; a reader sees a whole one or none."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    link = target.parent / f".{LATEST}.part"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    os.replace(link, target.parent / LATEST)  # noqa: PTH105 - Path.replace would follow nothing either, but says less
    sync_folder(target.parent)
