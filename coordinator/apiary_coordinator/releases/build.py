"""A release out of what a run published, or out of a file: looked at and named. For a worker's thread."""

import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, cast

from pydantic import Field

from apiary.eim import elf
from apiary.eim.protocol import EimModel
from apiary.errors import DataError, ModelError, PublishError, SettingsError
from apiary.files import sha256_of
from apiary.learn.folder.tables import class_names
from apiary.settings import Settings
from apiary.text_files import read_text
from apiary.wire.messages import MAX_LABELS, BlobRef, Label, Name, PictureShape, Release
from apiary.wire.messages.releases import Machine, ReleaseKind
from apiary_coordinator.operators.requests import Arguments
from apiary_coordinator.publishers import _record
from apiary_coordinator.publishers._print_info import can_run, print_info
from apiary_coordinator.publishers.base import Kind, candidate

_DAY_S: Final = 86400.0
_MODEL: Final = "model.tflite"


class ReleaseRequest(Arguments):
    """What an operator wants released. `kind` None: the program where one was built, else the .tflite."""

    name: Name | None = None
    kind: ReleaseKind | None = None
    numbers: Kind | None = None
    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=MAX_LABELS)] | None = None
    min_version: Annotated[str, Field(max_length=40, pattern=r"^[0-9A-Za-z.+-]*$")] = ""
    expires_days: Annotated[float, Field(gt=0, le=3650)] | None = None
    relabels: bool = False


@dataclass(frozen=True, slots=True)
class BuiltRelease:
    """A release and its file."""

    release: Release
    file: Path


def from_run(folder: Path, wish: ReleaseRequest, settings: Settings, wall: float) -> BuiltRelease:
    """Of a finished run: the evaluated `.tflite`, or the `.eim` that Edge Impulse made of it.

    Raises DataError, ModelError, PublishError.
    """
    numbers = wish.numbers or settings.publish.model_type
    chosen = candidate(folder, numbers)
    program = _program(folder, numbers, settings) if wish.kind != "tflite" else None
    if program is None and wish.kind == "eim":
        target = settings.publish.target
        raise PublishError(
            f"{folder.name} has no program for {target} ({numbers}): apiary publish {folder.name} "
            "--to edge_impulse makes one; --kind tflite releases the model without"
        )
    file = program if program is not None else chosen.model
    shape = chosen.input
    machine = _machine(file) if program is not None else None
    kind: ReleaseKind = "eim" if program is not None else "tflite"
    suffix = kind if numbers == "float32" else f"{kind}-int8"
    return _made(
        file,
        wish,
        settings,
        wall,
        name=f"{chosen.run[:50]}-{suffix}",
        kind=kind,
        machine=machine,
        labels=chosen.labels,
        shape=PictureShape(
            height=shape.height, width=shape.width, channels=shape.channels, letters=shape.letters or None
        ),
        accuracy=chosen.accuracy.get(numbers),
        contributors=chosen.contributors,
        run=chosen.run,
    )


def from_file(file: Path, wish: ReleaseRequest, settings: Settings, wall: float) -> BuiltRelease:
    """Of a `.tflite` with labels beside it (`labels.txt`) or in the wish, or of an `.eim` that runs here."""
    try:
        with file.open("rb") as f:
            beginning = f.read(8)
    except OSError as e:
        raise DataError(f"{file} cannot be read on the coordinator's machine: {e.strerror}") from None
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", file.name.removesuffix(".eim").removesuffix(".tflite")).strip(
        "-_."
    )
    kind: ReleaseKind = "eim" if beginning[:4] == b"\x7fELF" else "tflite"
    machine = _machine(file) if kind == "eim" else None
    if machine is not None:
        model = _described(file, machine)
        labels = model.labels
        if wish.labels is not None and set(wish.labels) != set(labels):
            raise ModelError(f"{file.name} has the labels {', '.join(labels)[:300]}, not those given")
        resize = cast("Literal['none', 'squash', 'fit-shortest', 'fit-longest']", model.resize)
        channels = _channels(model.channels)
        shape = PictureShape(height=model.height, width=model.width, channels=channels, resize=resize)
    else:
        from apiary.learn.classifier import Classifier

        classifier = Classifier(file)
        labels = wish.labels or _labels_beside(file)
        if len(labels) != classifier.classes:
            raise ModelError(f"{file.name} has {classifier.classes} classes, {len(labels)} labels were given")
        took = classifier.input
        shape = PictureShape(height=took.height, width=took.width, channels=_channels(took.channels))
    name = f"{name[:54] or 'file'}-{kind}"
    return _made(
        file, wish, settings, wall, name=name, kind=kind, machine=machine, labels=labels, shape=shape
    )


def _made(
    file: Path,
    wish: ReleaseRequest,
    settings: Settings,
    wall: float,
    *,
    name: str,
    kind: ReleaseKind,
    machine: Machine | None,
    labels: tuple[str, ...],
    shape: PictureShape,
    accuracy: float | None = None,
    contributors: int = 0,
    run: str | None = None,
) -> BuiltRelease:
    days = wish.expires_days if wish.expires_days is not None else settings.release.expires_days
    try:
        ref = BlobRef(digest=sha256_of(file), bytes=file.stat().st_size)
        release = Release(
            name=wish.name or name,
            file=ref,
            kind=kind,
            machine=machine,
            labels=list(labels),
            input=shape,
            accuracy=accuracy,
            contributors=contributors,
            run=run,
            created=int(wall),
            expires=int(wall + days * _DAY_S) if days is not None else None,
            min_version=wish.min_version,
            relabels=wish.relabels,
        )
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise SettingsError(f"release {wish.name or name!r} cannot be made of {file.name}: {e}") from None
    return BuiltRelease(release, file)


def _program(folder: Path, numbers: Kind, settings: Settings) -> Path | None:
    """The `.eim` of this target and kind of numbers that publish.json says is done, and is still the same."""
    entry = _record.read(folder).get(f"edge_impulse/{settings.publish.target}/{numbers}", {})
    result = entry.get("result") if entry.get("state") == "done" else None
    for name, digest in (result or {}).get("files", {}).items():
        path = folder / str(name)
        if path.suffix != ".eim":
            continue
        try:
            if sha256_of(path) == digest:
                return path
        except OSError:
            pass
        raise PublishError(f"{path} is not what Edge Impulse gave: publish {folder.name} again (--again)")
    return None


def _machine(file: Path) -> Machine:
    found = elf.read(file.read_bytes(), who=file.name).machine
    if found not in ("aarch64", "armv7", "x86_64"):
        raise ModelError(f"{file.name} is a program for {found}, expected aarch64, armv7 or x86_64")
    return cast("Machine", found)


def _described(file: Path, machine: str) -> EimModel:
    """What a program reports of itself. Raises ModelError where this machine cannot run it."""
    if not can_run(machine):
        raise ModelError(
            f"{file.name} is for {machine} and this machine ({platform.machine()}) cannot ask it for its "
            "labels: release it from the run it was published from"
        )
    with tempfile.TemporaryDirectory(prefix="apiary-release-") as folder:
        program = Path(folder) / "model.eim"
        shutil.copyfile(file, program)
        program.chmod(0o700)
        return print_info(program)


def _labels_beside(file: Path) -> tuple[str, ...]:
    path = file.with_name("labels.txt")
    try:
        return tuple(class_names(read_text(path, error=DataError)))
    except DataError:
        if path.exists():
            raise
        raise DataError(
            f"{file.name}: which labels? give --labels A,B,... in the model's order, or labels.txt beside it"
        ) from None


def _channels(value: int) -> Literal[1, 3]:
    return 1 if value == 1 else 3
