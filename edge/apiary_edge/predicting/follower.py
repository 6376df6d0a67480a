"""The node follows the federation's newest model: fetches its parts, and describes it once they are whole."""

import logging
from pathlib import Path
from typing import Final

from apiary.bus.inlet import Delivery
from apiary.clocks import Clocks
from apiary.files import write_atomic, write_json
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Announcement, BlobRef, ModelManifest, Notice, parts_of
from apiary.wire.topics import TopicKind
from apiary_edge.feature import NodeFeature
from apiary_edge.predicting import model_files
from apiary_edge.predicting.model_files import ModelFile
from apiary_edge.transfer.downloads import Downloads

log = logging.getLogger(__name__)

OWNER: Final = "prediction"
AGAIN_S: Final = 30.0
"""A part that is still missing is asked for again: another download may have been evicted, or given up."""


class ModelFollower(NodeFeature):
    """Keeps `newest.json` and `labels.json`. With `fetch` false only the labels are kept."""

    kinds = (TopicKind.MODEL_CURRENT, TopicKind.NODE_NOTICE)

    def __init__(self, node: NodeId, clocks: Clocks, downloads: Downloads, state_dir: Path, *, fetch: bool):
        self._node = node
        self._clocks = clocks
        self._downloads = downloads
        self._state_dir = state_dir
        self._fetch = fetch
        self._wanted: ModelManifest | None = None
        self._labels: list[str] | None = None
        self._asked_at = 0.0
        self._using: set[Digest] = set()

    def start(self, now: float) -> None:
        """What was described before is still in use."""
        found = model_files.newest(self._state_dir)
        if found is not None:
            named = (found.file, found.manifest, found.trainer, found.base)
            self._using = {Digest(path.name) for path in named if path is not None}

    def received(self, delivery: Delivery) -> None:
        """A newer model, or the labels of a run that waits for nodes."""
        match delivery.content:
            case Notice(labels=list() as labels) if labels:
                self._know(labels)
            case ModelManifest() as manifest:
                try:
                    self._follow(manifest)
                finally:
                    # Last: a disk that refuses the labels must not keep the model away, which comes once.
                    self._know(manifest.labels)

    def _follow(self, newest: ModelManifest) -> None:
        if not self._fetch or (self._wanted is not None and self._wanted.model == newest.model):
            return
        found = model_files.newest(self._state_dir)
        if found is not None and found.digest == newest.model.digest:
            return
        if newest.manifest is None or newest.trainer is None:
            log.info("node=%s round=%d the model cannot be run here: no trainer", self._node, newest.round)
            return
        self._downloads.abandon(OWNER)
        self._wanted = newest
        self._go()

    def announced(self, announcement: Announcement) -> None:
        """The labels that the run trains."""
        self._know(announcement.labels)

    def fetched(self, digest: Digest) -> None:
        """A part has come."""
        if self._wanted is not None and digest in {ref.digest for ref in parts_of(self._wanted)}:
            self._go()

    def tick(self, now: float) -> None:
        """Ask again for what has not come."""
        if self._wanted is not None and now - self._asked_at >= AGAIN_S:
            self._go()

    def keeps(self) -> set[Digest]:
        """The parts of the model in use, and of the one on its way."""
        wanted = parts_of(self._wanted) if self._wanted is not None else []
        return self._using | {Digest(ref.digest) for ref in wanted}

    def _go(self) -> None:
        """Fetch what is missing; describe the model where nothing is."""
        newest = self._wanted
        if newest is None:
            return
        now = self._asked_at = self._clocks.monotonic()
        blobs = self._downloads.blobs
        missing = [ref for ref in parts_of(newest) if not blobs.verify(Digest(ref.digest))]
        for ref in missing:
            self._downloads.fetch(ref, now, OWNER)
        if missing:
            return

        def path(ref: BlobRef | None) -> Path | None:
            return blobs.path(Digest(ref.digest)).absolute() if ref is not None else None

        file = path(newest.model)
        assert file is not None  # noqa: S101 - every manifest names its model
        found = ModelFile(
            kind="trainer",
            name=f"round {newest.round} of run {newest.run}",
            digest=newest.model.digest,
            file=file,
            labels=tuple(newest.labels),
            accuracy=newest.accuracy,
            tested_on=newest.tested_on,
            manifest=path(newest.manifest),
            trainer=path(newest.trainer),
            base=path(newest.base),
            base_digest=newest.base.digest if newest.base is not None else None,
        )
        write_atomic(model_files.newest_file(self._state_dir), found.model_dump_json(indent=2).encode())
        self._using = {Digest(ref.digest) for ref in parts_of(newest)}
        self._wanted = None
        log.info("node=%s round=%d the newest model is here", self._node, newest.round)

    def _know(self, labels: list[str]) -> None:
        if labels == self._labels:
            return
        if tuple(labels) != model_files.told_labels(self._state_dir):
            write_json(model_files.labels_file(self._state_dir), {"labels": labels})
        self._labels = labels
