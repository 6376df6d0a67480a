"""Samples in folders, `LABEL/*.jpg|jpeg|png|txt`, to bytes of one size: uint8[H, W, C], never floats."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn import text
from apiary.learn.cache import ArrayCache
from apiary.learn.manifest import PictureInput
from apiary.learn.sample_files import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    PICTURES,
    TEXTS,
    check_decodable,
    opened_picture,
)

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DATASET_BYTES: Final = 512 * 2**20
"""Of the decoded pictures together; 19,000 pictures of 96x96x3."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """A picture file, its label (the folder's name) and its size in bytes."""

    path: Path
    label: str
    size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies in a folder: pictures sorted by label and file name, and what was left out.

    `unknown` counts the pictures of labels that the model does not know.
    """

    folder: Path
    records: tuple[PictureRecord, ...]
    known: tuple[str, ...]
    unknown: Mapping[str, int]
    skipped: tuple[Skipped, ...]

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
        return lines + [f"{s.path}: left out: {s.why}" for s in self.skipped]


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


def scan(folder: Path, labels: Sequence[str] | None = None, to: PictureInput | None = None) -> Scan:
    """List the pictures under `folder`; `labels` None takes its folders' names. Raises DataError.

    Texts instead of pictures where `to` reads letters; where nothing is known yet (None) and there is no
    picture at all, texts too.
    Links that lead out of the folder are not followed; hidden files and other suffixes do not count.
    """
    _check_folder(folder)
    found, skipped = _by_label(folder, TEXTS if to is not None and to.letters else PICTURES)
    if to is None and not any(found.values()):
        found, skipped = _by_label(folder, TEXTS)
    known = tuple(labels) if labels is not None else tuple(k for k, v in found.items() if v)
    result = Scan(
        folder,
        tuple(r for label in sorted(found) if label in known for r in found[label]),
        known,
        {label: len(rs) for label, rs in found.items() if label not in known and rs},
        tuple(skipped),
    )
    if not result.records:
        raise DataError("\n".join([_nothing(folder, result), *result.messages()]))
    return result


def decode(data: bytes, to: PictureInput) -> Bytes:
    """A JPEG or PNG file's bytes as uint8[H, W, C], squashed to `to`, EXIF orientation honoured.

    A text's bytes where `to` reads letters. Any mode comes out as RGB or grey; transparent pixels lie on
    white. Raises DataError with the reason.
    """
    if to.letters:
        return text.decode(data, to)
    # JPEG decodes at 1/2, 1/4 or 1/8: never below the wanted size, a fraction of the memory.
    return squash(_opened(data, to.channels, 2 * max(to.width, to.height)), to)


def whole(data: bytes, channels: int) -> Bytes:
    """A JPEG or PNG file's bytes in their own size, uint8[H, W, channels]. Raises DataError."""
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
    kind = f"texts-{hashlib.sha256(to.letters.encode()).hexdigest()[:8]}" if to.letters else "pictures"
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
            f"{skipped[0].path.name}: {skipped[0].why}"
        )
    return Dataset(x[: len(y)], np.array(y, np.int64), tuple(digests), found.known, tuple(skipped))


def _check_size(found: Scan, to: PictureInput, each: int, max_bytes: int) -> None:
    if (need := len(found.records) * each) > max_bytes:
        raise DataError(
            f"{found.folder}: {len(found.records)} pictures of {to.width}x{to.height}x{to.channels} take "
            f"{need // 2**20} MB, expected at most {max_bytes // 2**20} MB: move some out"
        )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist; {_LAYOUT}")
    if not folder.is_dir():
        raise DataError(f"data folder {folder} is a file; {_LAYOUT}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"data folder {folder} may not be read by this user")


_LAYOUT: Final = "expected a folder for each label with its pictures: DATA/cat/001.jpg, DATA/dog/002.png"


def _nothing(folder: Path, result: Scan) -> str:
    if result.unknown:
        return f"data folder {folder} holds no picture of a label that the model knows"
    if any(p.suffix.lower() in PICTURES for p in folder.iterdir()):
        return f"data folder {folder} holds pictures, but not in folders by label; {_LAYOUT}"
    return f"data folder {folder} holds no pictures; {_LAYOUT}"


def _by_label(
    folder: Path, suffixes: tuple[str, ...]
) -> tuple[dict[str, list[PictureRecord]], list[Skipped]]:
    root = folder.resolve()
    found: dict[str, list[PictureRecord]] = {}
    skipped: list[Skipped] = []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if not sub.resolve().is_relative_to(root):
            skipped.append(Skipped(sub, "a link that leads out of the data folder"))
            continue
        found[sub.name] = list(_files(sub, root, suffixes, skipped))
    return found, skipped


def _files(
    sub: Path, root: Path, suffixes: tuple[str, ...], skipped: list[Skipped]
) -> Iterator[PictureRecord]:
    for path in sorted(sub.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        try:
            real = path.resolve(strict=True)
            if not real.is_relative_to(root):
                skipped.append(Skipped(path, "a link that leads out of the data folder"))
            elif real.is_file():
                yield PictureRecord(path, sub.name, real.stat().st_size)
        except (OSError, RuntimeError) as e:  # RuntimeError: a loop of links, before Python 3.13
            skipped.append(Skipped(path, f"cannot be read: {getattr(e, 'strerror', None) or e}"))


def _plain(picture: Image, channels: int) -> Image:
    """Any mode as RGB or L, 8 bits."""
    from PIL import Image

    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        # 16 bit grey: Pillow's own conversion clips at 255 instead of scaling.
        picture = Image.fromarray((np.asarray(picture, np.float64) / 257).clip(0, 255).astype(np.uint8), "L")
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _opened(data: bytes, channels: int, side: int | None) -> Image:
    """The picture, plain and upright; `side` is as small as it may come where that is cheaper."""
    from PIL import ImageOps

    with opened_picture(data, MAX_PIXELS) as opened:
        if side is not None:
            opened.draft("L" if channels == 1 else "RGB", (side, side))
        check_decodable(opened)
        ImageOps.exif_transpose(opened, in_place=True)
        return _plain(opened, channels)
