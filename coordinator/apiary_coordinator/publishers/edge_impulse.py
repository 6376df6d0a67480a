"""Edge Impulse: an estimate for the device, then a program (`.eim`) built from the evaluated `.tflite`."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from apiary.eim import elf
from apiary.errors import DataError, EimError, ModelError, PublishError, SettingsError
from apiary.files import write_atomic
from apiary.settings import PublishSettings, Settings
from apiary_coordinator.publishers import _child
from apiary_coordinator.publishers._job import (
    Downloaded,
    Event,
    HeldOutPicture,
    Profiled,
    PublishJob,
    Reached,
    Said,
    Uploaded,
)
from apiary_coordinator.publishers._print_info import can_run, print_info
from apiary_coordinator.publishers._record import PublishRecord
from apiary_coordinator.publishers.base import Candidate, PublishProgress, file_sha256
from apiary_coordinator.run.finished import MODELS

if TYPE_CHECKING:
    from apiary.learn.images import Scan

REMOTE: Final = True
REPRESENTATIVE: Final = 100
"""Pictures that set the ranges of a quantised model; a hundred or so is what TensorFlow's converter wants."""
_MAX_SAMPLES: Final = 5000
_BUILT_FROM: Final = {
    "device", "target", "engine", "model_type", "int8_by", "upload_test_images", "api_endpoint"
}  # fmt: skip


def entry(candidate: Candidate, settings: Settings) -> str:
    """One for each target and kind of numbers."""
    return f"edge_impulse/{settings.publish.target}/{settings.publish.model_type}"


def wanted(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    """Everything that goes into the build."""
    chosen = settings.publish
    return {
        "sha256": candidate.digests[_source(candidate, chosen).name],
        "labels": list(candidate.labels),
        **chosen.model_dump(include=_BUILT_FROM),
    }


def publish(
    candidate: Candidate, settings: Settings, record: PublishRecord, watch: PublishProgress
) -> dict[str, Any]:
    """Profile, build, download, verify, store as RUN/model-TARGET[-int8].eim. Raises PublishError."""
    chosen = settings.publish
    if candidate.input.letters:
        raise PublishError(
            f"run {candidate.run} reads texts: Edge Impulse takes pictures; publish it to a `directory`"
        )
    key = api_key(chosen)
    until = time.monotonic() + chosen.timeout_s
    for attempt in range(1, chosen.attempts + 1):
        try:
            return _attempt(candidate, settings, key, record, watch, until=until)
        except PublishError as e:
            pause = chosen.retry_pause_s * 2 ** (attempt - 1)
            if not e.retry:
                raise
            if attempt == chosen.attempts or time.monotonic() + pause >= until:
                tries = f" (tried {attempt} times)" if attempt > 1 else ""
                raise PublishError(f"{e}{tries}", retry=True) from None
            watch.say(f"attempt {attempt} of {chosen.attempts}: {e}; again in {pause:g} s")
            _sleep(pause, watch)
    raise AssertionError("attempts is 1 or more")


def api_key(chosen: PublishSettings) -> str:
    """From the file that the settings name, otherwise from EI_API_KEY. Raises SettingsError."""
    if chosen.api_key_file is not None:
        where = f"publish.api_key_file {chosen.api_key_file}"
        try:
            mode = chosen.api_key_file.stat().st_mode
            key = chosen.api_key_file.read_text(encoding="utf-8").split("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as e:
            raise SettingsError(f"{where}: {getattr(e, 'strerror', None) or 'not text'}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(f"{where} may be read by others: chmod 600 {chosen.api_key_file}")
    else:
        where, key = "EI_API_KEY", os.environ.get("EI_API_KEY", "").strip()
    if not key:
        raise SettingsError(
            f"{where} holds no API key. A project of Edge Impulse has one (Dashboard, Keys): set EI_API_KEY "
            "or publish.api_key_file; without an account, publish with --to directory"
        )
    # It becomes the value of a header.
    if len(key) > 512 or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(
            f"{where} holds {len(key)} characters that are no API key: expected letters and digits"
        )
    return key


@dataclass(slots=True)
class _Steps:
    """Takes the child's events into the record."""

    record: PublishRecord
    watch: PublishProgress
    project: int | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Reached():
                self.project = event.project
                self.watch.say(f"Edge Impulse, project {event.project}")
            case Said():
                self.watch.say(event.text)
            case Profiled():
                self.record.step("profile", event.profile.model_dump())
                self.watch.say(shown(event.profile.model_dump()))
            case Uploaded():
                self.record.step("samples", event.model_dump(exclude={"event"}))
                refused = f", {event.refused} refused ({event.why})" if event.refused else ""
                self.watch.say(f"{event.taken} test images uploaded{refused}")
            case Downloaded():
                self.watch.say(f"downloaded {event.bytes} bytes")


def shown(profile: dict[str, Any]) -> str:
    """An estimate in a line."""

    def size(value: Any) -> str:
        return "unknown" if value is None else f"{value / 1024:.0f} KB"

    ms = profile["inference_ms"]
    return (
        f"estimate for {profile['device']}: RAM {size(profile['ram_bytes'])}, "
        f"ROM {size(profile['rom_bytes'])}, inference {'unknown' if ms is None else f'{ms:g} ms'}"
    )


def _attempt(
    candidate: Candidate,
    settings: Settings,
    key: str,
    record: PublishRecord,
    watch: PublishProgress,
    *,
    until: float,
) -> dict[str, Any]:
    chosen = settings.publish
    steps = _Steps(record, watch)
    with tempfile.TemporaryDirectory(prefix="apiary-publish-") as name:
        folder = Path(name)
        source = _source(candidate, chosen)
        there = chosen.model_type == "int8" and chosen.int8_by == "edge_impulse"
        job = PublishJob(
            model=source.resolve(),
            sha256=candidate.digests[source.name],
            labels=list(candidate.labels),
            publish=chosen,
            representative=_representative(candidate, settings, folder) if there else None,
            samples=_samples(candidate, settings) if chosen.upload_test_images else [],
            out=folder / "download",
            done=list(record.steps),
        )
        _child.run(job, key, steps, watch, reach_s=chosen.reach_s, until=until)
        try:
            data = job.out.read_bytes()
        except OSError:
            raise PublishError("the SDK's process ended well, but left no download", retry=True) from None
        built = _store(candidate, chosen, data, folder)
    watch.say(f"verified {', '.join(built['files'])}")
    return {"project": steps.project, **dict(record.steps), "build": built, "files": built["files"]}


def _source(candidate: Candidate, chosen: PublishSettings) -> Path:
    """The evaluated file that is uploaded: float32 where Edge Impulse is to quantise."""
    kind = "int8" if chosen.model_type == "int8" and chosen.int8_by == "apiary" else "float32"
    if MODELS[kind] not in candidate.digests:
        raise DataError(f"{candidate.folder} holds no {MODELS[kind]}: this run was not exported as {kind}")
    return candidate.folder / MODELS[kind]


def _store(candidate: Candidate, chosen: PublishSettings, data: bytes, folder: Path) -> dict[str, Any]:
    """Verify the download, then put it into the run's folder. Raises PublishError."""
    machine = elf.machine_of_target(chosen.target)
    who = f"the download for {chosen.target}"
    result: dict[str, Any] = {"target": chosen.target, "bytes": len(data)}
    try:
        if machine is None:
            _check_zip(data, who)
        else:
            elf.check(data, machine, who=who, max_bytes=chosen.max_mb * 2**20)
            result |= {"machine": machine, "print_info": _try_out(candidate, data, machine, folder)}
    except ModelError as e:
        # A cut or an error page is an accident of the moment; a good program with a wrong model is not.
        raise PublishError(str(e), retry=not isinstance(e, EimError)) from None
    kind = "-int8" if chosen.model_type == "int8" else ""
    path = candidate.folder / f"model-{chosen.target}{kind}{'.eim' if machine else '.zip'}"
    write_atomic(path, data)
    if machine:
        path.chmod(path.stat().st_mode | 0o111)
    return result | {"files": {path.name: file_sha256(path)}}


def _try_out(candidate: Candidate, data: bytes, machine: str, folder: Path) -> dict[str, Any] | str:
    """What the program says of itself, compared with the run. Raises EimError."""
    if not can_run(machine):
        return f"not run: this machine does not run programs for {machine}; each node's own test does"
    program = folder / "model.eim"
    program.write_bytes(data)
    program.chmod(0o700)
    model = print_info(program)
    if set(model.labels) != set(candidate.labels):
        raise EimError(
            f"the built program has the labels {', '.join(model.labels)[:300]}, "
            f"the run {', '.join(candidate.labels)[:300]}"
        )
    shape = candidate.input
    if (model.width, model.height, model.channels) != (shape.width, shape.height, shape.channels):
        raise EimError(
            f"the built program takes {model.width}x{model.height}x{model.channels}, "
            f"the run's model {shape.width}x{shape.height}x{shape.channels}"
        )
    return {
        "project": model.project,
        "deploy_version": model.deploy_version,
        "labels": list(model.labels),
        "input": [model.width, model.height, model.channels],
        "resize": model.resize,
    }


def _check_zip(data: bytes, who: str) -> None:
    """Other targets come as archives. Raises ModelError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as e:
        raise ModelError(f"{who} ({len(data)} bytes) is not a whole zip archive: {e}") from None
    if bad is not None:
        raise ModelError(f"{who}: {bad} in the archive is damaged")


def _held_out(candidate: Candidate, settings: Settings) -> Scan:
    from apiary.learn import images

    folder = settings.coordinator.test_data
    if folder is None:
        raise DataError("this needs the server's held-out pictures: set coordinator.test_data")
    return images.scan(folder, candidate.labels, use="test", join_labels=settings.coordinator.join_labels)


def _representative(candidate: Candidate, settings: Settings, folder: Path) -> Path:
    """About a hundred of the server's own pictures, evenly of all labels, as the model's input."""
    from dataclasses import replace

    import numpy as np

    from apiary.learn import images
    from apiary.learn.partition import evenly

    found = _held_out(candidate, settings)
    chosen = evenly(np.array([found.known.index(r.label) for r in found.records]), REPRESENTATIVE)
    some = replace(found, records=tuple(found.records[i] for i in chosen))
    path = folder / "representative.npy"
    np.save(path, images.load(some, candidate.input).x.astype(np.float32), allow_pickle=False)
    return path


def _samples(candidate: Candidate, settings: Settings) -> list[HeldOutPicture]:
    records = _held_out(candidate, settings).records
    if len(records) > _MAX_SAMPLES:
        raise DataError(f"{len(records)} test images, at most {_MAX_SAMPLES} are uploaded")
    return [HeldOutPicture(path=r.path.resolve(), label=r.label) for r in records]


def _sleep(seconds: float, watch: PublishProgress) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        watch.check()
        time.sleep(min(left, 0.5))
