"""Samples in folders to bytes of one size: uint8[H, W, C], never floats."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn import text
from apiary.learn.cache import ArrayCache
from apiary.learn.folder import labels as naming
from apiary.learn.folder import walk
from apiary.learn.folder.walk import FolderContents, Skipped, Use
from apiary.learn.manifest import PictureInput
from apiary.learn.modes import plain
from apiary.learn.sample_files import MAX_FILE_BYTES, MAX_PIXELS, check_decodable, opened_picture

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DATASET_BYTES: Final = 512 * 2**20
"""Of the decoded pictures together; 19,000 pictures of 96x96x3."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """A picture file, its label and its size in bytes."""

    path: Path
    label: str
    size: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies in a folder: pictures sorted by label, folder and file name, and what was left out.

    `unknown` counts the pictures of labels that the model does not know; `notes` are on what the folder holds
    besides, `understood` says how it is meant where that is not a folder a label.
    """

    folder: Path
    records: tuple[PictureRecord, ...]
    known: tuple[str, ...]
    unknown: Mapping[str, int]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    understood: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Pictures of each known label that has any, in the order of `known`."""
        found = Counter(r.label for r in self.records)
        return {label: found[label] for label in self.known if found[label]}

    def messages(self) -> list[str]:
        """What an operator should know, a sentence each."""
        lines = [
            f"{self.folder}: {count} pictures of label {label!r} are left out: the model knows "
            f"{', '.join(self.known)}; rename the folder, or have the coordinator add the label"
            for label, count in self.unknown.items()
        ]
        if len(self.counts) == 1:
            lines.append(
                f"{self.folder}: all pictures have the label {next(iter(self.counts))!r}; "
                "a node with one class learns little by itself, others must hold the rest"
            )
        lines += [f"{self.folder}: {note}" for note in self.notes]
        return lines + [f"{naming.shown(str(s.path))}: left out: {s.why}" for s in self.skipped]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples of one node: `x` uint8[N, H, W, C] pictures or float32[N, F] features of a frozen base.

    `y` int64[N] indexes `labels`; `digests` are the sha256 (hex) of the picture files.
    """

    x: Bytes | NDArray[np.float32]
    y: NDArray[np.int64]
    digests: tuple[str, ...]
    labels: tuple[str, ...]
    skipped: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.y)

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each label, in order."""
        found = np.bincount(self.y, minlength=len(self.labels))
        return {label: int(n) for label, n in zip(self.labels, found, strict=True)}

    def floats(self, which: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """The chosen samples as float32, pixels 0..255: one batch, not all."""
        return np.ascontiguousarray(self.x[which], dtype=np.float32)

    def take(self, which: NDArray[np.int64]) -> Dataset:
        """A data set of the chosen samples."""
        return Dataset(self.x[which], self.y[which], tuple(self.digests[i] for i in which), self.labels)


def scan(
    folder: Path,
    labels: Sequence[str] | None = None,
    to: PictureInput | None = None,
    *,
    use: Use = "train",
    join_labels: bool = False,
) -> Scan:
    """List the pictures under `folder` for a use; `labels` None takes those that it has. Raises DataError.

    Texts instead of pictures where `to` reads letters; where nothing is known yet (None) and there is no
    picture at all, texts too. `join_labels`: those that differ in case, blanks or hyphens only are one.
    """
    contents = walk.look_for_samples(folder) if to is None else walk.look(folder, texts=bool(to.letters))
    if join_labels:
        contents = walk.join(contents, tuple(labels or ()))
    result = _scan_of(contents, labels, use)
    if not result.records:
        why = contents.nothing(use)
        if result.unknown:
            why = f"data folder {folder} holds no picture of a label that the model knows"
        raise DataError("\n".join([why, *result.messages()]))
    return result


def _scan_of(contents: FolderContents, labels: Sequence[str] | None, use: Use) -> Scan:
    groups = contents.chosen(use)
    own = {g.label for g in groups if g.label is not None}
    # The test part may lack what is trained; an empty folder names a label, too.
    unused = contents.layout.unused if use == "test" else ()
    known = tuple(labels) if labels is not None else tuple(sorted(own | set(unused)))
    # A model of before may spell its labels in another form of Unicode.
    spelled = {naming.readable(label): label for label in known}
    records: list[PictureRecord] = []
    skipped = list(contents.skipped)
    unknown: Counter[str] = Counter()
    for group in groups:
        label = spelled.get(group.label or "")
        if label is None:
            unknown[group.label or ""] += len(group.names)
            continue
        for name in group.names:
            path = contents.folder / group.folder / name
            try:
                records.append(PictureRecord(path, label, path.stat().st_size))
            except OSError as e:
                skipped.append(Skipped(path, f"cannot be read: {e.strerror}"))
    notes = [*contents.layout.warnings, *contents.foreign_lines()]
    if labels is None and unused:
        notes.append(f"labels without a picture here: {', '.join(unused)}")
    return Scan(
        contents.folder,
        tuple(records),
        known,
        dict(unknown),
        tuple(skipped),
        tuple(notes),
        tuple(contents.understood(use)),
    )


def decode(data: bytes, to: PictureInput) -> Bytes:
    """A picture file's bytes as uint8[H, W, C], squashed to `to`, EXIF orientation honoured.

    A text's bytes where `to` reads letters. Any mode comes out as RGB or grey; transparent pixels lie on
    white. Raises DataError with the reason.
    """
    if to.letters:
        return text.decode(data, to)
    # JPEG decodes at 1/2, 1/4 or 1/8: never below the wanted size, a fraction of the memory.
    return squash(_opened(data, to.channels, 2 * max(to.width, to.height)), to)


def whole(data: bytes, channels: int) -> Bytes:
    """A picture file's bytes in their own size, uint8[H, W, channels]. Raises DataError."""
    picture = _opened(data, channels, None)
    return np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, channels)


def squash(picture: Image | Bytes, to: PictureInput) -> Bytes:
    """A picture of `to.channels` as uint8[H, W, C]."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    # Pillow's reducing bilinear filter is antialiased.
    picture = picture.resize((to.width, to.height), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8).reshape(to.height, to.width, to.channels)


def read(path: Path) -> bytes:
    """A picture file's bytes. Raises DataError where it cannot be read or is too large."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"{size} bytes, expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror}") from None


def load(
    found: Scan,
    to: PictureInput,
    *,
    cache: ArrayCache | None = None,
    max_bytes: int = MAX_DATASET_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Decode every picture of a scan; unreadable ones end up in `skipped`. `progress(done, all)`.

    Raises DataError where no picture is left, or where all together would be larger than `max_bytes`.
    """
    shape = (to.height, to.width, to.channels)
    kind = f"texts-{hashlib.sha256(to.letters.encode()).hexdigest()[:8]}" if to.letters else "pictures2"
    space = f"{kind}-{to.height}x{to.width}x{to.channels}"
    _check_size(found, to, int(np.prod(shape)), max_bytes)
    x = np.empty((len(found.records), *shape), np.uint8)

    def pixels(data: bytes, digest: str) -> Bytes:
        picture = cache.get(space, digest, shape, np.uint8) if cache else None
        if picture is None:
            picture = decode(data, to)
            if cache:
                cache.put(space, digest, picture)
        return picture

    return gather(found, x, pixels, progress)


def gather(
    found: Scan,
    x: Bytes | NDArray[np.float32],
    row: Callable[[bytes, str], NDArray[Any]],
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Fill `x` with `row(file's bytes, their sha256)` of each picture: one at a time is in memory.

    Where `row` raises DataError the picture ends up in `skipped`; raises DataError where none is left.
    """
    y: list[int] = []
    digests: list[str] = []
    skipped = list(found.skipped)
    for i, record in enumerate(found.records):
        try:
            data = read(record.path)
            digest = hashlib.sha256(data).hexdigest()
            x[len(y)] = row(data, digest)
            y.append(found.known.index(record.label))
            digests.append(digest)
        except DataError as e:
            skipped.append(Skipped(record.path, str(e)))
        if progress:
            progress(i + 1, len(found.records))
    if not y:
        raise DataError(
            f"{found.folder}: none of {len(found.records)} pictures can be read; the first: "
            f"{naming.shown(skipped[0].path.name)}: {skipped[0].why}"
        )
    return Dataset(x[: len(y)], np.array(y, np.int64), tuple(digests), found.known, tuple(skipped))


def _check_size(found: Scan, to: PictureInput, each: int, max_bytes: int) -> None:
    if (need := len(found.records) * each) > max_bytes:
        raise DataError(
            f"{found.folder}: {len(found.records)} pictures of {to.width}x{to.height}x{to.channels} take "
            f"{need // 2**20} MB, expected at most {max_bytes // 2**20} MB: move some out"
        )


def _opened(data: bytes, channels: int, side: int | None) -> Image:
    """The picture, plain and upright; `side` is as small as it may come where that is cheaper."""
    from PIL import ImageOps

    with opened_picture(data, MAX_PIXELS) as opened:
        if side is not None:
            opened.draft("L" if channels == 1 else "RGB", (side, side))
        check_decodable(opened)
        ImageOps.exif_transpose(opened, in_place=True)
        return plain(opened, channels)
