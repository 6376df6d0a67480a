"""Fetch a data set's files over HTTP: resumed where a link broke, bounded, checked, whole or not there."""

import http.client
import json
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from apiary import __version__
from apiary.errors import DataError, StoreError
from apiary.files import sha256_of, sync_folder, write_json
from apiary_cli.datasets.catalogue import Archive, DataSet

RECORD: Final = "fetched.json"
ATTEMPTS: Final = 5  # in a row without a byte of progress
TIMEOUT_S: Final = 30.0
MAX_UNPACKED_BYTES: Final = 4 * 2**30
_BLOCK: Final = 2**16
OnProgress = Callable[[str, int, int | None], None]
"""Called with a file's name, bytes so far, and all bytes where that is known."""


@dataclass(frozen=True, slots=True)
class FetchedArchive:
    """One archive as it is now. `trust` is `published` or `first use`: what its checksum was held against."""

    file: str
    sha256: str
    bytes: int
    trust: str
    fresh: bool
    """Whether it was fetched now, not found."""


def fetch(
    dataset: DataSet,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[FetchedArchive]:
    """Bring all archives of `dataset` into `folder`. Raises DataError, StoreError."""
    if dataset.manual and not dataset.archives:
        raise DataError(f"{dataset.name}: {dataset.by_hand(folder)}")
    record = _read_record(folder / RECORD)
    results = []
    for archive in dataset.archives:
        known = record.get(archive.file)
        if known and _in_place(archive, folder, known):
            results.append(
                FetchedArchive(archive.file, known["sha256"], known["bytes"], known["trust"], False)
            )
            continue
        expected = archive.sha256 or (known or {}).get("sha256")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / archive.file
            digest = _download(archive, path, expected, on_progress, sleep)
            trust = "published" if archive.sha256 else "first use"
            size = path.stat().st_size
            made = _unpack(archive, path, folder) if archive.unpack else [archive.file]
            entry = {"url": archive.url, "sha256": digest, "bytes": size, "trust": trust, "files": made}
            record[archive.file] = entry
            write_json(folder / RECORD, record)
            if archive.unpack:
                path.unlink()
        except OSError as e:
            raise StoreError(f"cannot write below {folder}: {e.strerror or e}") from e
        results.append(FetchedArchive(archive.file, digest, size, trust, True))
    return results


def _in_place(archive: Archive, folder: Path, known: dict[str, Any]) -> bool:
    if archive.sha256 and known["sha256"] != archive.sha256:
        return False
    if not all((folder / name).exists() for name in known["files"]):
        return False
    return bool(archive.unpack) or sha256_of(folder / archive.file) == known["sha256"]


class _CutError(Exception):
    """The link broke or the server hiccuped; try again."""


def _download(
    archive: Archive,
    path: Path,
    expected: str | None,
    on_progress: OnProgress | None,
    sleep: Callable[[float], None],
) -> str:
    """Returns the sha256 of `path`, which is whole and synced."""
    part = path.with_name(f".{path.name}.part")
    resumed = part.exists()
    if expected is None and resumed:
        # With no checksum to hold the joint against, bytes of two downloads must not meet in one file.
        part.unlink()
        resumed = False
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(archive, part, before, fixed=expected is not None, on_progress=on_progress)
        except _CutError as e:
            now = part.stat().st_size if part.exists() else 0
            failures = 1 if now > before else failures + 1
            if failures >= ATTEMPTS:
                raise DataError(
                    f"{archive.url}: {e}; tried {ATTEMPTS} times without progress. "
                    f"{now} bytes are kept: the same command goes on from there"
                ) from None
            sleep(min(2.0 ** (failures - 1), 30.0))
            continue
        digest = sha256_of(part)
        if expected is None or digest == expected:
            break
        size = part.stat().st_size
        part.unlink()
        if not resumed:
            raise DataError(
                f"{archive.url}: {size} bytes with sha256 {digest}, expected {expected}: the file at that "
                "address is another one, or something on the way changed it; nothing was kept"
            )
        resumed = False  # the kept part may have been stale: once more from the start
    part.replace(path)
    sync_folder(path.parent)
    return digest


def _transfer(
    archive: Archive, part: Path, have: int, *, fixed: bool, on_progress: OnProgress | None
) -> None:
    """Append what is missing to `part`. Raises _CutError where another attempt may help, DataError else."""
    limit = archive.bytes or archive.max_bytes
    if archive.bytes and have >= archive.bytes:
        if have > archive.bytes:
            part.unlink()
            raise _CutError(f"kept {have} bytes of {archive.bytes}")
        return
    headers = {"User-Agent": f"apiary/{__version__}", "Accept-Encoding": "identity"}
    if have and fixed:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(archive.url, headers=headers)  # noqa: S310 - http(s) only, by its pattern
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
            start = _start(response, have)
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            if total is not None and (total > limit or (archive.bytes and total != archive.bytes)):
                raise DataError(
                    f"{archive.url}: the server offers {total} bytes, expected "
                    f"{archive.bytes or f'at most {limit}'}"
                )
            with part.open("r+b" if part.exists() else "wb") as f:
                f.truncate(start)
                f.seek(start)
                got = start
                while block := response.read(_BLOCK):
                    got += len(block)
                    if got > limit:
                        raise DataError(f"{archive.url}: more than the {limit} bytes expected")
                    f.write(block)
                    if on_progress:
                        on_progress(archive.file, got, total or archive.bytes)
                f.flush()
                os.fsync(f.fileno())
            if total is not None and got < total:
                raise _CutError(f"the link broke after {got} of {total} bytes")
    except urllib.error.HTTPError as e:
        if e.code == 416:  # what we keep is longer than what is there
            part.unlink(missing_ok=True)
            raise _CutError("the kept part is longer than the file") from None
        if e.code in (408, 425, 429) or e.code >= 500:
            raise _CutError(f"the server answered {e.code} {e.reason}") from None
        raise DataError(f"{archive.url}: the server answered {e.code} {e.reason}") from None
    except urllib.error.URLError as e:
        raise _CutError(f"no connection: {e.reason}") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError) as e:
        raise _CutError(f"the link broke: {e or type(e).__name__}") from None


def _start(response: Any, have: int) -> int:
    """Where the body begins: a server may ignore Range, or answer with another one."""
    if response.status != 206:
        return 0
    where = response.headers.get("Content-Range", "")
    if where.startswith(f"bytes {have}-"):
        return have
    raise DataError(f"the server answered with range {where!r}, asked for {have}-")


def _unpack(archive: Archive, path: Path, folder: Path) -> list[str]:
    """Unpack regular files into `folder`; returns the top-level names. Raises DataError."""
    building = folder / ".unpack.part"
    shutil.rmtree(building, ignore_errors=True)
    found: dict[str, str] = {}
    left = MAX_UNPACKED_BYTES
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                inner = _inner_path(archive, member)
                if inner is None:
                    continue
                left -= member.size
                stream = tar.extractfile(member)
                if left < 0 or stream is None:
                    raise DataError(f"{path}: unpacks to more than {MAX_UNPACKED_BYTES} bytes")
                target = building / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as f:
                    shutil.copyfileobj(stream, f, _BLOCK)
                if archive.members:
                    found[str(inner)] = sha256_of(target)
        if wrong := [n for n, digest in archive.members.items() if found.get(n) != digest]:
            raise DataError(f"{path}: {len(wrong)} files differ from what was published, first {wrong[0]}")
        if not building.is_dir():
            raise DataError(f"{path}: nothing below {archive.only!r} in the archive")
        tops = sorted(p.name for p in building.iterdir())
        for name in tops:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (building / name).replace(folder / name)
        sync_folder(folder)
        return tops
    except (tarfile.TarError, EOFError) as e:
        raise DataError(f"{path}: the archive is torn: {e}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _inner_path(archive: Archive, member: tarfile.TarInfo) -> PurePosixPath | None:
    """The path below the folder, None for what is not taken. Links are never followed or made."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive.file}: member {member.name!r} points outside the archive")
    if not member.isfile():
        return None
    if not archive.only:
        return path
    below = PurePosixPath(*path.parts[1:])
    only = PurePosixPath(archive.only)
    return below.relative_to(only) if only in below.parents else None


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read: {e}; remove it to fetch anew") from None
    keys = {"sha256", "bytes", "trust", "files"}
    if not isinstance(record, dict) or not all(
        isinstance(v, dict) and keys <= set(v) for v in record.values()
    ):
        raise DataError(f"{path} is not a record of fetched files; remove it to fetch anew")
    return record
