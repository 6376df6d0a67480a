"""What `apiary doctor` says of a node's folder, sample store and camera, and of the server's pictures."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from apiary.errors import ApiaryError, DataError, StoreError
from apiary.learn.folder.walk import Use
from apiary.settings import EdgeSettings
from apiary.wire.messages import MAX_LABELS
from apiary_cli.checks.machine import Check, State

_MOST_NAMED: Final = 8
"""Remarks on a folder that are printed."""


def folder_of(
    name: str, key: str, folder: Path | None, *, needed: bool, use: Use = "train", join_labels: bool = False
) -> Check:
    """Counts per label of a data folder; `key` is the setting that names it."""
    from apiary.learn.images import scan

    if folder is None:
        state: State = "fail" if needed else "warn"
        return Check(name, state, f"{key} is not set", f"set {key} to a folder LABEL/*.jpg")
    try:
        found = scan(folder, use=use, join_labels=join_labels)
    except DataError as e:
        return Check(name, "fail", str(e), f"put pictures into {folder}/LABEL/")
    what = f"{folder}: {_counted(found.counts)}"
    if len(found.counts) > MAX_LABELS:
        more = f"{len(found.counts)} labels, expected at most {MAX_LABELS}"
        return Check(
            name, "fail", f"{folder}: {more}", "a folder is a label: put its pictures into fewer folders"
        )
    if found.understood:
        what += f" ({'; '.join(found.understood)})"
    if warnings := found.messages():
        cut = [f"and {len(warnings) - _MOST_NAMED} more"] if len(warnings) > _MOST_NAMED else []
        return Check(name, "warn", what, "; ".join([*warnings[:_MOST_NAMED], *cut]))
    return Check(name, "ok", what)


def of_node(edge: EdgeSettings, *, needed: bool) -> Iterator[Check]:
    """What a node may train on: of its folder, of its sample store, and from its camera."""
    store = sample_store(edge.store_dir)
    if edge.data_dir is not None or (store is None and edge.camera.kind is None):
        yield folder_of(
            "pictures", "edge.data_dir", edge.data_dir, needed=needed, join_labels=edge.join_labels
        )
    if store is not None:
        yield store
    if edge.camera.kind is not None:
        yield camera(edge)


def sample_store(folder: Path) -> Check | None:
    """Counts of a node's sample store; None where it has none."""
    from apiary_edge.samples.reader import SampleReader

    if not (folder / "samples.sqlite").is_file():
        return None
    try:
        with closing(SampleReader(folder)) as store:
            counts = store.counts()
    except StoreError as e:
        return Check("sample store", "fail", str(e), "see that this user may read it: sudo -u apiary")
    waiting = counts.unlabelled + sum(counts.suggested.values())
    held_out = sum(counts.held_out.values())
    what = f"{folder}: {_counted(counts.trainable)}; {held_out} held out, {waiting} wait for a label"
    if not counts.trainable:
        return Check("sample store", "warn", what, "label some: apiary label, or apiary samples label")
    return Check("sample store", "ok", what)


def camera(edge: EdgeSettings) -> Check:
    """Whether the camera that is set can be meant; it is not opened, a service may hold it."""
    from apiary_edge.cameras.base import make

    source = f" {edge.camera.source}" if edge.camera.kind != "stream" else ""
    what = f"{edge.camera.kind}{source}"
    try:
        make(edge.camera)
    except ApiaryError as e:
        return Check("camera", "fail", str(e), "apiary capture --camera KIND --source SOURCE tries one")
    except ImportError as e:
        return Check("camera", "fail", f"{what}: {e}", "pip install 'apiary-fl[camera]'")
    if edge.camera.kind in ("folder", "usb") and "/" in edge.camera.source:
        path = Path(edge.camera.source)
        if not path.exists():
            return Check("camera", "fail", f"{what} is not there", "plug it in, or set edge.camera.source")
        if not os.access(path, os.R_OK):
            return Check("camera", "fail", f"{what}: this user may not read it", "add it to the group video")
    return Check("camera", "ok", what)


def _counted(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{n} {label}" for label, n in list(counts.items())[:20])
    more = f", and {len(counts) - 20} more labels" if len(counts) > 20 else ""
    return (shown or "no picture to train on") + more
