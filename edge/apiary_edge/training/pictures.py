"""The pictures that a training child uses: labelled samples of the store, a folder's, or both."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from apiary.errors import DataError
from apiary.learn import features, images
from apiary.learn.cache import ArrayCache
from apiary.learn.folder import labels as naming
from apiary.learn.images import Dataset, PictureRecord, Scan
from apiary.learn.manifest import Manifest, PictureInput
from apiary.learn.runtimes.base import Runtime
from apiary.wire import held_out as held_out_digests
from apiary_edge.samples.model import TrainingSample
from apiary_edge.samples.reader import SampleReader

ALSO_HELD_OUT: Final = (
    "pictures are in the server's held-out set as well: its accuracy looks better than it is; remove them "
    "from one of the two"
)


class Sources(Protocol):
    """Where samples come from: the sample store, the folders of `data_dir`, or both."""

    @property
    def store(self) -> Path | None:
        """Folder of the sample store."""

    @property
    def data_dir(self) -> Path | None:
        """Folder of pictures."""

    @property
    def join_labels(self) -> bool:
        """Whether labels that differ in case, blanks or hyphens only are one."""


def find(job: Sources, labels: Sequence[str], to: PictureInput) -> Scan:
    """What there is to train on. Raises DataError where that is nothing, with what to do about it."""
    if job.store is None or to.letters:  # the store holds pictures only
        if job.data_dir is None:
            raise DataError("there are no pictures: neither a data folder nor a sample store is set")
        return images.scan(job.data_dir, labels, to, join_labels=job.join_labels)
    with closing(SampleReader(job.store)) as store:
        found = _scan(job.store, store.training(), labels, join_labels=job.join_labels)
        counts = store.counts()
    if job.data_dir is not None:
        try:
            folder = images.scan(job.data_dir, labels, to, join_labels=job.join_labels)
            found = _together(found, folder)
        except DataError:
            if not found.records:
                raise
    if not found.records:
        waiting = counts.unlabelled + sum(counts.suggested.values())
        lines = [
            f"no picture of the sample store may be trained yet: {waiting} wait for a label, "
            f"{sum(counts.held_out.values())} are held out"
        ]
        raise DataError("\n".join([*lines, *found.messages()]))
    return found


def held_out(store: Path, labels: Sequence[str], *, join_labels: bool = False) -> Scan:
    """The labelled pictures that are never trained, to test a model with; there may be none."""
    with closing(SampleReader(store)) as opened:
        return _scan(store, opened.held_out(), labels, join_labels=join_labels)


def load(
    found: Scan,
    manifest: Manifest,
    runtime: Runtime,
    cache: ArrayCache,
    *,
    base: Path | None,
    base_digest: str | None,
) -> Dataset:
    """Decode the pictures, or compute their features with the frozen base that the model stands on.

    Raises DataError where the model needs a base and there is none.
    """
    if manifest.features is None:
        return images.load(found, manifest.input, cache=cache)
    if base is None or base_digest is None:
        raise DataError("the model needs a frozen base, and none is named")
    return features.load(
        found,
        manifest.input,
        lambda: runtime.open_base(base),
        length=manifest.features,
        base_digest=base_digest,
        cache=cache,
    )


def also_held_out(held_out: Path | None, store: Path | None, data: Dataset) -> int | None:
    """How many pictures of `data` the server holds out as well; None where it does not say which it has.

    A picture of the store is compared by the file that it was imported from.
    """
    if held_out is None:
        return None
    digests = set(data.digests)
    if store is not None:
        with closing(SampleReader(store)) as opened:
            digests = {origin for digest in digests for origin in (digest, opened.origin(digest)) if origin}
    return held_out_digests.shared(held_out.read_bytes(), digests)


def without_held_out(job: Sources, found: Scan, data: Dataset) -> Dataset:
    """`data` without the pictures of a folder that the store has as well: once is enough, and held out is
    held out. Raises DataError where none is left.
    """
    if job.store is None or job.data_dir is None:
        return data
    ours = {r.path.stem for r in found.records if r.path.is_relative_to(job.store)}
    chosen: list[int] = []
    seen: set[str] = set()
    with closing(SampleReader(job.store)) as store:
        for i, digest in enumerate(data.digests):
            if digest not in seen and (digest in ours or store.knows(digest) is None):
                chosen.append(i)
                seen.add(digest)
    if len(chosen) == len(data):
        return data
    if not chosen:
        raise DataError(
            f"no picture may be trained: all of {job.data_dir} are in the store, and held out there"
        )
    kept = data.take(np.array(chosen, np.int64))
    return Dataset(kept.x, kept.y, kept.digests, kept.labels, data.skipped)


def _scan(
    folder: Path, samples: Sequence[TrainingSample], labels: Sequence[str], *, join_labels: bool
) -> Scan:
    known = tuple(labels)
    same = naming.key if join_labels else naming.readable
    spelled = {same(label): label for label in known}
    records = tuple(
        PictureRecord(Path(s.file), label, s.bytes)
        for s in samples
        if (label := spelled.get(same(s.label))) is not None
    )
    unknown = Counter(s.label for s in samples if same(s.label) not in spelled)
    return Scan(folder, records, known, dict(unknown), ())


def _together(a: Scan, b: Scan) -> Scan:
    unknown = dict(Counter(a.unknown) + Counter(b.unknown))
    return replace(
        b,
        records=(*a.records, *b.records),
        unknown=unknown,
        skipped=(*a.skipped, *b.skipped),
    )
